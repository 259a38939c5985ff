# SPDX-License-Identifier: MIT
"""Foreign files are read within limits; files are written whole or not at all.

Every fault of a file from elsewhere is one ValueError.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CONFIG_BYTES = 2**20  # configs of real checkpoints have a few KiB
INDEX_BYTES = 2**24  # lists of tensors, vocabularies and safetensors headers
MAX_DEPTH = 64
_FULL = tuple(os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
MESSAGE_LINES, MESSAGE_CHARACTERS = 8, 4000  # of an error about a foreign file


def read_object(
    path: Path, max_bytes: int = CONFIG_BYTES, infinities: bool = False
) -> dict[str, Any]:
    """The JSON object in a file of at most `max_bytes` bytes; infinities as in `parse_object`."""
    return parse_object(read_bytes(path, max_bytes), str(path), infinities)


def existing(value: Any) -> Path | None:
    """The path of something that exists; None also for values that no file can be called."""
    try:
        path = expanded(value)
        return path if path.exists() else None
    except (OSError, ValueError, TypeError):  # too long, a null, empty, no text, no home
        return None


def expanded(text: str | Path) -> Path:
    """The path that a user gave, with the home folder for "~". ValueError where there is none."""
    if not str(text).strip():
        raise ValueError("a path is empty; is the variable that it came from set?")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{printable(text)} has no home folder; give the whole path") from None


def check_new(path: Path, kind: str = "folder") -> None:
    """Raises ValueError for a path that exists: what a user has is never overwritten.

    kind: what the path is of, in the message.
    """
    if path.exists():
        raise ValueError(f"{path} exists; choose a new {kind} or remove it first")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file, which is refused unread when it is larger than `max_bytes`."""
    data = read_bytes_at(path, 0, max_bytes + 1)  # never trusts the size that is reported
    if len(data) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes, the limit for its kind of file")
    return data


def read_bytes_at(path: Path, offset: int, count: int) -> bytes:
    """At most `count` bytes of a regular file, from `offset` on."""
    if not path.is_file():  # pipes and devices, also behind a link, would hang or never end
        fault = "is not a regular file" if path.exists() else "is missing; is the folder complete?"
        raise ValueError(f"{path} {fault}")
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def printable(text: Any, most: int = 200) -> str:
    """Foreign text for a message: control and bidirectional characters escaped, and shortened."""
    text = str(text)
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1]
    )
    return escaped if len(escaped) <= most else escaped[: most - 3] + "..."


@contextlib.contextmanager
def one_error(where: Any) -> Iterator[None]:
    """Every fault of foreign files read inside becomes one ValueError of printable text.

    where: the file or folder, which is named unless the message names it already; anything else
    is no place, and is not named.
    """
    try:
        yield
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, OSError) as error:
        lines = str(error).split("\n")[:MESSAGE_LINES]
        text = "\n".join(printable(line, MESSAGE_CHARACTERS) for line in lines)
        if not isinstance(error, ValueError) or isinstance(error, UnicodeError):
            fault = "cannot be read" if isinstance(error, OSError) else "is damaged"
            text = f"it {fault} ({type(error).__name__}: {text})"
        name = printable(where) if isinstance(where, str | Path) else ""
        raise ValueError(text if name in text else f"{name}: {text}") from None
    except (MemoryError, RecursionError) as error:
        raise ValueError(
            f"{printable(where)} asks for more memory than there is ({type(error).__name__})"
        ) from None


def parse_object(data: bytes, name: str, infinities: bool = False) -> dict[str, Any]:
    """The JSON object in `data`; `name` says in errors where it came from.

    Raises ValueError for anything but one object of finite numbers, without repeated keys and at
    most 64 levels deep. infinities: Infinity, -Infinity and NaN count as numbers, as Python writes
    them; diffusers' scheduler configs hold them, and who reads these has to check them.
    """
    try:
        value = json.loads(
            data.decode("utf-8-sig"),  # some editors begin a file with a byte order mark
            object_pairs_hook=_unique,
            parse_constant=float if infinities else _reject_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(f"{name} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {_shorten(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a JSON {type(value).__name__}; expected an object")
    _check_depth(value, name)
    return value


def check_writable(path: Path) -> None:
    """Raises ValueError where no file can be written at `path`, so that long work does not start.

    Nothing is left behind, not even the folders around `path`, which may be missing.
    """
    try:
        if path.exists():
            path.open("ab").close()
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()  # `write_whole` makes a neighbour, too
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); give another path"
        ) from None


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Makes a file or a folder that appears under its name only when it is complete and on disk.

    `write` gets the path of a temporary neighbour and makes the file or folder there; if it fails,
    nothing is left behind. The folder around `path` is made if need be.
    """
    with named_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, write)


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    # two writers of one path must not share a temporary; a name has at most 255 bytes
    partial = path.with_name(f".{path.name[-50:]}.{secrets.token_hex(4)}.partial")
    try:
        write(partial)
        if partial.is_file():
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
        raise


def sealed(content: bytes | bytearray) -> bytes:
    """Content behind its SHA-256, by which `unsealed` notices any damage."""
    return hashlib.sha256(content).digest() + content


def unsealed(data: bytes) -> bytes:
    """The content that was `sealed`. Raises ValueError where a bit of it has changed."""
    digest, content = data[:32], data[32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged; a new one is needed")
    return content


class NoRoomError(OSError):
    """A file could not be written because its disk is full; the message names the file."""


@contextlib.contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """The error of a full disk inside becomes a NoRoomError that names `path`.

    Python and the libraries that write for it raise different errors, most of them without a path.
    """
    try:
        yield
    except NoRoomError:  # it names a file already
        raise
    except Exception as error:
        if (reason := _full(error)) is None:
            raise
        raise NoRoomError(f"{path} could not be written: {reason}; is its disk full?") from error


def _full(error: Exception) -> str | None:
    """What an error says of a full disk; None if it is about something else."""
    if str(error).startswith("encoder error"):  # Pillow's, which drops the reason of the system
        return first_line(error)
    return next((text for text in _FULL if text in str(error)), None)


def first_line(error: BaseException) -> str:
    """The message of an error in one short line; its class where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def dumps(value: Any, infinities: bool = False) -> str:
    """JSON text as diffusers writes it: sorted keys, two spaces, one final newline."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=infinities) + "\n"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {twice[:80]!r} is given twice")
    return result


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _check_depth(value: Any, name: str) -> None:
    level = [value]  # breadth first, so that depth costs no recursion here either
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"{name} is nested deeper than {MAX_DEPTH} levels")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _shorten(error: Exception) -> str:
    return printable(error, 300)
