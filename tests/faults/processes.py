# SPDX-License-Identifier: MIT
"""Scripts as processes that may die at a call, or write to a disk that is full.

They are forked from a server that has imported what every script imports and has no device yet: a
case costs the second that it needs itself, and not the seconds of the imports.
"""

import atexit
import importlib
import multiprocessing
import os
import resource
import runpy
import select
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
IMPORTS = ["jaxgen.runs.run", "jaxgen.runs.command_line", "jaxgen.pictures.images", "jaxgen.script"]
SECONDS = 300  # a process that takes longer hangs


class Ended(NamedTuple):
    """How a process ended and what it said."""

    returncode: int  # negative: the signal that ended it
    stderr: str


def server():
    """The context whose processes start with the imports done."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(EXPERIMENTS.parent)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    return context


def execute(context, name, *flags, die_at=None, most_bytes=None, jump_at=None):
    """Runs a script to its end.

    die_at: (dotted name of a function, n), the process kills itself at the function's n-th call.
    jump_at: (dotted name of a function, n, seconds), the clock jumps there; the process lives on.
    most_bytes: no file may grow beyond it.
    """
    words = [str(EXPERIMENTS / f"{name}.py"), *map(str, flags)]
    # a pipe, because a file of errors would be full with the disk
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(words, writer, die_at, most_bytes, jump_at))
    process.start()
    writer.close()
    with reader:
        stderr = _drained(reader.fileno())
    if stderr is None:
        process.kill()
    process.join()
    return Ended(process.exitcode, f"hung for {SECONDS} s" if stderr is None else stderr)


def _drained(descriptor):
    """All that comes out of a pipe until it is closed; None if that takes too long."""
    chunks, end = [], time.monotonic() + SECONDS
    while select.select([descriptor], [], [], max(end - time.monotonic(), 0))[0]:
        chunk = os.read(descriptor, 2**16)
        if not chunk:
            return b"".join(chunks).decode(errors="replace")
        chunks.append(chunk)
    return None


def _run(words, writer, die_at, most_bytes, jump_at):
    """The body of a process: streams, limits and what is to befall it, then the script."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(writer.fileno(), 2)
    if most_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    if die_at is not None:
        _arrange(*die_at, _die)
    if jump_at is not None:
        _arrange(*jump_at[:2], lambda: _jump(jump_at[2]))
    sys.argv = words
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _arrange(where, count, befall):
    """Has something befall this process at the n-th call of a function."""
    module_name, _, name = where.rpartition(".")
    module = importlib.import_module(module_name)
    original, calls = getattr(module, name), []

    def watched(*words, **options):
        calls.append(1)
        if len(calls) == count:
            befall()
        return original(*words, **options)

    setattr(module, name, watched)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _jump(seconds):
    """Moves the clock of this process, as a clock that is set while it runs."""
    right = time.time
    time.time = lambda: right() + seconds
    time.time_ns = lambda: int(time.time() * 1e9)
