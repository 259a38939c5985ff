# SPDX-License-Identifier: MIT
"""One folder per run: config.json, metrics.jsonl, checkpoints/, pictures/, curves.png."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxgen import files

LOCK = "in-use"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def choose(name: str) -> Path:
    """Finds the first of runs/NAME, runs/NAME-2, runs/NAME-3, ... that does not exist."""
    return free(Path("runs") / name)


def free(path: Path) -> Path:
    """Finds the first of PATH, PATH-2, PATH-3, ... that does not exist."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())


def check_name(path: Path) -> None:
    """Raises ValueError for a name that is not UTF-8: the library of the checkpoints takes none."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        name = files.printable(path)
        raise ValueError(f"{name} is not a name in UTF-8; use another --run-dir") from None


def make(path: Path) -> None:
    """Makes the folder of a run. Raises OSError that names it and says why there can be none."""
    if os.path.exists(path) and not path.is_dir():
        raise FileExistsError(f"{path} is not a folder; use another --run-dir")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a broken link" if os.path.islink(path) else error.strerror
        shown = files.printable(path)
        raise OSError(f"{shown} cannot be made: {reason}; use another --run-dir") from None


def check_free(path: Path, overwrite: bool) -> None:
    """Raises FileExistsError if something is at `path` that may not be replaced."""
    if not path.exists() or (path.is_dir() and _is_untouched(path)):
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is not a folder; use another --run-dir")
    if not overwrite:
        raise FileExistsError(
            f"{path} already holds a run; pass --resume to continue it, --overwrite to replace it, "
            f"or another --run-dir"
        )
    if not is_run(path):
        raise FileExistsError(
            f"{path} is not a run folder (it has no config.json of a run), so --overwrite will not "
            f"delete it; use another --run-dir"
        )


@contextlib.contextmanager
def in_use(path: Path, flag: str = "--run-dir") -> Iterator[None]:
    """Keeps other processes from writing into the folder while it is open.

    A file lock, which the system lets go of when the process ends, however it ends. Raises
    BlockingIOError, saying who has it, if another process is at work there; flag: that of the
    command line which names the folder.
    """
    lock = path / LOCK
    with lock.open("ab+", buffering=0) as file:  # no text left to write when the disk is full
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = files.printable(_owner(file.read(200)))
            raise BlockingIOError(
                f"{path} is in use by {owner}; wait for it or use another {flag}. If that "
                f"process is gone, delete {lock}"
            ) from None
        except OSError:
            pass  # a file system without locks
        if not (lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())):
            raise BlockingIOError(f"{path} was left by another process just now; try again")
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with files.named_when_full(lock):
            file.write(f"process {os.getpid()} on {platform.node()} since {since}\n".encode())
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _owner(content: bytes) -> str:
    """Says who holds a lock, by what is written in it."""
    return content.decode(errors="replace").strip() or "another process"


def _is_untouched(path: Path) -> bool:
    """Says whether the folder holds only what a run killed before its configuration leaves."""
    return {each.name for each in path.iterdir()} <= {LOCK, "tokenizer"}


def is_run(path: Path) -> bool:
    """Says whether the folder has a config.json that `write_config` wrote."""
    try:
        content = files.read_object(path / "config.json")
    except (OSError, ValueError):
        return False
    return {"system", "config", "versions"} <= content.keys()


def clear(path: Path) -> None:
    """Empties the folder but for the lock of this run; `check_free` has allowed that.

    config.json goes last: a process killed before that leaves a folder still known as a run's.
    """
    for each in sorted(path.iterdir(), key=lambda each: each.name == "config.json"):
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        elif each.name != LOCK:
            each.unlink()


def write_config(path: Path, system: str, config: dict[str, Any]) -> None:
    """Writes config.json: the resolved configuration, and the versions and devices it ran with.

    Every continuation adds its command line to `commands`.
    """
    earlier = files.read_object(path / "config.json").get("commands") if is_run(path) else []
    content = {
        "system": system,
        "config": config,
        "digest": _digest(system, config),
        "versions": {"jaxgen": metadata.version("jaxgen"), "python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "commands": [*(earlier if isinstance(earlier, list) else []), sys.argv],
    }
    write_json(path / "config.json", content)


def read_config(path: Path, system: str) -> dict[str, Any]:
    """Reads the configuration of a run of this system, as `write_config` wrote it."""
    file, shown = path / "config.json", files.printable(path)
    if not file.exists():
        raise FileNotFoundError(f"{shown} is no run folder: it has no config.json; check --run-dir")
    with files.one_error(file):
        content = files.read_object(file)
        name, config = str(content["system"])[:80], dict(content["config"])
        same = content.get("digest", _digest(name, config)) == _digest(name, config)
    if not same:
        raise ValueError(
            f"{shown}/config.json is not what the run wrote: its digest differs. Restore it; or, "
            f'if you changed it on purpose, delete its line "digest"'
        )
    if name != system:
        name = files.printable(name)
        raise ValueError(
            f"{shown} is a run of {name}, not of {system}; use experiments/{name}.py, or the "
            "folder of another run"
        )
    return config


def keep_data(path: Path, facts: dict[str, Any], resume: bool) -> None:
    """Writes data.json, what tells the run's data from others; a continuation compares it.

    Raises ValueError naming what differs from the data that the run began with.
    """
    file = path / "data.json"
    if resume and not file.is_file() and any((path / "checkpoints").glob("*")):
        warnings.warn(
            f"{file} is missing, so nothing tells whether the data are those that the run began "
            "with; it is written anew",
            stacklevel=2,
        )
    if not (resume and file.is_file()):
        write_json(file, facts)
        return
    earlier = files.read_object(file)
    changed = [
        f"{name} was {files.printable(earlier.get(name))} and is {files.printable(value)}"
        for name, value in facts.items()
        if earlier.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"the data are not those that {path} began with: {'; '.join(changed)}. Give it the "
            f"same data, or train into a new --run-dir"
        )


def _digest(system: str, config: dict[str, Any]) -> str:
    """Computes a short digest of a configuration, by which a damaged or edited one is noticed."""
    text = json.dumps([system, config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object; the file appears whole."""
    text = json.dumps(content, indent=2) + "\n"
    files.write_whole(path, lambda partial: partial.write_text(text))
