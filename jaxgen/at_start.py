# SPDX-License-Identifier: MIT
"""Signals while a script still imports: one line and the signal's exit code, at once.

Importing jax takes seconds, and a KeyboardInterrupt inside of it is a long traceback, or is lost in
a callback that ignores it. So scripts call this before their other imports; it needs no jax.
"""

import os
import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_previous: dict[int, Any] = {}


def catch_signals() -> None:
    """Ends the process at a SIGINT or SIGTERM until `release_signals`; nothing is open yet.

    Signals that are ignored, as those of a background job, stay ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _previous[number] = signal.signal(number, _leave)


def release_signals() -> None:
    """Gives signals the meaning that they had before `catch_signals`."""
    while _previous:
        signal.signal(*_previous.popitem())


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted while starting; nothing was changed\n")
    os._exit(128 + number)
