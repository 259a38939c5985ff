# SPDX-License-Identifier: MIT
"""Damage inside files that have checksums or lengths, which are mended so that readers go on."""

import ast
import functools
import gzip
import io
import random
import struct
import zipfile
import zlib

from fuzz import byte_changes, json_values, sound_tensors

_BLOCK = 2**20
_BLOCKS = 3 * 2**9  # that a bomb unpacks to, more than any reader may take
_SHAPES = [
    (2**40,), (2**62, 2**62), (-1, 8, 8), (True, 8, 8), (1.5,), (), (0, 8, 8), (8,) * 40, "x", None,
    (10**30,), (40, 2**31, 2**31),
]  # fmt: skip
_DTYPES = ["|O", "<U1000000", "<f2", ">f8", "|b1", "<c16", "<M8[s]", "", "|V0", "|u1", "x", 5, [()]]


def safetensors(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Another value in the header, whose length is kept right; or other tensors, all sound."""
    if rng.random() < 0.6:
        return sound_tensors.mutate(rng, data)
    length = struct.unpack("<Q", data[:8])[0]
    text, done = json_values.mutate(rng, data[8 : 8 + length].decode())
    header = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + data[8 + length :], f"header: {done}"


def gz(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Other content, packed again; sometimes of many more bytes."""
    if rng.random() < 0.1:
        return gzip.compress(gzip.decompress(data)) + _zeros_gz(), "a gzip bomb"
    content, done = byte_changes.mutate(rng, gzip.decompress(data))
    return gzip.compress(content, 1), f"inside: {done}"


def npz(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Another header, name, packing or content of a member, packed again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    i = rng.randrange(len(members))
    name, content = members[i]
    packing = zipfile.ZIP_DEFLATED
    match rng.choice(["header"] * 4 + ["name", "packing", "content", "twice", "bomb"]):
        case "header":
            content, done = _npy(rng, content)
        case "name":
            name = rng.choice(["x\x1b[31m.npy", "../x.npy", "a" * 5000, "", "x\u202e.npy"])
            done = f"name = {ascii(name)[:40]}"
        case "packing":
            packing = rng.choice([zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED])
            done = f"packing {packing}"
        case "content":
            content, done = byte_changes.mutate(rng, content)
        case "twice":
            members.insert(i, (name, content[:100]))
            i, done = i + 1, "a member twice"
        case _:
            return _zip_bomb(members, i), "a zip bomb"
    members[i] = (name, content)
    return _zip(members, packing), f"{members[i][0][:20]!a}: {done}"


def png(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Another chunk, with its checksum."""
    chunks = list(_chunks(data))
    i = rng.randrange(len(chunks))
    kind, content = chunks[i]
    match rng.choice(["size", "content", "remove", "double", "text", "bomb", "kind"]):
        case "size":
            sides = [0, 1, 9400, 2**16, 2**31 - 1, 2**32 - 1]
            numbers = struct.pack(">II", rng.choice(sides), rng.choice(sides))
            chunks[0], done = (b"IHDR", numbers + chunks[0][1][8:]), "size"
        case "content":
            content, done = byte_changes.mutate(rng, content)
            chunks[i] = (kind, content)
        case "remove":
            done = f"removed {kind}"
            del chunks[i]
        case "double":
            chunks[i:i], done = [chunks[i]] * rng.choice([1, 50]), f"doubled {kind}"
        case "text":
            kind = rng.choice([b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP"])
            packed = zlib.compress(json_values.CONTROL.encode() * rng.choice([1, 10**4]))
            content = rng.choice([b"k\0", b"\0", b"k\0\0\0\0\0", b"", b"k" * 200]) + packed
            chunks.insert(rng.choice([1, len(chunks) - 1]), (kind, content))
            done = f"a chunk {kind}"
        case "bomb":
            header = struct.pack(">IIBBBBB", 9400, 9400, 8, 2, 0, 0, 0)
            chunks = [(b"IHDR", header), (b"IDAT", _zeros_deflated()), (b"IEND", b"")]
            if rng.random() < 0.5:
                chunks = [*_chunks(data)]
                chunks.insert(1, (b"zTXt", b"k\0\0" + _zeros_deflated()))
            done = "a PNG bomb"
        case _:
            chunks[i], done = (rng.choice([b"IDAT", b"IEND", b"acTL", b"PLTE"]), content), "kind"
    packed = b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    return data[:8] + packed, f"chunks: {done}"


def json_lines(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Another value in one of the lines."""
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    text, done = json_values.mutate(rng, lines[i].decode())
    lines[i] = text.encode("utf-8", "surrogatepass")
    return b"\n".join(lines), f"line {i}: {done}"


def json_text(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Another value in a JSON file."""
    text, done = json_values.mutate(rng, data.decode())
    return text.encode("utf-8", "surrogatepass"), done


BY_SUFFIX = {
    ".json": json_text, ".jsonl": json_lines, ".safetensors": safetensors, ".gz": gz, ".npz": npz,
    ".png": png,
}  # fmt: skip


def _npy(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    length = struct.unpack("<H", content[8:10])[0]
    header = ast.literal_eval(content[10 : 10 + length].decode("latin1"))
    key = rng.choice(["shape", "shape", "descr", "fortran_order", "more", "text"])
    header[key] = rng.choice({"shape": _SHAPES, "descr": _DTYPES}.get(key, [5, "x", None, True]))
    text = repr(header)
    if key == "text":
        text = rng.choice(["{" * 9000, "(" * 200, "'", "{'shape': 10**9**9}", "\x1b[31m", "{}", ""])
    encoded = text.encode("latin1").ljust(64)
    done = f"header {key} = {ascii(header[key])[:40]}"
    return content[:8] + struct.pack("<H", len(encoded)) + encoded + content[10 + length :], done


def _zip(members: list[tuple[str, bytes]], packing: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing, compresslevel=1) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def _chunks(data: bytes):
    place = 8
    while place + 8 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += length + 12


def _zip_bomb(members: list[tuple[str, bytes]], i: int) -> bytes:
    """The archive with zeros behind a member, which is packed apart, as zipfile would take long."""
    start = members[i][1][:128]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for j, (name, content) in enumerate(members):
            archive.writestr(name, content if j != i else _deflated(start, -zlib.MAX_WBITS))
        info = archive.infolist()[i]  # the list of members is written at the end
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(start) + _BLOCKS * _BLOCK
        info.CRC = _checksum(start)
    return file.getvalue()


def _deflated(start: bytes, window: int) -> bytes:
    """`start` and the zeros of a bomb, deflated; equal blocks are packed once and repeated."""
    packer = zlib.compressobj(1, zlib.DEFLATED, window)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(_BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * _BLOCKS + packer.flush()  # the checksum at the end of zlib's is wrong


@functools.cache
def _checksum(start: bytes) -> int:
    zeros = bytes(_BLOCK)
    return functools.reduce(
        lambda crc, _: zlib.crc32(zeros, crc), range(_BLOCKS), zlib.crc32(start)
    )


@functools.cache
def _zeros_gz() -> bytes:
    return gzip.compress(bytes(_BLOCK)) * _BLOCKS


@functools.cache
def _zeros_deflated() -> bytes:
    return _deflated(b"", zlib.MAX_WBITS)
