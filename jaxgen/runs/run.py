# SPDX-License-Identifier: MIT
"""The doorway of training: joins data, step, loop and files into one run folder.

A script gives a `build` function; everything else about training happens here, once.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen import files
from jaxgen.data import sets, stream
from jaxgen.data.source import read_all
from jaxgen.pictures import images
from jaxgen.runs import checkpoint, experiment, outputs, plan, progress, run_folder
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Build, Examples, OpenSplit, System
from jaxgen.script import Interrupted
from jaxgen.train import loop, order, parallel, step


def train(
    name: str,
    config: Any,
    build: Build,
    open_split: OpenSplit = plan.open_split,
) -> None:
    """Trains the system from its start, or from its newest checkpoint, to the last step.

    Raises Interrupted once it has stopped and saved because somebody asked for it.
    """
    with outputs.stop_requests() as stopping:
        _train(name, config, build, open_split, stopping)


class _Job(NamedTuple):
    """A run that is planned and checked; nothing of it is on disk yet."""

    config: Any
    source: sets.Source
    examples: Examples
    mesh: Mesh
    system: System
    num_steps: int
    chunk: int  # steps of a dispatch
    resident: bool  # whether the data lies on the devices
    feed: Callable[[int], loop.Batches]


def _checked(config: Any, build: Build, open_split: OpenSplit) -> _Job:
    """Finds everything that can be wrong with the input, before anything is made or replaced."""
    options: RunOptions = config.run
    plan.check_options(options)
    mesh = parallel.data_mesh(options.num_devices)
    source = open_split(options, "train")
    examples = plan.read_examples(options, source, open_split(options, "test"))
    system = plan.checked_system(config, build, examples)
    num_steps = experiment.num_steps(options, examples, system.images_per_step)
    resident = plan.fits_on_device(options, source)
    # kept with the run, as the two give the data in different orders: a continuation on a device
    # of another size must not choose anew
    options = replace(options, data_on="device" if resident else "host")
    chunk = plan.steps_per_dispatch(options, system, resident)
    plan.check_batch(options, system, mesh, examples)
    if options.overwrite:  # a third of a second, where something may be lost
        plan.check_step(options, system, source)
    outputs.check_extras(options)
    feed = _feed(system, options, mesh, source, resident)
    config = replace(config, run=options)
    return _Job(config, source, examples, mesh, system, num_steps, chunk, resident, feed)


def _train(
    name: str, config: Any, build: Build, open_split: OpenSplit, stopping: outputs.StopRequests
) -> None:
    job = _checked(config, build, open_split)
    options, num_steps = job.config.run, job.num_steps
    folder = _folder(name, options)
    with _resumable(folder), _alone_in(folder):
        _make_room(folder, options)
        _describe(folder, name, job)
        outputs.announce(folder, name, options, job.examples, job.mesh, job.chunk)
        with contextlib.closing(checkpoint.open_manager(folder / "checkpoints")) as manager:
            state, start = _start(job.system, options, job.mesh, manager)
            if start > num_steps:
                raise ValueError(f"{folder} has its {start} steps already; raise --steps to go on")
            speed = progress.throughput(start, num_steps, job.chunk, job.system.images_per_step)
            stretch = outputs.Stretch(
                folder, job.config, job.system, job.examples, start, num_steps, speed
            )
            last = outputs.last_row(folder, name, manager, start) if options.resume else 0
            if start == num_steps:
                outputs.complete(stretch, state)
                return
            if options.resume:
                outputs.keep_metrics(folder, last)
                _write_config(folder, name, job.config)
            key = parallel.put(experiment.train_keys(options), job.mesh)
            steps = _compiled(job)
            with outputs.callbacks(stretch, manager, stopping) as callbacks:
                state, done = loop.train(
                    steps, state, job.feed(start), key, callbacks,
                    start=start, stop=num_steps, chunk=job.chunk,
                    save_every=options.checkpoint_every, draw_every=options.draw_every,
                )  # fmt: skip
            outputs.finish(stretch, done, state)
            checkpoint.wait(manager)
    if done < num_steps:
        what = f"saved at step {done} of {num_steps}" if done else "stopped before the first step"
        raise Interrupted(f"{what}; go on with --run-dir {folder} --resume", stopping.signal())


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Adds to the error of a full disk how the run goes on once there is room."""
    try:
        with files.named_when_full(folder):
            yield
    except files.NoRoomError as error:
        is_run = run_folder.is_run(folder)
        how = f"go on with --run-dir {folder} --resume" if is_run else "start the run again"
        raise files.NoRoomError(f"{error} Make room, and {how}") from error


