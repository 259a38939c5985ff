# SPDX-License-Identifier: MIT
"""Which folders of a data set are its splits, by any usual name: train, Training, seg_train, ..."""

import os
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxgen import files

_TRAIN = ("train", "training", "trn")
# of several held-out folders the first in this order is the test split
_TEST = (
    "test", "testing", "tst", "val", "valid", "validation", "eval", "evaluation", "dev", "holdout",
)  # fmt: skip
_CLEAR_TESTS = ("test", "testing", "val", "validation")  # names that are hardly ever a class's
_FILLERS = frozenset(
    ("set", "data", "dataset", "split", "images", "image", "imgs", "img", "pictures", "folder")
)


class Splits(NamedTuple):
    """The folders of the splits of a set."""

    train: pathlib.Path
    test: pathlib.Path | None  # None: a part of train is held out
    unread: list[str]  # names of the folders beside them


class _Name(NamedTuple):
    """A folder's name, divided into the word for a split and the rest."""

    name: str
    word: str  # "train", "val", ...; "" if the name has no such word or several
    rest: tuple[str, ...]  # the other words: of seg_train it is seg


def find(folder: pathlib.Path, holds_data: Callable[[pathlib.Path], bool]) -> Splits | None:
    """Finds the splits that a folder is divided into; None if its subfolders are no splits.

    holds_data: whether a folder that is named like no split would be part of the set.
    Raises ValueError where the names leave open what is a split and what a class.
    """
    names = [_divide(name) for name in folder_names(folder)]
    pairs = _pairs(names)
    if len(pairs) > 1:
        raise _unclear(folder, [train for train, _ in pairs], "only one folder can be for training")
    if pairs:
        train, tests = pairs[0]
        test = min(tests, key=lambda name: _TEST.index(_divide(name).word))
        unread = [name.name for name in names if name.name not in (train, test)]
        return Splits(folder / train, folder / test, unread)

    trains = [name.name for name in names if is_train(name.name)]
    tests = [name.name for name in names if name.word in _CLEAR_TESTS and not name.rest]
    if not trains and not tests:
        return None
    others = [
        name.name
        for name in names
        if name.name not in trains + tests and holds_data(folder / name.name)
    ]
    if len(trains) > 1:
        raise _unclear(folder, trains, "only one folder can be for training")
    if others:
        raise _unclear(
            folder, [*trains, *tests, *others], "it is not clear whether they are splits or classes"
        )
    if not trains:
        raise _unclear(folder, tests, "there is no folder train beside it")
    return Splits(folder / trains[0], None, [n.name for n in names if n.name != trains[0]])


def has_pair(folder: pathlib.Path) -> bool:
    """Says whether a folder has both a train and a held-out folder."""
    return bool(_pairs([_divide(name) for name in folder_names(folder)]))


def is_train(name: str) -> bool:
    """Says whether a folder's name means training and nothing else."""
    words = _divide(name)
    return words.word in _TRAIN and not words.rest


def folder_names(folder: pathlib.Path) -> list[str]:
    """Lists the names of the subfolders that are not hidden, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if is_folder(entry) and not is_hidden(entry.name)
        )


def is_hidden(name: str) -> bool:
    """Says whether a file or folder is not the user's: of macOS, Synology's thumbnails, ..."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Says whether an entry is a folder or a link to one."""
    # DirEntry's own answer is an OSError for a link that leads in a circle
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_file(entry: os.DirEntry[str]) -> bool:
    """Says whether an entry is a regular file or a link to one."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _pairs(names: list[_Name]) -> list[tuple[str, list[str]]]:
    """Pairs training folders with held-out ones whose names differ in the split's word only."""
    pairs = [
        (
            train.name,
            [name.name for name in names if name.word in _TEST and name.rest == train.rest],
        )
        for train in names
        if train.word in _TRAIN
    ]
    return [(train, tests) for train, tests in pairs if tests]


def _divide(name: str) -> _Name:
    """Divides a name: TrainSet, train_images and train2017 all say train and nothing else."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = []
    for word in re.findall(r"[^\W\d_]+", spaced.lower()):
        stem = re.sub(r"(?<=.)(set|data|images)$", "", word)
        words.append(stem if stem in _TRAIN + _TEST else word)
    splits = [word for word in words if word in _TRAIN + _TEST]
    rest = tuple(word for word in words if word not in splits and word not in _FILLERS)
    return _Name(name, splits[0] if len(splits) == 1 else "", rest)


def _unclear(folder: pathlib.Path, names: list[str], why: str) -> ValueError:
    shown = ", ".join(files.printable(name, 60) for name in names[:6])
    return ValueError(
        f"{files.printable(folder)} has the folders {shown}, and {why}; expected train and test "
        f"folders and nothing else, or only classes; rename or move what does not belong there"
    )
