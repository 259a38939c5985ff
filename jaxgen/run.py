# SPDX-License-Identifier: MIT
"""The doorway of training: joins data, step, loop and files into one run folder.

An experiment gives a `build` function; everything it does not care about happens here, once.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from jaxgen.cli import Interrupted, RunOptions
from jaxgen.io import checkpoint, data, images, log, run_folder, signals, stream
from jaxgen.io.source import read_all
from jaxgen.train import loop, optimizer, order, parallel, step
from jaxgen.types import Key, Step


class Examples(NamedTuple):
    """What a network needs to know of its data, and a few held-out examples to draw."""

    num_examples: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    images: np.ndarray  # uint8 [K, H, W, C], from the test split
    labels: np.ndarray  # int32 [K]


class System(NamedTuple):
    """What an experiment builds: the state at step 0, one step, and its pictures."""

    init: Callable[[Key], Any]
    step: Step
    draw: Callable[[Any, Examples, Key], dict[str, Image.Image]]  # of one model's state
    images_per_step: int
    shown: tuple[str, ...]  # metrics beside the progress
    convolutional: bool


Build = Callable[[Any, Examples, int], System]  # (config, examples, number of steps)


def train(name: str, config: Any, build: Build) -> None:
    """Trains the system from its start, or from its newest checkpoint, to the last step."""
    options: RunOptions = config.run
    source = _open(options, "train")
    mesh = parallel.data_mesh(options.num_devices)
    examples = _examples(options, source)
    num_steps, system = _plan(config, build, examples)
    resident = _resident(options, source)
    chunk = _scan_steps(options, system, resident)
    _check_batch(system, mesh, examples)

    folder = _folder(name, options)
    if jax.process_index() == 0:
        if not options.resume:
            run_folder.create(folder, options.overwrite)
        run_folder.write_config(folder, name, asdict(config) | {"run": asdict(options)})
    print(
        f"{name}: {examples.num_examples} images {examples.image_shape} of {options.data}, "
        f"{mesh.size} {jax.devices()[0].platform} device(s), {options.parallel}, "
        f"{chunk} step(s) per dispatch -> {folder}"
    )
    with contextlib.closing(checkpoint.open_manager(folder / "checkpoints")) as manager:
        state, start = _start(system, options, mesh, manager)
        key = _model_keys(options, "train")
        run, batches = _lift(system, options, mesh, source, resident, start)
        with _callbacks(folder, config, system, examples, manager, start, num_steps) as calls:
            if start >= num_steps:
                print(f"{folder} has {start} of {num_steps} steps already; raise --steps to go on")
                return
            began = time.monotonic()
            state, done = loop.train(
                run, state, batches, parallel.put(key, mesh), calls,
                start=start, stop=num_steps, chunk=chunk,
                save_every=options.checkpoint_every, draw_every=options.draw_every,
            )  # fmt: skip
            seconds = time.monotonic() - began
        manager.wait_until_finished()
    _finish(folder, done, num_steps, seconds, (done - start) * system.images_per_step)
    if done < num_steps:
        raise Interrupted(
            f"saved at step {done} of {num_steps}; go on with --run-dir {folder} --resume"
        )


def restore(config: Any, build: Build) -> tuple[Any, int, Examples]:
    """The newest state of a finished or unfinished run on one device, its step, and examples.

    States of several models keep their leading axis; `model(state, options, i)` takes one.
    """
    options: RunOptions = config.run
    if options.run_dir is None:
        raise ValueError("say which run with --run-dir")
    source = _open(options, "train")
    examples = _examples(options, source)
    _, system = _plan(config, build, examples)
    mesh = parallel.data_mesh(1)
    folder = Path(options.run_dir) / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"{options.run_dir} has no checkpoints; train first")
    with contextlib.closing(checkpoint.open_manager(folder)) as manager:
        state, done = checkpoint.restore(manager, _template(system, options, mesh))
    return state, done, examples


def model(state: Any, options: RunOptions, i: int = 0) -> Any:
    """The state of model i, as it would be in a run of its own."""
    return state if options.num_models == 1 else jax.tree.map(lambda x: x[i], state)


def num_steps(options: RunOptions, examples: Examples, images_per_step: int) -> int:
    """Steps of the whole run: --steps, or as many as cover --epochs."""
    if options.epochs is None:
        return options.steps
    return max(1, round(options.epochs * examples.num_examples / images_per_step))


def num_classes(examples: Examples, conditional: bool) -> int:
    """How many classes the networks are conditioned on; 0 for none.

    Raises ValueError when that is asked for and the data has no labels.
    """
    if conditional and not examples.class_names:
        raise ValueError("--conditional needs labels, and this data has none")
    return len(examples.class_names) if conditional else 0


def optimizer_of(
    options: RunOptions, num_steps: int, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam with the schedule and the clipping that the options ask for."""
    rate = optimizer.schedule(
        options.learning_rate, num_steps, options.schedule, options.warmup_steps
    )
    return optimizer.adam(rate, b1, b2, options.clip_norm)


