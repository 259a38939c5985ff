# SPDX-License-Identifier: MIT
"""Traced programs on disk, so that a second start neither traces nor lowers them.

    store = Store(folder, state=repr(networks))
    step = store.jit("step", step, donate_argnames="state")
    ...                        # calls it, as any jitted function
    store.keep()               # writes what the folder lacks, for the next process

A file holds one program in StableHLO (`jax.export`), for arguments of one structure and shape. Its
name is a digest of all that the program follows from: the code of jaxgen, the versions of JAX, the
device, JAX's settings and the caller's `state`. So a file is never out of date, only unused, and
`keep` deletes those that were used longest ago once all have more than `FOLDER_BYTES`. The machine
code that XLA makes of a program lies in JAX's compilation cache, which belongs to the user.
"""

import contextlib
import functools
import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax import export

from jaxgen import files
from jaxgen.types import Array

SUFFIX = ".stablehlo"
MOST_BYTES = 2**28  # of one program; the largest known have 2 MB
FOLDER_BYTES = 2**30  # of all: with every version and every size of pictures come new ones
_FILE = re.compile(r".+-[0-9a-f]{32}(\.stablehlo|\.json)")
_PARTIAL = re.compile(r"\..+\.partial")  # of `files.write_whole`
ABANDONED = 24 * 3600  # seconds, after which a partial file has no writer any more
# Settings of JAX that change what is traced.
SETTINGS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
    "jax_threefry_partitionable", "jax_numpy_dtype_promotion", "jax_debug_nans",
)  # fmt: skip
# Custom calls that `jax.export` does not promise to keep for later versions of JAX. The name of a
# file says the version, so that no other ever reads it.
OF_THIS_VERSION = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax", "tpu_custom_call")
# What a program from elsewhere could run of this process: Python functions by their addresses.
CALLBACK = b"callback"


Content = Callable[[], bytes | bytearray]  # what a file holds


