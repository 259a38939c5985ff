# SPDX-License-Identifier: MIT
"""What a run leaves behind: metrics, checkpoints, pictures, curves, a summary."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxgen import script
from jaxgen.pictures import images
from jaxgen.runs import checkpoint, experiment, log, run_folder
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import loop


class StopRequests(NamedTuple):
    """Whether somebody asked the run to stop."""

    after: Callable[[int], bool]  # whether to stop after this step
    signal: Callable[[], int]  # the number of the signal received, 0 for none


class Run(NamedTuple):
    """The run whose outputs these are: from step `start` to `stop`, `chunk` at a time."""

    folder: Path
    config: Any
    system: System
    examples: Examples
    start: int
    stop: int
    chunk: int


def announce(
    folder: Path,
    name: str,
    options: RunOptions,
    examples: Examples,
    mesh: Mesh,
    chunk: int,
) -> None:
    """Prints what is about to happen, in one line."""
    devices = f"{mesh.size} {jax.devices()[0].platform} device{'s' * (mesh.size > 1)}"
    shape = "x".join(map(str, examples.image_shape))
    if jax.process_index() == 0:
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


def keep_metrics(folder: Path, name: str, start: int) -> None:
    """Drops the rows that a continuation from step `start` writes anew.

    A finished run has a last row that its continuation would not have had there.
    """
    if jax.process_index() == 0:
        every = run_folder.read_config(folder, name)["run"]["log_every"]
        log.keep(
            folder / "metrics.jsonl",
            lambda done: done < start or (done == start and _logged(every, done)),
        )


@contextlib.contextmanager
def opened(run: Run, manager: Any, stopping: StopRequests) -> Iterator[loop.Callbacks]:
    """What the loop calls; pictures are rounded up at the end.

    Every process saves its part of the states; process 0 alone writes the rest.
    """
    if jax.process_index() > 0:
        nothing = lambda done, what: None  # noqa: E731
        save = partial(_save, manager, lambda: None)
        yield loop.Callbacks(nothing, save, nothing, stopping.after)
        return

    options: RunOptions = run.config.run
    speed = log.throughput(run.start, run.stop, run.chunk, run.system.images_per_step)
    last = run.start
    with contextlib.ExitStack() as stack:
        write, flush = stack.enter_context(log.json_lines(run.folder / "metrics.jsonl"))
        optional = _optional_logs(run.folder, run.config)
        writers = [write, *(stack.enter_context(each) for each in optional)]
        show = stack.enter_context(
            log.progress(run.folder.name, run.start, run.stop, speed, run.system.shown)
        )

        def record(done: int, row: dict[str, Any]) -> None:
            nonlocal last
            last = done
            show(done, row)
            if _logged(options.log_every, done) or done == run.stop:
                for write in writers:
                    write(done, row)

        save = partial(_save, manager, flush)
        yield loop.Callbacks(record, save, partial(_draw, run), stopping.after)
    _summarise(run, last, speed(last))
    _close_pictures(run.folder)


def _logged(log_every: int, done: int) -> bool:
    return done == 1 or done % log_every == 0


def _optional_logs(folder: Path, config: Any) -> list[AbstractContextManager[log.Record]]:
    options: RunOptions = config.run
    logs: list[AbstractContextManager[log.Record]] = []
    if options.tensorboard:
        logs.append(log.tensorboard(folder / "tensorboard"))
    if options.wandb is not None:
        logs.append(log.wandb(folder, options.wandb, asdict(config)))
    return logs


def _save(manager: Any, flush: Callable[[], None], done: int, state: Any) -> None:
    flush()  # the rows of these steps first: a resumed run keeps them
    checkpoint.save(manager, done, state)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Notes SIGTERM and Ctrl-C from here on."""
    if jax.process_count() > 1:  # JAX itself notes SIGTERM, and lets all agree on one step
        agreed = multihost_utils.reached_preemption_sync_point
        yield StopRequests(agreed, lambda: int(signal.SIGTERM))
        return
    with script.stop_requests() as received:
        yield StopRequests(lambda done: received() != 0, received)


def _draw(run: Run, done: int, state: Any) -> None:
    options: RunOptions = run.config.run
    local = jax.tree.map(lambda x: x.addressable_data(0), state)
    one = experiment.model(local, options)
    pictures = run.system.draw(one, run.examples, experiment.sample_key(options))
    for name, picture in pictures.items():
        images.save(run.folder / "pictures" / f"{name}-{done:07d}.png", picture)


def _close_pictures(folder: Path) -> None:
    """Curves, an animation, and the newest of each picture under a name without its step."""
    rows = log.read_rows(folder / "metrics.jsonl")
    images.save_curves(folder / "curves.png", rows, folder.name)
    series: dict[str, list[Path]] = {}
    for path in sorted((folder / "pictures").glob("*-*.png")):
        series.setdefault(path.stem.rsplit("-", 1)[0], []).append(path)
    for name, paths in series.items():
        images.save(folder / f"{name}.png", images.read(paths[-1]))
    moving = series.get("samples") or series.get("reconstructions")
    if moving:
        frames = [
            images.labelled(images.read(path), f"step {int(path.stem.rsplit('-', 1)[1])}")
            for path in moving
        ]
        images.save_gif(folder / "progress.gif", frames)


def _summarise(run: Run, done: int, rate: float | None) -> None:
    """summary.json and one line: steps, and images/s without the first dispatch (compilation)."""
    summary = {"steps": done, "of": run.stop, "images_per_second": rate}
    run_folder.write_json(run.folder / "summary.json", summary)
    pace = "" if rate is None else f", {rate:,.0f} images/s with pictures and checkpoints"
    print(f"{run.folder}: step {done} of {run.stop}{pace}")