def _alone_in(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs out of the folder; process 0 does it for all processes of this run."""
    return run_folder.in_use(folder) if jax.process_index() == 0 else contextlib.nullcontext()


def _describe(folder: Path, name: str, job: _Job) -> None:
    """Writes what a new run is made of; a continuation must be made of the same."""
    resume = job.config.run.resume
    if not resume:
        if jax.process_index() == 0:
            job.system.keep(folder)
        _write_config(folder, name, job.config)  # from here on the folder is a run's
    if jax.process_index() == 0:
        run_folder.keep_data(folder, plan.fingerprint(job.source), resume)


def restore(
    config: Any, build: Build, open_split: OpenSplit = plan.open_split
) -> tuple[Any, int, Examples]:
    """Reads the newest state of a finished or unfinished run on one device, its step, and examples.

    States of several models keep their leading axis; `model(state, options, i)` takes one.
    """
    options: RunOptions = config.run
    plan.check_options(options)
    checkpoints = folder(options) / "checkpoints"
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"{options.run_dir} has no checkpoints; train first")
    source, test = (open_split(options, split) for split in ("train", "test"))
    examples = plan.read_examples(options, source, test)
    system = plan.checked_system(config, build, examples)
    template = _template(system, options, parallel.data_mesh(1))
    with contextlib.closing(checkpoint.open_manager(checkpoints, read_only=True)) as manager:
        state, done = checkpoint.restore(manager, template)
    return state, done, examples


def folder(options: RunOptions) -> Path:
    """Returns the folder of a run that exists already."""
    if options.run_dir is None:
        raise ValueError("say which run with --run-dir")
    return files.expanded(options.run_dir)


def samples_file(options: RunOptions, output: str | None) -> Path:
    """Names the picture of `--action sample`: --output, or one in the run's folder.

    Raises ValueError where --output is no PNG file, or cannot be written.
    """
    if output is None:
        return folder(options) / "samples-drawn.png"
    path = files.expanded(output)
    images.check_file(path, "--output")
    return path


def load_split(options: RunOptions, split: str) -> sets.Dataset:
    """Reads the whole split, "train" or "test", into host memory; prints what was read."""
    source = plan.open_split(options, split)
    print(f"data: {source.description}", flush=True)
    return read_all(source)


def _folder(name: str, options: RunOptions) -> Path:
    """Chooses the run's folder: a new one, or the one to go on in."""
    if options.run_dir is not None:
        folder = files.expanded(options.run_dir)
    elif jax.process_count() > 1:
        raise ValueError("several hosts need --run-dir, a folder that all of them see")
    else:
        stem = options.data if options.data.isidentifier() else Path(options.data).stem
        folder = run_folder.choose(f"{name}-{stem}")

    run_folder.check_name(folder)
    if not options.resume:
        run_folder.make(folder)
    return folder


def _make_room(folder: Path, options: RunOptions) -> None:
    """Empties the folder for a new run, if nothing is there that may not be replaced."""
    if options.resume:
        return
    run_folder.check_free(folder, options.overwrite)
    _all_here("checked")
    if jax.process_index() == 0:
        run_folder.clear(folder)


def _write_config(folder: Path, name: str, config: Any) -> None:
    if jax.process_index() == 0:
        run_folder.write_config(folder, name, asdict(config))
    _all_here("configured")


def _all_here(what: str) -> None:
    """Waits until every process has come this far; `what` names the place in errors."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _template(system: System, options: RunOptions, mesh: Mesh) -> Any:
    """Computes the state's shapes, a copy on every device, as `checkpoint.restore` takes them."""
    shapes = jax.eval_shape(experiment.init_of(system, options), experiment.init_keys(options))
    everywhere = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
    )


def _start(system: System, options: RunOptions, mesh: Mesh, manager: Any) -> tuple[Any, int]:
    """Restores or makes the state to begin with; returns it and the steps that it has behind it.

    A run that was killed before its first checkpoint begins again, with the same numbers.
    """
    if options.resume and manager.all_steps():
        state, start = checkpoint.restore(manager, _template(system, options, mesh))
        checkpoint.set_aside(manager, after=start)
        return state, start
    if options.resume:
        outputs.note_lost_checkpoints(Path(str(manager.directory)).parent)
    init, everywhere = experiment.init_of(system, options), NamedSharding(mesh, P())
    key = parallel.put(experiment.init_keys(options), mesh)
    return jax.jit(init, out_shardings=everywhere)(key), 0


def _compiled(job: _Job) -> Callable[..., Any]:
    """Prepares the step as the loop calls it."""
    options, system = job.config.run, job.system
    one = experiment.step_of(system, options)
    if job.resident:
        scanned = step.scan_steps(one, tuple(system.shared))
        return parallel.parallelize(scanned, job.mesh, options.parallel, parallel.SCANNED)
    specs = dict.fromkeys(job.source.names, parallel.EXAMPLES) | dict.fromkeys(system.shared, P())
    return parallel.parallelize(step.chunk_of_one(one), job.mesh, options.parallel, specs)


def _feed(
    system: System, options: RunOptions, mesh: Mesh, source: sets.Source, resident: bool
) -> Callable[[int], loop.Batches]:
    """Returns a function from the first step to the batches; reads data for the devices now."""
    shared = parallel.put(dict(system.shared), mesh)
    if resident:
        whole = read_all(source)
        arrays = dict(zip(source.names, (whole.images, whole.labels), strict=True))
        dataset = parallel.put(arrays, mesh)
        data_key = experiment.data_key(options)
        batches = order.resident_batches(dataset, system.images_per_step, data_key, mesh)

        def from_device(first: int, count: int) -> Any:
            examples, rows = batches(first, count)
            return examples | shared, rows

        return lambda start: from_device

    stream.import_grain()  # a missing package shows now, not at the first batch

    def from_host(start: int) -> loop.Batches:
        reader = stream.shuffled_batches(
            source, batch_size=system.images_per_step, seed=options.seed, first_step=start,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        return lambda first, count: parallel.put(next(reader), mesh, parallel.EXAMPLES) | shared

    return from_host
