# SPDX-License-Identifier: MIT
"""A folder of pictures with a caption each, laid out as Hugging Face's `imagefolder` has it.

    metadata.jsonl 1.png more/2.jpg             a tenth is held out for testing
    train/metadata.jsonl train/1.png
    test/metadata.jsonl test/9.png              as stored, by any usual name of a split

Each line of metadata.jsonl is one JSON object: "file_name" is the picture's path from the folder of
that metadata.jsonl, and "text", or "caption" if there is no "text", its caption. Other keys, blank
lines and a byte order mark are passed over. The folder may come from a stranger: nothing outside of
it is read, also through links, and sizes are limited.
"""

import codecs
import os
import pathlib
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgen import fields, files
from jaxgen.data import folder_walk, image_folder, source, split_folders

_METADATA = "metadata.jsonl"
_METADATA_BYTES = 2**28  # a million lines of 250 bytes
_NAME_CHARACTERS = 1000
_CAPTION_CHARACTERS = 4000
_NUM_SHOWN = 5  # faults of a kind that are spelled out
_EXPECTED = (
    f"expected a {_METADATA} beside the pictures, or in each of train and test, with one line a "
    f'picture such as {{"file_name": "birds/1.png", "text": "a red bird"}}'
)


class Captioned(NamedTuple):
    """A split of pictures and what they show."""

    source: source.Source  # its labels are indices into captions
    captions: list[str]


def open_split(
    folder: pathlib.Path,
    split: str,
    *,
    image_size: int | None,
    channels: Literal[3] | None,
    holds_out: bool = True,
) -> Captioned:
    """Opens the captioned pictures of "train" or "test", in the order of their file names.

    image_size: pixels, or None if all pictures have one size; channels as in image_folder. No
    picture is decoded yet, but the headers of all of them are read. holds_out=False trains with all
    pictures of a folder that has no test split, and is not for "test".
    Raises one ValueError that lists, by kind, lines of metadata.jsonl that cannot be used, images
    without a caption, captions without an image and images that cannot be opened.
    """
    if not isinstance(split, str) or split not in source.SPLITS:
        raise ValueError(
            f"unknown split {fields.shown(split)}; expected one of {', '.join(source.SPLITS)}"
        )
    source.check_size(image_size)
    place, is_whole = _locate(folder, split)
    captions = _read_captions(place)

    names, notes = sorted(captions), []
    if is_whole and holds_out:
        one_class = np.zeros(len(names), np.int32)
        held_out = source.holdout(one_class, split)
        notes = [source.describe_holdout(one_class, split)]
        names = [names[i] for i in held_out.tolist()]
    elif place != folder:
        notes = [f"from the folder {files.printable(place.name, 60)}"]
    notes += folder_walk.describe_skipped(_walk(place).skipped)
    paths = [str(place / name) for name in names]
    labels = np.arange(len(paths), dtype=np.int32)
    listing = image_folder.ImageFiles(paths, labels, (), notes)
    pictures = image_folder.open_split(listing, split, image_size=image_size, channels=channels)
    return Captioned(pictures, [captions[name] for name in names])


