# SPDX-License-Identifier: MIT
"""A folder of pictures: one subfolder per class, or all in one place, in splits or not.

    cats/1.png dogs/2.jpg             two classes; a tenth of each is held out for testing
    train/cats/1.png test/cats/9.png  the splits as they are stored, by any of their usual names
    1.png 2.jpg                       no labels

Of an animation the first picture is taken. Linked folders are followed, wherever they lead. Files
that are passed over are counted in the description of the Source.
"""

import collections
import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from jaxgen import files
from jaxgen.data import folder_walk, picture_file, pillow, source, split_folders


class ImageFiles(NamedTuple):
    """The pictures of one split, in the order of their paths."""

    paths: list[str]
    labels: np.ndarray  # int32 [N], indices into class_names; zeros when flat
    class_names: tuple[str, ...]  # () when flat
    notes: list[str]  # where they come from, and what was skipped


def find(folder: pathlib.Path, split: str) -> ImageFiles:
    """Finds the picture files of a split."""
    splits = split_folders.find(folder, lambda path: bool(folder_walk.walk(path).paths))
    if splits is None:
        return _held_out(_list_classes(folder), split)
    train = _list_classes(splits.train)
    if splits.test is None:
        listing, place = _held_out(train, split), splits.train
    elif split == "train":
        listing, place = train, splits.train
    else:
        listing, place = _same_classes(_list_classes(splits.test), train), splits.test
    notes = [f"from the folder {files.printable(place.name, 60)}", *listing.notes]
    unread = [files.printable(name, 60) for name in splits.unread]
    unread += (
        [f"{len(folder_walk.walk_flat(folder))} pictures"] if folder_walk.walk_flat(folder) else []
    )
    notes += [f"beside the splits and not read: {', '.join(unread)}"] if unread else []
    return listing._replace(
        notes=notes + folder_walk.describe_skipped(folder_walk.skipped_in(folder))
    )


def open_split(
    listing: ImageFiles, split: str, *, image_size: int | None, channels: int | None
) -> source.Source:
    """Opens the files as a Source.

    What is None is read from the headers of all files: `channels` is 1 if every picture is grey,
    else 3, and without `image_size` all pictures must have one size.
    """
    if image_size is None or channels is None:
        sizes, grey = _read_headers(listing.paths)
        if image_size is None and len(sizes) > 1:
            raise ValueError(_describe_sizes(sizes))
        channels = channels or (1 if grey else 3)
        height, width = (image_size, image_size) if image_size else next(iter(sizes))
    else:
        height = width = image_size
    shape = (height, width, channels)
    is_binary = functools.cache(functools.partial(_is_binary, listing.paths))  # at the first read

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        binary = is_binary()
        images = np.stack([_decode(listing.paths[i], shape, binary) for i in indices])
        return images, listing.labels[indices]

    line = source.describe(split, listing.labels, listing.class_names, listing.notes)
    return source.Source(len(listing.paths), shape, listing.class_names, read, description=line)


def read_header(path: str) -> tuple[tuple[int, int], int]:
    """(height, width) and channels, 1 or 3, of a picture; ValueError names a file without them."""
    with picture_file.open_path(path) as image:
        try:
            return pillow.upright_size(image), pillow.num_channels(image)
        except Exception as error:  # damaged EXIF data
            raise ValueError(f"{files.printable(path)}: {files.printable(error)}") from error


def _list_classes(folder: pathlib.Path) -> ImageFiles:
    """Lists all pictures under a folder; its subfolders with pictures are the classes."""
    flat = folder_walk.walk_flat(folder)
    walks, notes = {}, []
    for name in split_folders.folder_names(folder):
        if split_folders.has_pair(folder / name):
            raise ValueError(
                f"{files.printable(folder / name)} holds the splits of a set; give that folder, or "
                f"put train and test outermost, with the classes inside"
            )
        walks[name] = folder_walk.walk(folder / name)
        paths, others = walks[name].paths, walks[name].skipped
        if not paths and picture_file.foreign_suffixes() & set(others):
            raise _unreadable(folder / name, others)
        if not paths:
            notes.append(f"the folder {files.printable(name, 60)} holds no pictures")
    folder_walk.check_apart(folder, walks)
    by_class = {name: walk.paths for name, walk in walks.items() if walk.paths}
    _check_not_mixed(folder, flat, list(by_class))
    skipped = sum((walk.skipped for walk in walks.values()), collections.Counter())
    skipped += folder_walk.skipped_in(folder)
    if not flat and not by_class:
        others = "".join(f" ({note})" for note in folder_walk.describe_skipped(skipped))
        raise ValueError(
            f"{files.printable(folder)} holds no data that is understood{others}; expected "
            f"pictures ({_suffix_list()}), class folders of pictures, train and test folders, "
            f"or the IDX files of MNIST"
        )
    paths = flat or [path for paths in by_class.values() for path in paths]
    counts = [len(paths) for paths in by_class.values()] or [len(flat)]
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    notes = folder_walk.describe_skipped(skipped) + notes + _describe_nested(folder, by_class)
    return ImageFiles(paths, labels, tuple(by_class), notes)


