# SPDX-License-Identifier: MIT
"""How much memory something took at most: the device's where it says so, else the process's."""

import contextlib
from pathlib import Path
from typing import NamedTuple

import jax

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Mark(NamedTuple):
    """Memory at one moment, in bytes."""

    in_use: int
    peak: int  # so far; of a process, since the last mark where the system can start anew (Linux)
    owner: str  # whose memory it is: "device" or "process"


def mark() -> Mark:
    """The present state, to measure from."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")  # the process's peak starts anew
    return _now()


def growth(since: Mark) -> int | None:
    """Bytes by which the peak since then lies above what was in use then.

    None where it cannot be told: a device's peak cannot be started anew, and was higher before.
    """
    now = _now()
    if now.owner == "device" and now.peak == since.peak:
        return None
    return max(now.peak - since.in_use, 0)


def _now() -> Mark:
    stats = _device_stats()
    if stats is not None:
        return Mark(stats["bytes_in_use"], stats["peak_bytes_in_use"], "device")
    return Mark(_line("VmRSS"), _line("VmHWM"), "process")


def _device_stats() -> dict[str, int] | None:
    stats = jax.local_devices()[0].memory_stats()
    return stats if stats and "peak_bytes_in_use" in stats else None


def _line(name: str) -> int:
    """One of the sizes in /proc/self/status; 0 where there is no such file."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")]
    return found[0] if found else 0