def load_split(options: RunOptions, split: str) -> data.Dataset:
    """The whole split, "train" or "test", in host memory."""
    return read_all(_open(options, split))


def sample_key(options: RunOptions) -> Key:
    """The key of pictures and samples: the same noise at every step of a run."""
    return _streams(options.seed)[3]


# --- the parts of `train`, in the order they are used -----------------------------------------


def _open(options: RunOptions, split: str) -> data.Source:
    return data.open_source(
        options.data, split, image_size=options.image_size, channels=options.channels,
        data_dir=options.data_dir,
    )  # fmt: skip


def _examples(options: RunOptions, source: data.Source, count: int = 64) -> Examples:
    """The training set's numbers and `count` test examples, spread over the split."""
    test = _open(options, "test")
    chosen = np.linspace(0, test.num_examples - 1, min(count, test.num_examples)).astype(int)
    chosen_images, chosen_labels = test.read(chosen.tolist())
    return Examples(
        source.num_examples,
        source.image_shape,
        source.class_names,
        chosen_images,
        chosen_labels,
    )


def _plan(config: Any, build: Build, examples: Examples) -> tuple[int, System]:
    """The number of steps and the system; every wrong option is found here, before any compile."""
    options: RunOptions = config.run
    for name in ("steps", "batch_size", "accumulate", "num_models", "log_every"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {getattr(options, name)}; use 1 or more")
    if options.epochs is not None and options.epochs <= 0:
        raise ValueError(f"--epochs is {options.epochs}; use a positive number")
    if options.batch_size % options.accumulate:
        raise ValueError(
            f"batch of {options.batch_size} cannot be dealt into {options.accumulate} "
            f"microbatches; use a multiple of {options.accumulate}"
        )
    per_step = options.batch_size * getattr(config, "discriminator_steps", 1)
    count = num_steps(options, examples, per_step)
    system = build(config, examples, count)
    jax.eval_shape(system.init, jax.random.key(0))
    return count, system


def _resident(options: RunOptions, source: data.Source) -> bool:
    """Whether the set is kept on the devices: if it takes at most a quarter of their memory."""
    if options.data_on != "auto":
        return options.data_on == "device"
    stats = jax.local_devices()[0].memory_stats() or {}
    return data.size_in_bytes(source) <= stats.get("bytes_limit", 8 * 2**30) / 4


def _scan_steps(options: RunOptions, system: System, resident: bool) -> int:
    if not resident:
        if (options.scan_steps or 1) > 1:
            raise ValueError(
                f"--scan-steps {options.scan_steps} needs the data on the device; this set streams "
                f"from the host: use --scan-steps 1, or --data-on device if it fits"
            )
        return 1
    if options.scan_steps is not None:
        if options.scan_steps < 1:
            raise ValueError(f"--scan-steps is {options.scan_steps}; use 1 or more")
        return options.scan_steps
    # XLA's CPU convolutions lose their threads inside loops: 7 to 30 times slower
    return 1 if system.convolutional and jax.default_backend() == "cpu" else 50


def _check_batch(system: System, mesh: Mesh, examples: Examples) -> None:
    size = system.images_per_step
    if size > examples.num_examples:
        raise ValueError(
            f"a step takes {size} images and the training set has {examples.num_examples}; "
            f"use a smaller --batch-size"
        )
    parallel.check_divisible(np.empty(size), parallel.EXAMPLES, mesh)


def _folder(name: str, options: RunOptions) -> Path:
    if options.run_dir is not None:
        return Path(options.run_dir)
    if options.resume:
        raise ValueError("--resume needs --run-dir, the run to go on with")
    stem = options.data if options.data.isidentifier() else Path(options.data).stem
    return run_folder.choose(f"{name}-{stem}")


def _streams(seed: int) -> tuple[Key, Key, Key, Key]:
    """The four streams of a run: parameters, training noise, order of the data, pictures."""
    init_key, train_key, data_key, sample_key = jax.random.split(jax.random.key(seed), 4)
    return init_key, train_key, data_key, sample_key


def _model_keys(options: RunOptions, stream: Literal["init", "train"]) -> Key:
    """The key of the run, or [S] keys of S models with seeds of their own."""
    place = ("init", "train").index(stream)
    keys = [_streams(options.seed + i)[place] for i in range(options.num_models)]
    return keys[0] if options.num_models == 1 else jnp.stack(keys)


def _template(system: System, options: RunOptions, mesh: Mesh) -> Any:
    init = system.init if options.num_models == 1 else jax.vmap(system.init)
    shapes = jax.eval_shape(init, _model_keys(options, "init"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
    )


def _start(system: System, options: RunOptions, mesh: Mesh, manager: Any) -> tuple[Any, int]:
    """The state to begin with and the number of steps it has behind it."""
    if options.resume:
        return checkpoint.restore(manager, _template(system, options, mesh))
    init = system.init if options.num_models == 1 else jax.vmap(system.init)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = parallel.put(_model_keys(options, "init"), mesh)
    return jax.jit(init, out_shardings=everywhere)(key), 0


def _lift(
    system: System,
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
        data_key = _streams(options.seed)[2]
        batches = order.resident_batches(dataset, system.images_per_step, data_key, mesh)
        run = parallel.parallelize(step.scan_steps(one), mesh, options.parallel, parallel.SCANNED)
        return run, batches

    reader = stream.shuffled_batches(
        source, batch_size=system.images_per_step, seed=options.seed, first_step=start,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    run = parallel.parallelize(step.chunk_of_one(one), mesh, options.parallel)
    return run, lambda first, count: parallel.put(next(reader), mesh, parallel.EXAMPLES)


@contextlib.contextmanager
def _callbacks(
    folder: Path,
    config: Any,
    system: System,
    examples: Examples,
    manager: Any,
    start: int,
    stop: int,
):
    """What the loop calls: metrics out, states to disk, pictures. Only process 0 writes files."""
    options: RunOptions = config.run
    if jax.process_count() > 1 and jax.process_index() > 0:
        yield loop.Callbacks(
            lambda done, row: None,
            partial(_save, manager, lambda: None),
            lambda done, state: None,
            multihost_utils.reached_preemption_sync_point,
        )
        return

    wanted = lambda done: done == 1 or done % options.log_every == 0  # noqa: E731
    metrics = folder / "metrics.jsonl"
    log.keep(metrics, lambda done: done <= start and wanted(done))
    with contextlib.ExitStack() as stack:
        write, flush = stack.enter_context(log.json_lines(metrics))
        records = [write]
        if options.tensorboard:
            records.append(stack.enter_context(log.tensorboard(folder / "tensorboard")))
        if options.wandb is not None:
            records.append(stack.enter_context(log.wandb(folder, options.wandb, asdict(config))))
        show = stack.enter_context(
            log.progress(folder.name, start, stop, system.images_per_step, system.shown)
        )
        received = stack.enter_context(_stop_requests())

        def record(done: int, row: dict[str, Any]) -> None:
            show(done, row)
            if wanted(done) or done == stop:
                for out in records:
                    out(done, row)

        def draw(done: int, state: Any) -> None:
            _draw(folder, system, options, examples, done, state)

        yield loop.Callbacks(record, partial(_save, manager, flush), draw, received)
        _close_pictures(folder)


def _save(manager: Any, flush: Callable[[], None], done: int, state: Any) -> None:
    flush()  # the rows of these steps first: a resumed run keeps them
    checkpoint.save(manager, done, state)


@contextlib.contextmanager
def _stop_requests():
    if jax.process_count() > 1:  # JAX itself notes SIGTERM and lets all processes agree on a step
        yield multihost_utils.reached_preemption_sync_point
        return
    with signals.stop_requests() as received:
        yield lambda done: received() != 0


def _draw(
    folder: Path, system: System, options: RunOptions, examples: Examples, done: int, state: Any
) -> None:
    local = jax.tree.map(lambda x: x.addressable_data(0), state)
    pictures = system.draw(model(local, options), examples, sample_key(options))
    for name, picture in pictures.items():
        images.save(folder / "pictures" / f"{name}-{done:07d}.png", picture)


def _close_pictures(folder: Path) -> None:
    """Curves, an animation, and the newest of each picture under a name without its step."""
    rows = log.read_rows(folder / "metrics.jsonl")
    images.save_curves(folder / "curves.png", rows, folder.name)
    series: dict[str, list[Path]] = {}
    for path in sorted((folder / "pictures").glob("*-*.png")):
        series.setdefault(path.stem.rsplit("-", 1)[0], []).append(path)
    for name, paths in series.items():
        images.save(folder / f"{name}.png", Image.open(paths[-1]))
    moving = series.get("samples") or series.get("reconstructions")
    if moving:
        frames = [
            images.labelled(Image.open(path), f"step {int(path.stem.rsplit('-', 1)[1])}")
            for path in moving
        ]
        images.save_gif(folder / "progress.gif", frames)


def _finish(folder: Path, done: int, stop: int, seconds: float, num_images: int) -> None:
    if jax.process_index() != 0:
        return
    summary = {
        "steps": done,
        "of": stop,
        "seconds": seconds,
        "images_per_second": num_images / seconds,
    }
    run_folder.write_json(folder / "summary.json", summary)
    print(f"{folder}: {done} steps, {num_images / seconds:,.0f} images/s including compilation")