class Store:
    """Programs of one caller, and the folder that they are kept in, if there is one.

    state: text that says all that the functions depend on beside their arguments. A file does not
    say where on a mesh an argument lies: whoever calls the program does, and the compiler divides
    its work accordingly. So one file serves one device and every mesh.
    """

    def __init__(self, folder: Path | None, state: str) -> None:
        self.folder = folder
        self._key = digest_of(environment(), state)
        self._contents: dict[str, Content] = {}  # by file name
        self._is_closed = False  # the folder could not be read or written to

    def jit(self, name: str, function: Callable[..., Any], **options: Any) -> Any:
        """Jits a function under a name that no other of this store has; options of `jax.jit`."""

        @functools.wraps(function)
        def stored(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, function, args, kwargs)

        stored.__name__ = name  # functools.partial has none
        return jax.jit(stored, **options)

    def keep(self) -> None:
        """Writes the programs that the folder lacks, and makes room for them.

        Warns, once, where the folder cannot be written to.
        """
        if self.folder is None or self._is_closed:
            return
        try:
            self.write(self.folder)
            _make_room(self.folder, self._contents.keys())
        except OSError as error:
            self._close(error)

    def write(self, folder: Path) -> None:
        """Writes the programs that were called so far to a folder, which may have some of them."""
        for name, content_of in self._contents.items():
            if not (folder / name).exists():
                sealed = files.sealed(content_of())
                files.write_whole(folder / name, functools.partial(_write, content=sealed))

    def text(self, name: str, state: str, make: Callable[[], str]) -> str:
        """Returns a text that follows from the code and `state`: the folder's, or a new one."""
        file = f"{name}-{digest_of(self._key, state)}.json"
        text = self._read(file, lambda content: content.decode())
        if text is None:
            text = make()
        self._contents[file] = text.encode
        return text

    def _read(self, file: str, read: Callable[[bytes], Any]) -> Any:
        """What `read` makes of a file; None if the folder has none that can be trusted."""
        if self.folder is None or self._is_closed:
            return None
        try:
            exists = (self.folder / file).exists()
        except OSError as error:
            self._close(error)
            return None
        return _trusted(self.folder / file, read) if exists else None

    def _close(self, error: OSError) -> None:
        """Gives the folder up: a read-only or full disk is no reason to lose a picture."""
        self._is_closed = True
        text = f"programs are not kept in {self.folder}: {files.first_line(error)}"
        warnings.warn(files.printable(text, 400), stacklevel=3)

    def _call(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs while JAX traces: the outputs, through the stored program if there is one."""
        leaves, structure = jax.tree.flatten((args, kwargs))
        is_argument = [isinstance(leaf, jax.core.Tracer) for leaf in leaves]
        arguments = [leaf for leaf, dynamic in zip(leaves, is_argument, strict=True) if dynamic]
        fixed = [None if isinstance(leaf, jax.core.Tracer) else leaf for leaf in leaves]
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in arguments]
        own = digest_of(self._key, str(structure), str(shapes), str(is_argument), repr(fixed))
        file = f"{name}-{own}{SUFFIX}"
        program = self._read(file, functools.partial(_program, shapes))

        def flat(*arguments: Array) -> Any:
            values = iter(arguments)
            rebuilt = [
                next(values) if dynamic else leaf
                for leaf, dynamic in zip(fixed, is_argument, strict=True)
            ]
            args, kwargs = jax.tree.unflatten(structure, rebuilt)
            return function(*args, **kwargs)

        if program is None:
            jitted = jax.jit(flat)
            if self.folder is None:  # `write` finds it traced
                self._contents[file] = lambda: exported(jitted, shapes).serialize()
                return jitted(*arguments)
            try:
                program = exported(jitted, shapes)
            except ValueError:  # it cannot be exported; the function's own fault comes up again
                return jitted(*arguments)
        self._contents[file] = program.serialize
        # also when it is new: XLA's cache knows the machine code by the program that called it
        return program.call(*arguments)


def exported(jitted: Any, shapes: list[Any]) -> export.Exported:
    """A jitted function, lowered for arguments of these shapes."""
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in OF_THIS_VERSION]
    return export.export(jitted, disabled_checks=checks)(*shapes)


def environment() -> str:
    """All of the process that a traced program depends on, as text."""
    device = jax.devices()[0]
    return repr(
        (
            jax.__version__, jaxlib.__version__, device.platform, device.device_kind,
            os.environ.get("XLA_FLAGS"), [getattr(jax.config, name) for name in SETTINGS], code(),
        )
    )  # fmt: skip


@functools.cache
def code() -> str:
    """A digest of jaxgen's source."""
    root = Path(__file__).parent.parent
    return digest_of(*(path.read_text() for path in sorted(root.rglob("*.py"))))


def digest_of(*texts: str) -> str:
    """A digest of texts in their order."""
    lengths = " ".join(str(len(text)) for text in texts)
    return hashlib.sha256("\0".join([lengths, *texts]).encode()).hexdigest()[:32]


def _trusted(path: Path, read: Callable[[bytes], Any]) -> Any:
    """What `read` makes of a file's content; None, with a warning, if it cannot be trusted."""
    try:
        content = files.unsealed(files.read_bytes(path, MOST_BYTES))
        with contextlib.suppress(OSError):  # a read-only folder
            os.utime(path)  # for `_make_room`
        return read(content)
    except Exception as error:  # the file is only a copy of what can be made anew
        with contextlib.suppress(OSError):  # a read-only folder keeps it, and it is refused again
            path.unlink(missing_ok=True)
        remedy = "remove it" if os.path.exists(path) else "it is made anew"
        text = f"passed over {path}, {remedy}: {files.first_line(error)}"
        warnings.warn(files.printable(text, 400), stacklevel=2)
        return None


def _make_room(folder: Path, used: Collection[str]) -> None:
    """Deletes programs until `FOLDER_BYTES` are left, those used longest ago first, and none of
    those that this process uses. What killed writers left behind goes too.
    """
    stats = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process makes room, too
            if _FILE.fullmatch(path.name):
                stats.append((path.stat(), path))
            elif _PARTIAL.fullmatch(path.name) and time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
    excess = sum(stat.st_size for stat, _ in stats) - FOLDER_BYTES
    for stat, path in sorted(stats, key=lambda item: item[0].st_mtime):
        if excess <= 0:
            break
        if path.name not in used:
            path.unlink(missing_ok=True)
            excess -= stat.st_size


def _program(shapes: list[Any], content: bytes) -> export.Exported:
    """The program of a file, for arguments of these shapes."""
    if CALLBACK in content:
        raise ValueError("it calls functions of Python")
    program = export.deserialize(bytearray(content))
    if [(x.shape, x.dtype) for x in program.in_avals] != [(x.shape, x.dtype) for x in shapes]:
        raise ValueError("it takes other arguments")
    return program


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
