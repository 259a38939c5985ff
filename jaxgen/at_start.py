# SPDX-License-Identifier: MIT
"""Signals while a script still imports: one line and the signal's exit code, at once; later, which
signals ask a run to stop. And what shells leave of the command line to the program.

Importing jax takes seconds, and a KeyboardInterrupt inside of it is a long traceback, or is lost in
a callback that ignores it. So scripts call this before their other imports; it needs no jax.
"""

import contextlib
import os
import signal
import stat
import sys
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_previous: dict[int, Any] = {}


def catch_signals() -> None:
    """Ends the process at a SIGINT or SIGTERM until `release_signals`; nothing is open yet.

    Signals that are ignored, as those of a background job, stay ignored.
    """
    _open_streams()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _previous[number] = signal.signal(number, _leave)


def release_signals() -> None:
    """Gives signals the meaning that they had before `catch_signals`."""
    while _previous:
        signal.signal(*_previous.popitem())


def expand_home() -> None:
    """Replaces "~" in options such as --output=~/pictures, where shells leave it as it is."""
    pairs = [word.partition("=~") for word in sys.argv[1:]]
    sys.argv[1:] = [
        f"{name}={os.path.expanduser('~' + rest)}" if mark and name.startswith("--") else word
        for word, (name, mark, rest) in zip(sys.argv[1:], pairs, strict=True)
    ]


def stop_signals() -> list[int]:
    """The signals that ask a run to stop; that of a terminal that closes stays ignored by nohup."""
    hangup = getattr(signal, "SIGHUP", None)  # which Windows does not have
    is_heard = hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN
    return [*SIGNALS, hangup] if is_heard else [*SIGNALS]


def say(number: int, line: str) -> None:
    """Writes a line about a signal; at SIGHUP the terminal is gone, and output goes nowhere."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    if signal.Signals(number).name == "SIGHUP":
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            # a terminal, also one that is gone; files and pipes still have a reader
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)


def _open_streams() -> None:
    """Opens the standard streams that were closed, as by `2>&-`, to nowhere.

    Otherwise the next file that is opened gets the number, and what a library prints is written
    into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the smallest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted while starting; nothing was changed\n")
    os._exit(128 + number)
