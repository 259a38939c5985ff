# SPDX-License-Identifier: MIT
"""The beginning and end of every script: hosts, caches, CPU settings, signals, one-line errors."""

import inspect
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import jax

from jaxgen import at_start, files
from jaxgen.cpu import tune
from jaxgen.train import hosts, loop
from jaxgen.types import Array

# JAX's warning; it compiles the program then
UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '(?P<program>\w+)")


class Interrupted(Exception):
    """A signal has asked the run to stop, and it has saved."""

    def __init__(self, message: str, signal: int) -> None:
        self.exit_code = 128 + signal  # as a shell reports it
        super().__init__(message)


def main(start: Callable[[], None]) -> None:
    """Runs a script's body; an error of use becomes one line, an interruption its exit code."""
    _print_any_text()
    at_start.release_signals()
    at_start.expand_home()
    try:
        with warnings.catch_warnings(), _no_interrupt_lost(), _one_report():
            warnings.showwarning = _show_note
            start()
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _report_broken_pipe()
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if os.environ.get("JAXGEN_TRACEBACK"):
            raise
        _report(error)
        sys.exit(2)


@contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Raises a KeyboardInterrupt again where Python dropped it.

    It drops those that come up inside of a callback, such as JAX's at every garbage collection.
    """

    main_thread = threading.main_thread().ident or 0

    def again() -> None:  # a signal of the system, as it also ends a sleep or a read
        signal.pthread_kill(main_thread, signal.SIGINT)

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(0.02, again).start()  # once the callback is over
        else:
            previous(unraisable)

    previous, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


def _print_any_text() -> None:
    """Lets standard output escape what its encoding cannot say, as standard error does.

    A name of a file is no reason for a run to stop.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _report_broken_pipe() -> None:
    """Prints one line, if anybody reads it, and lets Python's last flush of its streams succeed."""
    line = (
        "error: broken pipe: whoever read the output, or a connection, is gone; a run goes on with "
        "--resume"
    )
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stderr, sys.stdout)):
        try:
            if stream is sys.stderr:
                print(line, file=stream)
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())


@contextmanager
def _one_report() -> Iterator[None]:
    """Says nothing of reads and writes that end after the one whose error is reported.

    A full disk or a damaged checkpoint fails many at once: the first error is raised, the callbacks
    of the others find the event loop of orbax closed, and its coroutines are thrown away.
    """

    def hook(unraisable: Any) -> None:
        is_late = str(unraisable.exc_value) == "Event loop is closed"
        is_late |= inspect.iscoroutine(unraisable.object)
        if os.environ.get("JAXGEN_TRACEBACK") or not is_late:
            previous(unraisable)

    previous, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = previous


def _report(error: Exception) -> None:
    """Prints an error in one line; one that nobody foresaw says what it is and how to see more."""
    if isinstance(error, (ValueError, OSError, ImportError, loop.NonFiniteError)):
        lines = str(error).split("\n")  # which may quote names that command a terminal
        shown = "\n".join(files.printable(line, files.MESSAGE_CHARACTERS) for line in lines)
        print(f"error: {shown}", file=sys.stderr)
        return
    kind = type(error).__name__
    text = files.printable(files.first_line(error))
    print(
        f"error: {kind}: {text} (JAXGEN_TRACEBACK=1 shows where)",
        file=sys.stderr,
    )


