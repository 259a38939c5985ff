# SPDX-License-Identifier: MIT
"""The files that a run writes: metrics, checkpoints, pictures, curves, a summary."""

import contextlib
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxgen import files, script
from jaxgen.pictures import images
from jaxgen.runs import checkpoint, drawn, experiment, log, progress, run_folder
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import loop


class StopRequests(NamedTuple):
    """Two functions that say whether a signal asked the run to stop."""

    after: Callable[[int], bool]  # whether to stop after this step
    signal: Callable[[], int]  # the number of the signal received, 0 for none


class Stretch(NamedTuple):
    """The part of a run that is trained now, from step `start` to `stop`."""

    folder: Path
    config: Any
    system: System
    examples: Examples
    start: int
    stop: int
    speed: progress.Speed


def announce(
    folder: Path,
    name: str,
    options: RunOptions,
    examples: Examples,
    mesh: Mesh,
    chunk: int,
) -> None:
    """Prints a line about the data that was read, and one about the devices and the folder."""
    devices = f"{mesh.size} {jax.devices()[0].platform} device{'s' * (mesh.size > 1)}"
    shape = "x".join(map(str, examples.image_shape))
    if jax.process_index() == 0:
        if examples.description:
            print(f"data: {examples.description}", flush=True)
        print(
            f"{name}: {examples.num_examples} images {shape} of {options.data}, {devices}, "
            f"{options.parallel}, {chunk} step{'s' * (chunk > 1)} per dispatch -> {folder}",
            flush=True,
        )


def check_extras(options: RunOptions) -> None:
    """Raises ImportError, naming the extra, if an optional log is asked for and cannot be had."""
    if options.tensorboard:
        log.import_tensorboard()
    if options.wandb is not None:
        log.import_wandb()


def keep_metrics(folder: Path, last: int) -> None:
    """Drops the rows after step `last`, which a continuation writes anew or does not have."""
    if jax.process_index() == 0:
        _keep_rows(folder, lambda done: done <= last, newest=last)


def last_row(folder: Path, name: str, manager: Any, start: int) -> int:
    """Finds the last row that a continuation from step `start` keeps.

    A finished run ends with a row that a longer run has not. Warns where the rows are not those
    that the checkpoint was saved with; `keep_metrics` warns of those that are missing at the end.
    """
    metrics = folder / "metrics.jsonl"
    rows = checkpoint.kept_rows(manager, start) if start else None  # by all processes together
    if rows is None:  # before the first checkpoint, or one of an earlier version
        every = run_folder.read_config(folder, name)["run"]["log_every"]
        return max(start - start % every, min(start, 1))
    if jax.process_index() == 0 and log.digest(metrics, rows.last) not in (None, rows.digest):
        warnings.warn(
            f"{metrics}: a row up to step {rows.last} was changed or lost after it was written; "
            "the state is not affected",
            stacklevel=2,
        )
    return rows.last


def _keep_rows(folder: Path, is_wanted: Callable[[int], bool], newest: int) -> None:
    """Drops the rows that are not wanted; warns where the last ones, up to `newest`, are lost."""
    metrics = folder / "metrics.jsonl"
    last = log.keep(metrics, is_wanted)
    if last < newest:
        warnings.warn(
            f"{metrics}: the rows after step {last}, up to step {newest}, are missing; they cannot "
            "be made anew",
            stacklevel=3,
        )


def note_lost_checkpoints(folder: Path) -> None:
    """Warns where a run that has metrics has no checkpoint: it begins again, with the same numbers.

    That is right for one that was killed before its first checkpoint.
    """
    metrics = folder / "metrics.jsonl"
    rows = log.read_rows(metrics) if metrics.is_file() else []
    if rows and jax.process_index() == 0:
        warnings.warn(
            f"{folder} has metrics up to step {rows[-1]['step']} and no checkpoint; it begins "
            "again at step 0, with the same numbers",
            stacklevel=2,
        )


def callbacks(
    stretch: Stretch, manager: Any, stopping: StopRequests
) -> AbstractContextManager[loop.Callbacks]:
    """Opens the logs, and yields what the loop calls after a step.

    Every process saves its part of the states; process 0 alone writes the rest.
    """
    if jax.process_index() == 0:
        return _all_callbacks(stretch, manager, stopping)
    save = partial(_save, manager, lambda: None)
    return contextlib.nullcontext(loop.Callbacks(_ignore, save, _ignore, stopping.after))


@contextlib.contextmanager
def _all_callbacks(
    stretch: Stretch, manager: Any, stopping: StopRequests
) -> Iterator[loop.Callbacks]:
    """Yields the callbacks of process 0: logs, checkpoints, pictures."""
    options: RunOptions = stretch.config.run
    folder, start, stop = stretch.folder, stretch.start, stretch.stop
    is_logged = partial(_logged, options.log_every)
    with (
        log.json_lines(folder / "metrics.jsonl", is_logged) as (write, flush),
        _tensorboard(stretch) as to_tensorboard,
        _wandb(stretch) as to_wandb,
        progress.display(
            folder.name, start, stop, stretch.speed, stretch.system.progress_metrics
        ) as show,
    ):

        def record(done: int, metrics: dict[str, Any]) -> None:
            show(done, metrics)
            if is_logged(done) or done == stop:
                for each in (write, to_tensorboard, to_wandb):
                    each(done, metrics)

        save = partial(_save, manager, flush)
        yield loop.Callbacks(record, save, partial(_draw, stretch), stopping.after)