def _describe_nested(folder: pathlib.Path, by_class: dict[str, list[str]]) -> list[str]:
    """Writes a note on classes whose pictures lie in several folders, which may be classes too."""
    nested = []
    for name, paths in by_class.items():
        inside = sorted({os.path.dirname(path) for path in paths} - {str(folder / name)})
        nested += [os.path.relpath(place, folder) for place in inside] if len(inside) > 1 else []
    more = f" and {len(nested) - 4} more" if len(nested) > 4 else ""
    shown = ", ".join(files.printable(place, 60) for place in nested[:4]) + more
    return [f"no classes of their own: the folders {shown}"] if nested else []


def _unreadable(folder: pathlib.Path, others: collections.Counter[str]) -> ValueError:
    kinds = folder_walk.describe_skipped(others)[0].removeprefix("skipped: ")
    return ValueError(
        f"the class {files.printable(folder)} has no picture that can be read, only {kinds}; "
        f"convert them to one of {_suffix_list()}, or remove the folder"
    )


def _check_not_mixed(folder: pathlib.Path, flat: list[str], classes: list[str]) -> None:
    if flat and classes:
        shown = ", ".join(files.printable(name, 60) for name in classes[:5])
        raise ValueError(
            f"{files.printable(folder)} has {len(flat)} pictures beside the class folders {shown}; "
            f"move them into a class folder, or use a folder without subfolders"
        )


def _suffix_list() -> str:
    return " ".join(sorted(picture_file.suffixes()))


def _held_out(listing: ImageFiles, split: str) -> ImageFiles:
    indices = source.holdout(listing.labels, split)
    paths = [listing.paths[i] for i in indices.tolist()]
    notes = [source.describe_holdout(listing.labels, split), *listing.notes]
    return listing._replace(paths=paths, labels=listing.labels[indices], notes=notes)


def _same_classes(test: ImageFiles, train: ImageFiles) -> ImageFiles:
    """Gives the test files the class numbers of training."""
    unknown = sorted(set(test.class_names) - set(train.class_names))
    if unknown or bool(test.class_names) != bool(train.class_names):
        theirs, ours = (
            "[" + ", ".join(repr(name) for name in list(names)[:20]) + "]"
            for names in (unknown or test.class_names, train.class_names)
        )
        raise ValueError(
            f"the test folder has classes {theirs} and the train folder {ours}; expected the same "
            f"class folders in both"
        )
    if not test.class_names:
        return test
    number = np.array([train.class_names.index(name) for name in test.class_names], np.int32)
    return test._replace(labels=number[test.labels], class_names=train.class_names)


def _read_headers(paths: list[str]) -> tuple[collections.Counter, bool]:
    """Counts how often each (height, width) occurs; says whether every picture is grey."""
    headers = [((0, 0), 3)] * len(paths)

    def read(indices: list[int]) -> None:
        for i in indices:
            headers[i] = read_header(paths[i])

    source.for_all(read, len(paths), "pictures cannot be opened")
    sizes = collections.Counter(size for size, _ in headers)
    return sizes, all(num_channels == 1 for _, num_channels in headers)


def _describe_sizes(sizes: collections.Counter) -> str:
    shown = ", ".join(
        f"{width}x{height} ({n} pictures)" for (height, width), n in sizes.most_common(5)
    )
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    return (
        f"the pictures have {len(sizes)} different sizes: {shown}{more}; "
        f"pass --image-size to resize and crop them to one"
    )


def _is_binary(paths: list[str]) -> bool:
    """Says whether the pictures hold only 0 and 1; nearly always, the first one answers it."""
    spread = np.linspace(0, len(paths) - 1, min(source.SAMPLE, len(paths))).astype(int).tolist()
    return pillow.is_binary((_range_of(paths[i]) for i in spread), "the set")


def _range_of(path: str) -> tuple[int, int]:
    try:
        with picture_file.open_path(path) as image, picture_file.room_for(image):
            return pillow.range_of(image)
    except Exception:  # reading it will say why
        return 0, 255


def _decode(path: str, shape: tuple[int, int, int], binary: bool) -> np.ndarray:
    with picture_file.open_path(path) as image:
        try:
            return pillow.fit(image, shape, binary)
        except Exception as error:  # decoders also raise SyntaxError, struct.error, IndexError, ...
            raise ValueError(f"{files.printable(path)}: {files.printable(error)}") from error
