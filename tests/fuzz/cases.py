# SPDX-License-Identifier: MIT
"""One damaged folder after another under bounds of time and memory, and the verdict on each.

A reader's cases run in processes of their own. One that dies or hangs is a fault of the case it was
at, and another process goes on with the next.
"""

import contextlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from fuzz import mutations
from fuzz.readers import GIB, READERS, Reader

SECONDS = 20  # in which a reader that does nothing is called hanging
CPU_SECONDS = 8  # for one small folder
IDLE = 0.1  # seconds of CPU in SECONDS: a loaded machine gives more, waiting takes less
MOST_SECONDS = 120  # for a reader that waits for its threads, which an alarm cannot end
ADDRESSES = 6 * GIB  # of the whole process: threads and libraries reserve much and use little
MOST_LINES, MOST_CHARACTERS = 16, 5000  # of a message; several faults are listed one a line
MOST_FAULTS = 60  # after which a reader's cases end
_FORK = multiprocessing.get_context("fork")  # every process has the modules at once


class Verdict(NamedTuple):
    """What a reader made of one case."""

    case: int
    change: str
    outcome: str  # "accepted", "refused", or what was wrong
    detail: str = ""  # of a fault: where it came from

    @property
    def is_fault(self) -> bool:
        return self.outcome not in ("accepted", "refused")


class TooLong(BaseException):
    """The time is over; no `except Exception` holds it up."""


def run(name: str, cases: range, seed: int) -> list[Verdict]:
    """The verdicts on these cases of a reader."""
    reader, verdicts, at = READERS[name], [], cases.start
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        make_sound(name, folder)
        while at < cases.stop and sum(v.is_fault for v in verdicts) < MOST_FAULTS:
            verdicts += _stretch(reader, name, range(at, cases.stop), seed, folder)
            at = verdicts[-1].case + 1
    return verdicts


def make_sound(name: str, place: Path) -> None:
    """Makes the folder `sound`, which the reader accepts."""

    def make() -> None:
        (place / "sound").mkdir()
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            READERS[name].make(place / "sound")
            READERS[name].read(place / "sound")

    child = _FORK.Process(target=make)
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"the sound folder for {name} is not accepted")


def _stretch(reader: Reader, name: str, cases: range, seed: int, place: Path) -> list[Verdict]:
    """Verdicts up to the first one after which a new process is needed, or to the end."""
    here, there = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_work, args=(reader, name, cases, seed, place, there))
    child.start()
    there.close()
    verdicts = []
    while len(verdicts) < len(cases):
        case = cases[len(verdicts)]
        try:
            here.recv()  # the damage is done; it has all the time that it needs
            if not here.poll(MOST_SECONDS):
                child.kill()
                verdicts.append(Verdict(case, _describe(case, seed, name, place), "hangs"))
                break
            verdicts.append(here.recv())
        except EOFError:
            child.join()
            outcome = f"ends the process, code {child.exitcode}"
            verdicts.append(Verdict(case, _describe(case, seed, name, place), outcome))
            break
        if verdicts[-1].outcome.startswith("takes"):
            break  # the high-water mark of memory belongs to a process
    child.kill()
    child.join()
    return verdicts


def _work(
    reader: Reader, name: str, cases: range, seed: int, place: Path, results: Connection
) -> None:
    """Sends the verdict on each case."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    _read_sound(reader, place)  # imports what is imported late, so that it does not count
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for case in cases:
        change = damage(name, case, seed, place)
        results.send(None)  # a bomb of 1.5 GiB takes longer to make than to refuse
        results.send(_judge(reader, change, case, place))


def _read_sound(reader: Reader, place: Path) -> None:
    _remove(place / "case")
    shutil.copytree(place / "sound", place / "case")
    with contextlib.suppress(Exception):
        reader.read(place / "case")
    _remove(place / "case")


def _judge(reader: Reader, change: mutations.Change, case: int, place: Path) -> Verdict:
    folder, memory = place / "case", _peak_memory()
    began = time.process_time()
    detail = ""
    try:
        with _alarm():
            reader.read(folder)
        outcome = "accepted"
        if change.leads_outside and reader.inside_only:
            outcome = "reads a file outside of the folder"
    except TooLong:
        outcome, detail = "takes too long", traceback.format_exc(limit=-3)
    except Exception as error:
        outcome = _complaint(error, folder) or "refused"
        detail = "" if outcome == "refused" else traceback.format_exc(limit=-3)
    seconds, grown = time.process_time() - began, _peak_memory() - memory
    if outcome in ("accepted", "refused") and seconds > CPU_SECONDS:
        outcome = f"takes {seconds:.0f} s of CPU"
    if outcome in ("accepted", "refused") and grown > reader.memory:
        outcome = f"takes {grown / GIB:.1f} GiB"
    return Verdict(case, change.text, outcome, detail)


def damage(name: str, case: int, seed: int, place: Path) -> mutations.Change:
    """Makes the folder `case` out of the folder `sound`, the same for equal numbers."""
    for folder in (place / "case", place / "outside"):
        _remove(folder)
    shutil.copytree(place / "sound", place / "case")
    (place / "outside").mkdir()
    rng = random.Random(f"{seed}/{name}/{case}")
    return mutations.mutate(rng, place / "case", place / "outside")


def _describe(case: int, seed: int, name: str, place: Path) -> str:
    return damage(name, case, seed, place).text


def _complaint(error: Exception, folder: Path) -> str:
    """What is wrong with an error that a reader raised, or nothing."""
    message = str(error)
    kind = type(error).__name__
    if not isinstance(error, ValueError | FileNotFoundError):
        return f"raises {kind}: {ascii(message)[:200]}"
    lines = message.split("\n")
    if len(message) > MOST_CHARACTERS or len(lines) > MOST_LINES:
        return f"has a message of {len(message)} characters: {ascii(message)[:200]}"
    if not all(line.isprintable() for line in lines):
        return f"has a message with raw control characters: {ascii(message)[:300]}"
    if str(folder) not in message:
        return f"does not name the file ({kind}): {ascii(message)[:200]}"
    return ""


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Raises TooLong inside after SECONDS of idleness or CPU_SECONDS of work.

    Seconds on the wall alone would count what other processes of the machine take.
    """
    began = last = time.process_time()

    def ring(number, frame):
        nonlocal last
        now = time.process_time()
        if now - last < IDLE or now - began > CPU_SECONDS:
            raise TooLong
        last = now

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