def finish(stretch: Stretch, done: int, state: Any) -> None:
    """Leaves the summary, the curves and the newest pictures of a stretch that came to `done`."""
    if jax.process_index() == 0:
        _summarise(stretch, done)
        _close_pictures(stretch.folder)
        if done == stretch.stop:
            _remark(stretch, state)


def complete(stretch: Stretch, state: Any) -> None:
    """Finishes the outputs of a run that was killed after its last step: pictures, curves."""
    if jax.process_index() == 0:
        stop = stretch.stop
        _draw(stretch, stop, state)
        _keep_rows(stretch.folder, lambda done: done <= stop, newest=stop)
        if not _has_summary(stretch):
            _summarise(stretch, stop)
        _close_pictures(stretch.folder)
        _remark(stretch, state)
        print(f"{stretch.folder} has its {stop} steps and its outputs; raise --steps to go on")


def _has_summary(stretch: Stretch) -> bool:
    """Tells whether summary.json is there and says that the run has all its steps."""
    try:
        summary = files.read_object(stretch.folder / "summary.json")
    except ValueError:  # missing or damaged
        return False
    rate = summary.get("images_per_second")
    steps = {"steps": stretch.stop, "of": stretch.stop, "images_per_second": rate}
    return summary == steps and isinstance(rate, float | None)


def _ignore(done: int, what: Any) -> None:
    """Does nothing, in place of a log or a picture."""


def _logged(log_every: int, done: int) -> bool:
    return done == 1 or done % log_every == 0


def _tensorboard(stretch: Stretch) -> AbstractContextManager[log.Record]:
    if not stretch.config.run.tensorboard:
        return contextlib.nullcontext(_ignore)
    return log.tensorboard(stretch.folder / "tensorboard", stretch.start)


def _wandb(stretch: Stretch) -> AbstractContextManager[log.Record]:
    project = stretch.config.run.wandb
    if project is None:
        return contextlib.nullcontext(_ignore)
    return log.wandb(stretch.folder, project, asdict(stretch.config))


def _save(manager: Any, flush: Callable[[], log.Rows | None], done: int, state: Any) -> None:
    rows = flush()  # the rows of these steps first: a resumed run keeps them
    checkpoint.save(manager, done, state, rows)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Heeds SIGTERM and Ctrl-C from here on, and yields how to ask for them."""
    if jax.process_count() > 1:  # JAX itself hears SIGTERM, and lets all agree on one step
        agreed = multihost_utils.reached_preemption_sync_point
        yield StopRequests(agreed, lambda: int(signal.SIGTERM))
        return
    with script.stop_requests() as received:
        yield StopRequests(lambda done: received() != 0, received)


def _draw(stretch: Stretch, done: int, state: Any) -> None:
    options: RunOptions = stretch.config.run
    local = jax.tree.map(lambda x: x.addressable_data(0), state)
    one = experiment.model(local, options)
    pictures = stretch.system.draw(one, stretch.examples, experiment.sample_key(options))
    drawn.save(stretch.folder / "pictures", done, pictures)


def _remark(stretch: Stretch, state: Any) -> None:
    """Prints what the system has to say of each of its models, at the end of a run."""
    options: RunOptions = stretch.config.run
    local = jax.tree.map(lambda x: x.addressable_data(0), state)
    for i in range(options.num_models):
        one = experiment.model(local, options, i)
        text = stretch.system.remark(one, stretch.examples, experiment.sample_key(options))
        if text:
            print(f"model {i}: {text}" if options.num_models > 1 else text, flush=True)


def _close_pictures(folder: Path) -> None:
    """Draws the curves and an animation, and copies the newest pictures to names without a step."""
    metrics = folder / "metrics.jsonl"
    if metrics.exists():  # somebody may have taken it away
        images.save_curves(folder / "curves.png", log.read_rows(metrics), folder.name)
    series = drawn.read(folder / "pictures")
    for name, pictures in series.items():
        images.save(folder / f"{name}.png", list(pictures.values())[-1])
    moving = series.get("samples") or series.get("reconstructions")
    if moving:
        frames = [images.labelled(picture, f"step {step}") for step, picture in moving.items()]
        images.save_gif(folder / "progress.gif", frames)


def _summarise(stretch: Stretch, done: int) -> None:
    """Writes summary.json and prints one line: steps, and images/s without the first dispatch."""
    rate = stretch.speed(done)
    summary = {"steps": done, "of": stretch.stop, "images_per_second": rate}
    run_folder.write_json(stretch.folder / "summary.json", summary)
    pace = "" if rate is None else f", {rate:,.0f} images/s with pictures and checkpoints"
    print(f"{stretch.folder}: step {done} of {stretch.stop}{pace}")
