# SPDX-License-Identifier: MIT
"""Walks through folders of pictures, links included: what lies there, and what was passed over."""

import collections
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from jaxgen import files
from jaxgen.data import picture_file, split_folders


class Walk(NamedTuple):
    """What lies under a folder."""

    paths: list[str]  # of pictures, sorted
    skipped: collections.Counter[str]  # files that were passed over, by kind: .heic, hidden, ...
    folders: frozenset[str]  # all that were read, where they really are
    linked: frozenset[str]  # the folders that the pictures which are links really lie in


def walk(folder: str | os.PathLike[str], root: str | None = None) -> Walk:
    """Lists all pictures under a folder; hidden files and folders are passed over.

    root: where given, links to folders outside of it are not followed. A folder that is linked into
    itself is read once, and one around this folder, which holds the other classes, not at all.
    """
    paths, skipped, linked = [], collections.Counter(), set()
    real = pathlib.Path(os.path.realpath(folder))
    pending, folders = [os.fspath(folder)], {str(real)}
    around = set(map(str, real.parents))
    while pending:
        with os.scandir(pending.pop()) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            if split_folders.is_hidden(entry.name):
                skipped["hidden"] += _is_picture(entry.name) and not entry.name.startswith("._")
            elif split_folders.is_folder(entry):
                place = os.path.realpath(entry.path)
                outside = root is not None and not pathlib.Path(place).is_relative_to(root)
                if outside or place in folders or place in around:
                    skipped["link to a folder " + ("outside" if outside else "read already")] += 1
                else:
                    folders.add(place)
                    pending.append(entry.path)
            elif not _is_picture(entry.name):
                skipped[_kind(entry.name)] += 1
            elif split_folders.is_file(entry):
                paths.append(entry.path)
                if entry.is_symlink():
                    linked.add(os.path.dirname(os.path.realpath(entry.path)))
            else:
                skipped["broken link" if entry.is_symlink() else "special file"] += 1
    return Walk(sorted(paths), +skipped, frozenset(folders), frozenset(linked))


def walk_flat(folder: pathlib.Path) -> list[str]:
    """Lists the paths of the pictures directly in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            if _is_picture(entry.name) and entry.name[0] != "." and split_folders.is_file(entry)
        )


def describe_skipped(skipped: collections.Counter[str]) -> list[str]:
    """Writes a note on files that were passed over, if there are any."""
    counts = [f"{count:,} {files.printable(kind, 40)}" for kind, count in skipped.most_common(8)]
    return [f"skipped: {', '.join(counts)}"] if counts else []


def skipped_in(folder: pathlib.Path) -> collections.Counter[str]:
    """Counts the kinds of the files directly in a folder that are no pictures."""
    with os.scandir(folder) as entries:
        kinds = [
            _kind(entry.name)
            for entry in entries
            if not split_folders.is_folder(entry)
            and entry.name[0] != "."
            and not _is_picture(entry.name)
        ]
    return collections.Counter(kinds)


def check_apart(folder: pathlib.Path, walks: Mapping[str, Walk]) -> None:
    """Raises ValueError where a link makes pictures of one class those of another, too.

    walks: of each class folder in `folder`, what lies under it.
    """
    owners: dict[str, str] = {}
    for name, walk in walks.items():
        for place in sorted(walk.folders):
            if owners.setdefault(place, name) != name:
                raise _in_two_classes(folder, place, owners[place], name)
    for name, walk in walks.items():
        for place in sorted(walk.linked):
            if owners.get(place, name) != name:
                raise _in_two_classes(folder, place, owners[place], name)


def _in_two_classes(folder: pathlib.Path, place: str, one: str, other: str) -> ValueError:
    return ValueError(
        f"{files.printable(folder)}: by a link, pictures in {files.printable(place)} belong to the "
        f"classes {files.printable(one, 60)} and {files.printable(other, 60)}; remove the link"
    )


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in picture_file.suffixes()


def _kind(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without a suffix"
