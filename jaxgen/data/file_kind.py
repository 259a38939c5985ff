# SPDX-License-Identifier: MIT
"""Kinds of files that people give as a data set and that are none: what they are, what to do."""

import pathlib

_UNPACK = "unpack it and give the folder"
_HEAD = 512  # bytes; the mark of a tar stands at 257
# (offset, first bytes, what it is, what to do)
_KINDS = (
    (0, b"\x1f\x8b", "a gzip file (.gz, .tar.gz or .tgz)", _UNPACK),
    (0, b"BZh", "a bzip2 file (.bz2 or .tar.bz2)", _UNPACK),
    (0, b"\xfd7zXZ\0", "an xz file (.xz or .tar.xz)", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstandard file (.zst or .tar.zst)", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x93NUMPY", "a single NumPy array (.npy)", "store images and labels with numpy.savez"),
    (0, b"\x89HDF", "an HDF5 file", "store its arrays with numpy.savez"),
    (0, b"PAR1", "a Parquet file", "write its pictures into a folder, one subfolder a class"),
    (0, b"\0\0\x08\3", "a single IDX file", "give the folder of the four IDX files"),
    (0, b"\0\0\x08\1", "a single IDX file", "give the folder of the four IDX files"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (0, b"\x80", "a Python pickle, which is never opened", "store its arrays with numpy.savez"),
    (0, b"\x89PNG", "a single picture", "give the folder of pictures"),
    (0, b"\xff\xd8\xff", "a single picture", "give the folder of pictures"),
    (0, b"GIF8", "a single picture", "give the folder of pictures"),
    (0, b"RIFF", "a single picture, sound or film", "give a folder of pictures"),
    (0, b"BM", "a single picture", "give the folder of pictures"),
    (0, b"II*\0", "a single picture", "give the folder of pictures"),
    (0, b"MM\0*", "a single picture", "give the folder of pictures"),
    (4, b"ftyp", "a film, or a single picture", "give a folder of pictures"),
    (0, b"MATLAB", "a MATLAB file", "store its arrays with numpy.savez"),
    (0, b"<", "a text, such as the page of an error", "fetch it again"),
)


def refusal(path: pathlib.Path) -> str | None:
    """Says what a file is and what to do with it; None if it is of no known kind."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for offset, mark, kind, advice in _KINDS:
        if head[offset:].startswith(mark):
            return f"is {kind}; {advice}"
    return None
