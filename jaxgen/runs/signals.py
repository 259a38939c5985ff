# SPDX-License-Identifier: MIT
"""Being asked to stop: SIGTERM and Ctrl-C end a run after the current step, twice at once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Yields a function that gives the number of the signal received so far, 0 for none.

    The first SIGTERM or SIGINT only notes itself; the second exits the process at once with
    128 + its number, as a shell reports it. The previous handlers come back at the end.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        name = signal.Signals(number).name
        os.write(
            sys.stderr.fileno(),
            f"\n{name}: stopping after the step under way; again to quit at once\n".encode(),
        )

    previous = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
