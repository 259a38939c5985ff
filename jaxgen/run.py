# SPDX-License-Identifier: MIT
"""The doorway of training: joins data, step, loop and files into one run folder.

An experiment gives a `build` function; everything it does not care about happens here, once.
"""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxgen import outputs, plan
from jaxgen.cli import Interrupted, RunOptions
from jaxgen.io import checkpoint, data, run_folder, stream
from jaxgen.io.source import read_all
from jaxgen.train import loop, order, parallel, step


def train(name: str, config: Any, build: plan.Build) -> None:
    """Trains the system from its start, or from its newest checkpoint, to the last step.

    Raises Interrupted once it has stopped and saved because somebody asked for it.
    """
    options: RunOptions = config.run
    source = plan.open_split(options, "train")
    examples = plan.read_examples(options, source)
    mesh = parallel.data_mesh(options.num_devices)
    num_steps, system = plan.make(config, build, examples)
    resident = plan.fits_on_device(options, source)
    chunk = plan.scan_steps(options, system, resident)
    plan.check_batch(system, mesh, examples)
    folder = _folder(name, config)
    outputs.announce(folder, name, options, examples, mesh, chunk)

    with contextlib.closing(checkpoint.open_manager(folder / "checkpoints")) as manager:
        state, start = _start(system, options, mesh, manager)
        if start >= num_steps:
            raise ValueError(f"{folder} has its {start} steps already; raise --steps to go on")
        key = parallel.put(plan.train_keys(options), mesh)
        run, batches = _lift(system, options, mesh, source, resident, start)
        with outputs.opened(folder, config, system, examples, manager, start, num_steps) as out:
            _, done = loop.train(
                run, state, batches, key, out.callbacks,
                start=start, stop=num_steps, chunk=chunk,
                save_every=options.checkpoint_every, draw_every=options.draw_every,
            )  # fmt: skip
        manager.wait_until_finished()
    if done < num_steps:
        raise Interrupted(folder, done, num_steps, out.signal())


def restore(config: Any, build: plan.Build) -> tuple[Any, int, plan.Examples]:
    """The newest state of a finished or unfinished run on one device, its step, and examples.

    States of several models keep their leading axis; `model(state, options, i)` takes one.
    """
    options: RunOptions = config.run
    checkpoints = folder(options) / "checkpoints"
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"{options.run_dir} has no checkpoints; train first")
    examples = plan.read_examples(options, plan.open_split(options, "train"))
    _, system = plan.make(config, build, examples)
    template = _template(system, options, parallel.data_mesh(1))
    with contextlib.closing(checkpoint.open_manager(checkpoints)) as manager:
        state, done = checkpoint.restore(manager, template)
    return state, done, examples


def folder(options: RunOptions) -> Path:
    """The folder of a run that exists already."""
    if options.run_dir is None:
        raise ValueError("say which run with --run-dir")
    return Path(options.run_dir)


def load_split(options: RunOptions, split: str) -> data.Dataset:
    """The whole split, "train" or "test", in host memory."""
    return read_all(plan.open_split(options, split))


def _folder(name: str, config: Any) -> Path:
    """The run's folder, new or to be continued, with the configuration in it."""
    options: RunOptions = config.run
    if options.run_dir is not None:
        folder = Path(options.run_dir)
    elif jax.process_count() > 1:
        raise ValueError("several hosts need --run-dir, a folder that all of them see")
    else:
        stem = options.data if options.data.isidentifier() else Path(options.data).stem
        folder = run_folder.choose(f"{name}-{stem}")

    if not options.resume:
        run_folder.check_free(folder, options.overwrite)
        _all_here("checked")
    if jax.process_index() == 0:
        if not options.resume:
            run_folder.clear(folder)
        run_folder.write_config(folder, name, asdict(config))
    _all_here("created")
    return folder


def _all_here(what: str) -> None:
    """Waits until every process has come this far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _template(system: plan.System, options: RunOptions, mesh: Mesh) -> Any:
    init = system.init if options.num_models == 1 else jax.vmap(system.init)
    shapes = jax.eval_shape(init, plan.init_keys(options))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
    )


def _start(system: plan.System, options: RunOptions, mesh: Mesh, manager: Any) -> tuple[Any, int]:
    """The state to begin with and the number of steps it has behind it."""
    if options.resume:
        return checkpoint.restore(manager, _template(system, options, mesh))
    init = system.init if options.num_models == 1 else jax.vmap(system.init)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = parallel.put(plan.init_keys(options), mesh)
    return jax.jit(init, out_shardings=everywhere)(key), 0


def _lift(
    system: plan.System,
    options: RunOptions,
    mesh: Mesh,
    source: data.Source,
    resident: bool,
    start: int,
) -> tuple[Callable, loop.Batches]:
    """The compiled step and the batches it takes, for data on the devices or from the host."""
    one = system.step if options.num_models == 1 else step.vmap_models(system.step)
    if resident:
        whole = read_all(source)
        dataset = parallel.put({"image": whole.images, "label": whole.labels}, mesh)
        data_key = plan.data_key(options)
        batches = order.resident_batches(dataset, system.images_per_step, data_key, mesh)
        run = parallel.parallelize(step.scan_steps(one), mesh, options.parallel, parallel.SCANNED)
        return run, batches

    reader = stream.shuffled_batches(
        source, batch_size=system.images_per_step, seed=options.seed, first_step=start,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    run = parallel.parallelize(step.chunk_of_one(one), mesh, options.parallel)
    return run, lambda first, count: parallel.put(next(reader), mesh, parallel.EXAMPLES)
