# SPDX-License-Identifier: MIT
"""Tensors that stay on disk until they are asked for, and the safetensors files they live in.

A checkpoint is a dict of name -> Tensor. Nothing is read before `tensor.read()`, and nothing is
kept after it, so moving a model to its devices holds one tensor at a time in host memory.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from jaxgen import files

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "C64": np.dtype(np.complex64),
    "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
ALIGNED = 64  # bytes
IN_CACHE = 2**17  # entries that are looked at twice
NAME_CHARACTERS, MAX_AXES, MAX_SIZE = 1000, 8, 2**31  # of one tensor
# How other files begin that are found under the name of a safetensors file.
BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull` in its "
    "repository, or fetch the file from its page on the Hub",
    b"PK": "a PyTorch pickle (.ckpt or .bin) under another name. Pickles can run code, so jaxgen "
    "does not open them; give the file its old ending and convert it with PyTorch diffusers, if "
    "you trust its origin",
    b"GGUF": "a quantised GGUF file, which jaxgen does not read; fetch the float16 safetensors",
    b"<": "a web page, as a failed download leaves it; fetch the file again",
}
BEGINNINGS |= {bytes([0x80, protocol]): BEGINNINGS[b"PK"] for protocol in range(2, 6)}
RESAVE = """Save it again without its metadata, where PyTorch is installed:
    from safetensors.torch import load_file, save_file
    save_file(load_file("OLD_FILE"), "NEW_FILE")"""


class Tensor(NamedTuple):
    """A tensor's shape and type, and the function that fetches its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class NotFiniteError(ValueError):
    """A stored tensor holds NaN or infinity; the message names it and its file."""


def from_array(array: np.ndarray) -> Tensor:
    """An array in memory as a Tensor."""
    return Tensor(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


def rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows start to stop of the first axis, [O, ...] -> [stop - start, ...]."""
    shape = (stop - start, *tensor.shape[1:])
    return Tensor(shape, tensor.dtype, lambda: tensor.read()[start:stop])


def transposed(tensor: Tensor, order: tuple[int, ...] | None = (1, 0)) -> Tensor:
    """The axes in another order, [A, B] -> [B, A] by default; None leaves them."""
    if order is None:
        return tensor
    shape = tuple(tensor.shape[axis] for axis in order)
    return Tensor(shape, tensor.dtype, lambda: tensor.read().transpose(order))


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same values in another shape."""
    return Tensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array at a multiple of 64 bytes, which JAX takes over on CPU instead of copying it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)


def is_aligned(array: np.ndarray) -> bool:
    """Whether an array lies in one piece as `aligned_empty` makes it."""
    return array.flags.c_contiguous and array.ctypes.data % ALIGNED == 0


def all_finite(values: np.ndarray) -> bool:
    """Tells whether an array in one piece holds neither NaN nor infinity.

    As integers, their bits are the largest of each sign, and two maxima of integers are several
    times faster than `np.isfinite` of half precision, which has no instruction on most CPUs.
    """
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return True
    signed, unsigned = (values.reshape(-1).view(f"{kind}{values.itemsize}") for kind in "iu")
    with np.errstate(all="ignore"):
        limit = np.array(np.inf).astype(values.dtype).view(signed.dtype)  # NaN where it has no inf
    below_zero = int(limit) + 2 ** (8 * values.itemsize - 1)
    return all(
        signed[i : i + IN_CACHE].max() < limit and unsigned[i : i + IN_CACHE].max() < below_zero
        for i in range(0, values.size, IN_CACHE)
    )


