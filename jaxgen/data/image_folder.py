# SPDX-License-Identifier: MIT
"""A folder of pictures: one subfolder per class, or all in one place, in splits or not.

    cats/1.png dogs/2.jpg             two classes; a tenth of each is held out for testing
    train/cats/1.png test/cats/9.png  the splits are as given; val and validation mean test too
    1.png 2.jpg                       no labels

Of an animation the first picture is taken.
"""

import collections
import os
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxgen.data import pixels, source

_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
TEST_NAMES = ("test", "val", "validation")


class ImageFiles(NamedTuple):
    """The pictures of one split, in the order of their paths."""

    paths: list[str]
    labels: np.ndarray  # int32 [N], indices into class_names; zeros when flat
    class_names: tuple[str, ...]  # () when flat


def find(folder: pathlib.Path, split: str) -> ImageFiles:
    """The picture files of a split; hidden files and other kinds of files are passed over."""
    train_folder = folder / "train"
    if not train_folder.is_dir():
        return _held_out(_list_classes(folder), split)
    test_folder = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    train = _list_classes(train_folder)
    if test_folder is None:
        return _held_out(train, split)
    return train if split == "train" else _same_classes(_list_classes(test_folder), train)


def open_split(files: ImageFiles, *, image_size: int | None, channels: int | None) -> source.Source:
    """A Source over the files.

    What is not given is read from the headers of all files: `channels` is 1 if every picture is
    grey, else 3, and without `image_size` all pictures must have one size.
    """
    if image_size is None or channels is None:
        sizes, grey = _read_headers(files.paths)
        if image_size is None and len(sizes) > 1:
            raise ValueError(_describe_sizes(sizes))
        channels = channels or (1 if grey else 3)
        height, width = (image_size, image_size) if image_size else next(iter(sizes))
    else:
        height = width = image_size
    shape = (height, width, channels)

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([_decode(files.paths[i], shape) for i in indices]), files.labels[indices]

    return source.Source(len(files.paths), shape, files.class_names, read)


def _list_classes(folder: pathlib.Path) -> ImageFiles:
    """All pictures under a folder, its subfolders with pictures being the classes."""
    flat = sorted(
        entry.path for entry in os.scandir(folder) if entry.is_file() and _is_picture(entry.name)
    )
    by_class = {}
    for name in sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != "."):
        paths = walk(folder / name)
        if paths:
            by_class[name] = paths
    if flat and by_class:
        raise ValueError(
            f"{folder} has {len(flat)} pictures beside the class folders {list(by_class)[:5]}; "
            f"move them into a class folder, or use a folder without subfolders"
        )
    if not flat and not by_class:
        raise ValueError(
            f"{folder} holds no data that is understood; expected pictures "
            f"({' '.join(sorted(_SUFFIXES))}), class folders of pictures, train and test folders, "
            f"or the IDX files of MNIST"
        )
    paths = flat or [path for paths in by_class.values() for path in paths]
    counts = [len(paths) for paths in by_class.values()] or [len(flat)]
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return ImageFiles(paths, labels, tuple(by_class))


def walk(folder: pathlib.Path) -> list[str]:
    """Paths of all pictures under a folder, sorted; links to other folders are not followed."""
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if _is_picture(name)
    )


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _SUFFIXES and name[0] != "."


def _held_out(files: ImageFiles, split: str) -> ImageFiles:
    indices = source.holdout(files.labels, split)
    paths = [files.paths[i] for i in indices.tolist()]
    return ImageFiles(paths, files.labels[indices], files.class_names)


def _same_classes(test: ImageFiles, train: ImageFiles) -> ImageFiles:
    """The test files with the class numbers of training."""
    unknown = sorted(set(test.class_names) - set(train.class_names))
    if unknown or bool(test.class_names) != bool(train.class_names):
        raise ValueError(
            f"the test folder has classes {unknown or list(test.class_names)} and the train "
            f"folder {list(train.class_names)[:20]}; expected the same class folders in both"
        )
    if not test.class_names:
        return test
    number = np.array([train.class_names.index(name) for name in test.class_names], np.int32)
    return ImageFiles(test.paths, number[test.labels], train.class_names)


def _read_headers(paths: list[str]) -> tuple[collections.Counter, bool]:
    """How often each (height, width) occurs, and whether every picture is grey."""
    heads = [((0, 0), 3)] * len(paths)

    def read(indices: list[int]) -> None:
        for i in indices:
            heads[i] = read_header(paths[i])

    source.for_all(read, len(paths), "pictures cannot be opened")
    sizes = collections.Counter(size for size, _ in heads)
    return sizes, all(num_channels == 1 for _, num_channels in heads)


def read_header(path: str) -> tuple[tuple[int, int], int]:
    """(height, width) and channels, 1 or 3, of a picture; ValueError names a file without them."""
    with _open(path) as image:
        try:
            return pixels.upright_size(image), pixels.num_channels(image)
        except Exception as error:  # damaged EXIF data
            raise ValueError(f"{path}: {error}") from error


def _describe_sizes(sizes: collections.Counter) -> str:
    shown = ", ".join(
        f"{width}x{height} ({n} pictures)" for (height, width), n in sizes.most_common(5)
    )
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    return (
        f"the pictures have {len(sizes)} different sizes: {shown}{more}; "
        f"pass --image-size to resize and crop them to one"
    )


def _decode(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    with _open(path) as image:
        try:
            return pixels.fit(image, shape)
        except Exception as error:  # decoders also raise SyntaxError, struct.error, IndexError, ...
            raise ValueError(f"{path}: {error}") from error


def _open(path: str) -> Image.Image:
    """The picture with only its header read; ValueError names the file when that fails."""
    try:
        image = Image.open(path)
    except UnidentifiedImageError as error:
        kind = "an empty file" if os.path.getsize(path) == 0 else "not a picture Pillow can read"
        raise ValueError(f"{path}: {kind}") from error
    except Exception as error:  # see _decode; also Image.DecompressionBombError
        raise ValueError(f"{path}: {error}") from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow itself only warns
        image.close()
        raise ValueError(f"{path}: {image.width}x{image.height} is over Pillow's limit of {limit}")
    return image
