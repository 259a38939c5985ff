# SPDX-License-Identifier: MIT
"""What a run leaves behind: metrics, checkpoints, pictures, curves, a summary."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxgen import plan
from jaxgen.cli import RunOptions
from jaxgen.io import checkpoint, images, log, run_folder, signals
from jaxgen.train import loop


class Outputs(NamedTuple):
    """What the loop calls, and the number of the signal that stopped it, 0 for none."""

    callbacks: loop.Callbacks
    signal: Callable[[], int]


def announce(
    folder: Path,
    name: str,
    options: RunOptions,
    examples: plan.Examples,
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


@contextlib.contextmanager
def opened(
    folder: Path,
    config: Any,
    system: plan.System,
    examples: plan.Examples,
    manager: Any,
    start: int,
    stop: int,
) -> Iterator[Outputs]:
    """The outputs of a run from step `start` to `stop`; pictures are rounded up at the end.

    Every process saves its part of the states; process 0 alone writes the rest.
    """
    if jax.process_index() > 0:
        nothing = lambda done, what: None  # noqa: E731
        save = partial(_save, manager, lambda: None)
        with _stop_requests() as (interrupted, signal_number):
            yield Outputs(loop.Callbacks(nothing, save, nothing, interrupted), signal_number)
        return

    options: RunOptions = config.run
    metrics = folder / "metrics.jsonl"
    log.keep(metrics, lambda done: done <= start and _logged(options, done))
    with contextlib.ExitStack() as stack:
        write, flush = stack.enter_context(log.json_lines(metrics))
        writers = [write, *(stack.enter_context(each) for each in _optional_logs(folder, config))]
        show = stack.enter_context(
            log.progress(folder.name, start, stop, system.images_per_step, system.shown)
        )
        interrupted, signal_number = stack.enter_context(_stop_requests())
        times: list[tuple[int, float]] = []  # first and latest step seen, and when

        def record(done: int, row: dict[str, Any]) -> None:
            times[1:] = [(done, time.monotonic())]
            show(done, row)
            if _logged(options, done) or done == stop:
                for write in writers:
                    write(done, row)

        def draw(done: int, state: Any) -> None:
            _draw(folder, system, options, examples, done, state)

        save = partial(_save, manager, flush)
        yield Outputs(loop.Callbacks(record, save, draw, interrupted), signal_number)
    _summarise(folder, times, stop, system.images_per_step)
    _close_pictures(folder)


def _logged(options: RunOptions, done: int) -> bool:
    return done == 1 or done % options.log_every == 0


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
def _stop_requests() -> Iterator[tuple[Callable[[int], bool], Callable[[], int]]]:
    """(whether to stop after this step, the signal's number)."""
    if jax.process_count() > 1:  # JAX itself notes SIGTERM, and lets all agree on one step
        agreed = multihost_utils.reached_preemption_sync_point
        yield agreed, lambda: int(signal.SIGTERM)
        return
    with signals.stop_requests() as received:
        yield (lambda done: received() != 0), received


def _draw(
    folder: Path,
    system: plan.System,
    options: RunOptions,
    examples: plan.Examples,
    done: int,
    state: Any,
) -> None:
    local = jax.tree.map(lambda x: x.addressable_data(0), state)
    pictures = system.draw(plan.model(local, options), examples, plan.sample_key(options))
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
        images.save(folder / f"{name}.png", images.read(paths[-1]))
    moving = series.get("samples") or series.get("reconstructions")
    if moving:
        frames = [
            images.labelled(images.read(path), f"step {int(path.stem.rsplit('-', 1)[1])}")
            for path in moving
        ]
        images.save_gif(folder / "progress.gif", frames)


def _summarise(folder: Path, times: list[tuple[int, float]], stop: int, batch: int) -> None:
    """summary.json and one line: steps and images/s, without the compilation."""
    if len(times) < 2:
        return
    (first, began), (done, ended) = times
    rate = (done - first) * batch / max(ended - began, 1e-9)
    summary = {"steps": done, "of": stop, "seconds": ended - began, "images_per_second": rate}
    run_folder.write_json(folder / "summary.json", summary)
    print(f"{folder}: step {done} of {stop}, {rate:,.0f} images/s with pictures and checkpoints")