def _locate(folder: pathlib.Path, split: str) -> tuple[pathlib.Path, bool]:
    """Finds the folder of the split's metadata.jsonl, and whether that has the other split too."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {files.printable(folder)}; check the path")
    place, is_whole = folder, True
    if (folder / _METADATA).exists():
        trains = [
            name for name in split_folders.folder_names(folder) if split_folders.is_train(name)
        ]
        if trains:
            raise ValueError(
                f"{files.printable(folder)} has a {_METADATA} and a {trains[0]} folder, so "
                f"its splits are not clear; give train and test a {_METADATA} of their own, or "
                f"rename the folder {trains[0]}"
            )
    elif splits := split_folders.find(folder, lambda path: (path / _METADATA).is_file()):
        is_whole = splits.test is None
        place = splits.train if splits.test is None or split == "train" else splits.test
    root = os.path.realpath(folder)
    for path in (place, place / _METADATA):
        if not pathlib.Path(os.path.realpath(path)).is_relative_to(root):
            raise ValueError(
                f"{files.printable(path)} is a link out of the folder; put a copy there"
            )
    if not (place / _METADATA).is_file():
        raise ValueError(
            f"{files.printable(place)} has no {_METADATA}{_others(place)}; {_EXPECTED}"
        )
    return place, is_whole


def _others(place: pathlib.Path) -> str:
    """Says in which other form the captions of a folder seem to be."""
    if (place / "metadata.csv").is_file():
        return ", but a metadata.csv, whose rows have to become its lines"
    texts = sum(path.suffix.lower() == ".txt" for path in place.iterdir())
    return f", but {texts} .txt files; if they hold the captions, make lines of them" * (texts > 1)


def _read_captions(place: pathlib.Path) -> dict[str, str]:
    """Reads captions by file name, each of a picture that exists and whose header can be read."""
    captions, unusable = _read_lines(place)
    present = _list_pictures(place)
    missing = [name for name in captions if not os.path.isfile(place / name)]
    existing = sorted(captions.keys() - set(missing))
    faults = {
        f"lines of {_METADATA} that cannot be used": unusable,
        "images without a caption": [_show(name) for name in present if name not in captions],
        "captions without an image": [_show(name) + _hint(name) for name in missing],
        "images that cannot be opened": _find_broken(place, existing),
    }
    if any(faults.values()):
        kinds = [_describe(kind, of_kind) for kind, of_kind in faults.items() if of_kind]
        raise ValueError(
            f"{files.printable(place)} has {sum(map(len, faults.values()))} faults; "
            f"repair or remove these:\n" + "\n".join(kinds)
        )
    if not captions:
        raise ValueError(f"{files.printable(place / _METADATA)} is empty; {_EXPECTED}")
    return captions


def _hint(name: str) -> str:
    return " (folders are set apart by /)" * ("\\" in name)


def _describe(kind: str, faults: list[str]) -> str:
    first = f", the first {_NUM_SHOWN}" if len(faults) > _NUM_SHOWN else ""
    return "\n    ".join([f"  {len(faults)} {kind}{first}:", *faults[:_NUM_SHOWN]])


def _read_lines(place: pathlib.Path) -> tuple[dict[str, str], list[str]]:
    """Reads captions by file name, and says what is wrong with the lines that hold none."""
    data = files.read_bytes(place / _METADATA, _METADATA_BYTES)
    root = pathlib.Path(os.path.realpath(place))
    captions, faults = {}, []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            name, caption = _parse_line(line)
            _check_inside(name, root)
            if name in captions:
                raise ValueError(f"{_show(name)} has a caption already")
        except ValueError as error:
            faults.append(f"line {number}: {files.printable(error)}")
        else:
            captions[name] = caption
    return captions, faults


def _parse_line(line: bytes) -> tuple[str, str]:
    """Reads the file name, in one spelling, and the caption."""
    if len(line) > files.CONFIG_BYTES:
        raise ValueError(f"it has {len(line)} bytes; at most {files.CONFIG_BYTES} are read")
    entry = files.parse_object(line, "it")
    name = _get_text(entry, "file_name", _NAME_CHARACTERS)
    key = "caption" if "caption" in entry and "text" not in entry else "text"
    return pathlib.PurePath(name).as_posix(), _get_text(entry, key, _CAPTION_CHARACTERS)


def _get_text(entry: dict[str, Any], key: str, max_characters: int) -> str:
    if key not in entry:
        raise ValueError(f'it has no "{key}"')
    value = entry[key]
    if not isinstance(value, str):
        raise ValueError(f'"{key}" is of type {type(value).__name__}; expected a string')
    if not value.strip():
        raise ValueError(f'"{key}" is empty')
    if len(value) > max_characters:
        raise ValueError(f'"{key}" has {len(value)} characters; at most {max_characters} are read')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f'"{key}" holds half of a surrogate pair, which is no character')
    return value


def _check_inside(name: str, root: pathlib.Path) -> None:
    """Raises ValueError for a file name that could mean anything outside of the folder."""
    if "\0" in name:
        raise ValueError(f"{_show(name)} holds a null character")
    path = pathlib.PurePath(name)
    if path.anchor or ".." in path.parts:
        raise ValueError(f"{_show(name)} is not a plain path within the folder")
    if not pathlib.Path(os.path.realpath(root / path)).is_relative_to(root):
        raise ValueError(f"{_show(name)} is a link out of the folder; put a copy there")


def _walk(place: pathlib.Path) -> folder_walk.Walk:
    """Lists everything under the folder; links that lead out of it are not followed."""
    return folder_walk.walk(place, os.path.realpath(place))


def _list_pictures(place: pathlib.Path) -> list[str]:
    """Lists the file names of all pictures under the folder."""
    return [pathlib.PurePath(path).relative_to(place).as_posix() for path in _walk(place).paths]


def _find_broken(place: pathlib.Path, names: list[str]) -> list[str]:
    """Says what is wrong with the files whose header cannot be read, in their order."""
    faults = [""] * len(names)

    def read(indices: list[int]) -> None:
        for i in indices:
            path = str(place / names[i])
            try:
                image_folder.read_header(path)
            except ValueError as error:
                reason = str(error).removeprefix(f"{files.printable(path)}: ")
                faults[i] = f"{_show(names[i])}: {reason}"

    source.for_all(read, len(names), "images cannot be opened")
    return [fault for fault in faults if fault]


def _show(name: str) -> str:
    """Returns the name for an error, with nothing in it that a terminal would act on."""
    return repr(name[:200])
