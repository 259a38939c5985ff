# SPDX-License-Identifier: MIT
"""The texts that a batch of images needs, and which of them hold at each row of the table.

Each image has a set of texts, encoded once, and an index says which of them guide it at a row. So
the prompts of a run change without another program, and texts that come again cost nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgen import fields
from jaxgen.diffusion.table import Table
from jaxgen.stable_diffusion.texts import notation
from jaxgen.stable_diffusion.texts.notation import Part


class Phases(NamedTuple):
    """Holds the texts of B images; a column has one for each image.

    An image's set is its texts in all negative and then all positive columns, S together; G of them
    guide it at a time. A negative text may be None: no text was given.
    """

    negatives: list[list[str | None]]
    positives: list[list[str]]
    index: np.ndarray | None  # int32 [N, B, G], the place in the set; None: S = G, in order
    weights: np.ndarray | None  # float32 [B, P] of the G - 1 = P positive texts; None: one of 1

    @property
    def size(self) -> int:
        """The number S of texts in every set."""
        return len(self.negatives) + len(self.positives)


class _Run(NamedTuple):
    steps: list[int]  # of each row
    num_steps: int


class _Set(NamedTuple):
    texts: list  # of an image
    places: np.ndarray  # [R, P] which of them hold at a row


def phases(
    prompts: Sequence[str] | None,
    negatives: Sequence[str | None],
    guided: bool,
    weighting: bool,
    table: Table,
    num_steps: int,
    perturbed: bool = False,
) -> Phases:
    """Reads the prompts of a batch; prompts is None where the caller encoded them.

    guided: negative texts are needed even where no prompt has AND. num_steps: of the run.
    perturbed: the positive text guides a second time, at the end. Raises ValueError, with the
    position, for what the notation cannot mean.
    """
    positive = [_parts(prompt, weighting) for prompt in prompts or [""] * len(negatives)]
    count = max(map(len, positive))
    if perturbed and count > 1:
        raise ValueError("pag_scale and prompts with AND cannot be combined; leave one of them out")
    # fewer prompts than others have: the last again, of no weight
    positive = [
        parts + [parts[-1]._replace(weight=0.0)] * (count - len(parts)) for parts in positive
    ]
    guided = guided or count > 1
    run = _Run(_steps(table, num_steps), num_steps)
    sets = [_texts_of(parts, run) for parts in positive]
    negative_sets = [_negative_texts(text, weighting, run) for text in negatives] if guided else []

    columns = _columns([own.texts for own in sets])
    negative_columns = _columns([own.texts for own in negative_sets])
    offset = len(negative_columns)
    rows = np.stack([own.places + offset for own in sets], axis=1)  # [R, B, P]
    if guided:
        first = np.stack([own.places for own in negative_sets], axis=1)
        rows = np.concatenate([first, rows], axis=2)
    if perturbed:
        rows = np.concatenate([rows, rows[..., -1:]], axis=2)
    weights = np.asarray([[part.weight for part in parts] for parts in positive], np.float32)
    index = _index(rows, offset + len(columns), table)
    return Phases(negative_columns, columns, index, weights if count > 1 else None)


def _parts(prompt: str, weighting: bool) -> list[Part]:
    return notation.parts_of(prompt) if weighting else [Part([prompt], 1.0)]


def _negative_texts(text: str | None, weighting: bool, run: _Run) -> _Set:
    if text is None:
        return _Set([None], np.zeros((len(run.steps), 1), int))
    parts = _parts(text, weighting)
    if len(parts) > 1:
        raise ValueError(
            f"negative_prompt {fields.shown(text)} has an AND, which only prompts can have"
        )
    return _texts_of(parts, run)


def _steps(table: Table, num_steps: int) -> list[int]:
    """The step that each row of the run belongs to: some samplers need several rows for one."""
    rows = int(table.num_rows) - int(table.start_row)
    return [row * min(num_steps, rows) // rows for row in range(rows)]


def _texts_of(parts: list[Part], run: _Run) -> _Set:
    """The different texts of an image, and their places for each row and part."""
    places: dict[str, int] = {}
    rows = []
    for step in run.steps or [0]:
        texts = [notation.text_at(part.nodes, step, run.num_steps) for part in parts]
        rows.append([places.setdefault(text, len(places)) for text in texts])
    return _Set(list(places), np.asarray(rows)[: len(run.steps)])


def _columns(sets: list[list]) -> list[list]:
    """Columns of one text per image; where others have more, its last again."""
    count = max(map(len, sets), default=0)
    padded = [texts + texts[-1:] * (count - len(texts)) for texts in sets]
    return [list(column) for column in zip(*padded, strict=True)]


def _index(rows: np.ndarray, size: int, table: Table) -> np.ndarray | None:
    """The index [N, B, G] of rows [R, B, G]; None where all rows take all texts in their order."""
    if rows.shape[2] == size and (rows == np.arange(size)).all():
        return None
    index = np.zeros((len(table.t), *rows.shape[1:]), np.int32)
    index[int(table.start_row) : int(table.num_rows)] = rows
    return index