def open_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, none of them read yet.

    Raises ValueError when the file is truncated, corrupt or not safetensors at all, and so does
    reading a tensor with NaN or infinity.
    """
    start, header = _checked_header(path)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        _check_entry(path, name, entry)
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        tensors[name] = Tensor(
            shape, dtype, _reader(path, name, start + entry["data_offsets"][0], dtype, shape)
        )
    return tensors


def metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors, {} if none."""
    _, header = _checked_header(path)
    texts = header.get("__metadata__") or {}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def open_files(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of several files; a name in two of them is an error."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        in_file = open_file(path)
        repeated = sorted(tensors.keys() & in_file.keys())
        if repeated:
            raise ValueError(
                f"{path}: {files.printable(repeated[0])} is also in an earlier file of this "
                "checkpoint"
            )
        tensors.update(in_file)
    return tensors


def write_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: np.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as one safetensors file, one at a time; floats are cast to `dtype` if given.

    metadata: texts beside the tensors. The file appears under its name only when it is complete.
    """
    codes = {name: CODES[stored_dtype(tensor, dtype)] for name, tensor in tensors.items()}
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + stored_bytes(tensor, dtype)
        header[name] = {
            "dtype": codes[name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin aligned, as the format asks

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, tensor in tensors.items():
                values = np.ascontiguousarray(tensor.read(), DTYPES[codes[name]])
                file.write(values.reshape(-1).view(np.uint8).data)

    files.write_whole(path, write)


def stored_dtype(tensor: Tensor, dtype: np.dtype | None) -> np.dtype:
    """The type that `write_file` gives a tensor: `dtype` for floats, its own for the rest."""
    floating = jnp.issubdtype(tensor.dtype, jnp.floating)
    return np.dtype(dtype) if dtype is not None and floating else tensor.dtype


def stored_bytes(tensor: Tensor, dtype: np.dtype | None = None) -> int:
    """The size of a tensor's values in the file that `write_file` makes."""
    return int(np.prod(tensor.shape, dtype=np.int64)) * stored_dtype(tensor, dtype).itemsize


def _checked_header(path: Path) -> tuple[int, dict]:
    """Where the data begin, and the header, both proved consistent with the file's size."""
    prefix = files.read_bytes_at(path, 0, 8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(files.INDEX_BYTES, path.stat().st_size - 8):
        raise ValueError(f"{path} {_header_fault(path, length)}")
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # opening proves types, shapes and offsets, and that they fill the file exactly
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or corrupt: {files.printable(error, 300)}. Fetch the file again"
        ) from None
    text = files.read_bytes_at(path, 8, length)
    return 8 + length, files.parse_object(text, f"the header of {path}")


def _header_fault(path: Path, length: int) -> str:
    """What a file is whose header cannot have the length that it claims."""
    size, beginning = path.stat().st_size, files.read_bytes_at(path, 0, 32)
    kinds = [
        text
        for start, text in BEGINNINGS.items()
        # a pickle begins with 0x80, as may the length of a header, but not one of 4 GiB
        if beginning.lstrip().startswith(start) and (start[0] != 0x80 or length >= 2**32)
    ]
    if kinds and not (files.INDEX_BYTES < length <= size - 8):
        return f"is {kinds[0]}"
    if files.INDEX_BYTES < length <= size - 8:
        return (
            f"has a header of {length} bytes, and jaxgen reads at most {files.INDEX_BYTES}; most "
            f"of that must be metadata. {RESAVE}"
        )
    return (
        f"is not a complete safetensors file: its header claims {length} bytes of a file of "
        f"{size}. Fetch the file again"
    )


def _check_entry(path: Path, name: str, entry: Any) -> None:
    """One tensor's entry; its sizes and offsets were proved before, but not its form."""
    where = f"{path}: {files.printable(name)}"
    if not isinstance(entry, dict) or len(name) > NAME_CHARACTERS:
        raise ValueError(f"{where} has an entry of the wrong form. Fetch the file again")
    if entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{where} has type {files.printable(entry['dtype'], 40)}; jaxgen reads "
            f"{', '.join(DTYPES)}. Convert the file to one of these types first"
        )
    if len(entry["shape"]) > MAX_AXES or any(size >= MAX_SIZE for size in entry["shape"]):
        raise ValueError(
            f"{where} has the shape {files.printable(entry['shape'], 80)}; expected at most "
            f"{MAX_AXES} axes of less than {MAX_SIZE} entries"
        )


def _reader(
    path: Path, name: str, offset: int, dtype: np.dtype, shape: tuple[int, ...]
) -> Callable:
    # A plain read, not a memory map: mapped pages would count as this process's memory for as
    # long as the map lives, and with them the whole file.
    def read() -> np.ndarray:
        values = aligned_empty(shape, dtype)
        with path.open("rb") as file:
            file.seek(offset)
            count = file.readinto(values.reshape(-1).view(np.uint8).data)
        if count != values.nbytes:
            raise ValueError(f"{path} ended early; it changed while it was being read")
        if not all_finite(values):
            raise NotFiniteError(
                f"{files.printable(path)}: the tensor {files.printable(name)} holds NaN or "
                "infinity, which no picture survives. Its training diverged, or a merge or a "
                "conversion went wrong: take another version of this model"
            )
        values.flags.writeable = False  # so JAX may take the memory over
        return values

    return read