def _show_note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a warning as one line, without the place in the source that Python shows."""
    shown = files.printable(message, files.MESSAGE_CHARACTERS)
    if damaged := UNREADABLE.match(str(message)):
        _forget(damaged["program"])
    print(f"note: {shown}", file=sys.stderr, flush=True)


def _forget(program: str) -> None:
    """Deletes the kept machine code of a program: JAX does not replace a file that it cannot read.

    In a folder that the user has named other software may keep its own; that is left alone.
    """
    folder = cache_folder()
    if folder is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        for path in (folder / "xla").glob(f"{program}-*"):
            with suppress(OSError):
                path.unlink()


def set_up(distributed: bool = False) -> None:
    """Sets up what must come before the first array: hosts, compilation cache, CPU settings."""
    if not os.environ.get("JAXGEN_TRACEBACK"):
        # the library's own tracebacks of a full disk hide the one line that says so
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    compilation_cache()
    if distributed:
        hosts.join()
    try:
        tune.tune_cpu()  # asks JAX for its devices
    except (AssertionError, RuntimeError) as error:
        if not (platforms := os.environ.get("JAX_PLATFORMS")):
            raise
        raise ValueError(
            f"JAX has no device of JAX_PLATFORMS={platforms}; unset it, or install what it needs"
        ) from error


def compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start is warm.

    They lie in XDG_CACHE_HOME/jaxgen/xla, small ones too, so that a second start compiles nothing;
    JAX's own variables JAX_COMPILATION_CACHE_DIR and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS
    take precedence.
    """
    folder = cache_folder()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def cache_folder() -> Path | None:
    """Returns XDG_CACHE_HOME/jaxgen, for what can be made anew; None where no home is known."""
    # "~" where neither HOME nor a password entry says where that is: then nothing is kept
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if home.startswith("~") else Path(home) / "jaxgen"


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Yields a function that gives the number of the signal received so far, 0 for none.

    The first SIGTERM, SIGINT or SIGHUP only notes itself; the second exits the process at once with
    128 + its number, as a shell reports it. The previous handlers come back at the end.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        name = signal.Signals(number).name
        text = f"\n{name}: stopping after the step under way; again to quit at once\n"
        at_start.say(number, text)

    previous = {n: signal.signal(n, note) for n in at_start.stop_signals()}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Seconds:
    """Holds the seconds that something took, inside the compiler and otherwise."""

    compiling = 0.0
    seconds = 0.0


@contextmanager
def stopwatch() -> Iterator[Seconds]:
    """Counts seconds, and apart from them those that JAX reports for compiling."""
    time_spent = Seconds()
    spans: list[tuple[float, float]] = []  # one program may be compiled while another one is

    def count(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            spans.append((end - duration_secs, end))

    jax.monitoring.register_event_duration_secs_listener(count)
    start = time.perf_counter()
    yield time_spent
    seconds, covered = time.perf_counter() - start, start
    for begin, end in sorted(spans):
        time_spent.compiling += max(0.0, end - max(begin, covered))
        covered = max(covered, end)
    time_spent.seconds = seconds - time_spent.compiling


@contextmanager
def steps_bar(signal: Callable[[], int]) -> Iterator[Callable[[int, int, Array, Array], None]]:
    """Yields an `on_step` for `StableDiffusion` that shows steps and steps per second.

    They are a bar on a terminal, elsewhere lines every 10 s. Time counts from the end of the first
    step, which carries the compilation. The process exits after a step if there was a signal.
    """
    from rich import progress  # only here, and it takes long to import
    from rich.console import Console

    columns = (
        progress.TextColumn("steps"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
    )
    ends: list[float] = []  # of the steps
    last_line = 0.0
    terminal = sys.stderr.isatty()
    with progress.Progress(*columns, console=Console(stderr=True), disable=not terminal) as display:
        task = display.add_task("", rate="")

        def on_step(done: int, total: int, latents: Array, estimate: Array) -> None:
            nonlocal last_line
            jax.block_until_ready(estimate)
            ends.append(time.monotonic())
            rate = ""
            if len(ends) > 1:
                rate = f"{(len(ends) - 1) / (ends[-1] - ends[0]):.2f} it/s"
            display.update(task, completed=done, total=total, rate=rate)
            if not terminal and (done == total or ends[-1] - last_line > 10):
                last_line = ends[-1]
                print(f"step {done} of {total} {rate}".rstrip(), file=sys.stderr, flush=True)
            if signal():
                print(f"stopped at step {done} of {total}", file=sys.stderr)
                sys.exit(128 + signal())  # as a shell reports it

        yield on_step
