# SPDX-License-Identifier: MIT
"""Batches from a set that is too large to keep: shuffled, decoded by threads, resumed by number.

The batch of a step is a function of (seed, step) alone, so there is no reader state to save: a run
that stopped before step s goes on with `first_step=s` and sees what it would have seen.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxgen.data import source

_ROUNDS = 4  # of the index shuffle, as grain itself uses
_MAX_PIECE = 16  # rows of a batch that one thread reads in its turn


def shuffled_batches(
    data: source.Source,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches {"image": uint8 [b, H, W, C], "label": int32 [b]} from step `first_step` on.

    `data.names` are the two keys. An epoch is N // batch_size steps in an order of its own; the
    N % batch_size examples left over change from epoch to epoch. Process p of n gets rows
    [p b, (p + 1) b) of each global batch, with b = batch_size / n, and decodes no others. Needs the
    extra `data`.
    """
    grain = import_grain()
    _check(data, batch_size, first_step, process_index, process_count)
    rows = batch_size // process_count
    # a thread's turn reads several rows, because handing over one costs as much as a small JPEG
    piece = max(n for n in range(1, min(_MAX_PIECE, rows) + 1) if rows % n == 0)

    def read_piece(i: int) -> dict[str, np.ndarray]:
        step, row = divmod(i * piece, rows)
        row += process_index * rows
        indices = _examples(data.num_examples, batch_size, seed, step, row, piece)
        return dict(zip(data.names, data.read(indices), strict=True))

    def join(pieces: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array.reshape(rows, *array.shape[2:]) for name, array in pieces.items()}

    threads = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(
        grain.MapDataset.range(first_step * (rows // piece), sys.maxsize)
        .map(read_piece)
        .to_iter_dataset(threads)
        .batch(rows // piece, drop_remainder=True)
        .map(join)
    )


def _examples(
    num_examples: int, batch_size: int, seed: int, step: int, row: int, count: int
) -> list[int]:
    """Computes which examples are rows [row, row + count) of the global batch of a step.

    Each epoch is its own permutation of [0, num_examples), drawn from (seed, epoch).
    """
    index_shuffle = import_grain().experimental.index_shuffle
    epoch, step_of_epoch = divmod(step, num_examples // batch_size)
    # seed + epoch, as grain itself does, would make epoch 1 of seed 0 the epoch 0 of seed 1
    epoch_seed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    start = step_of_epoch * batch_size + row
    return [
        index_shuffle(position, num_examples - 1, epoch_seed, _ROUNDS)
        for position in range(start, start + count)
    ]


def _check(
    data: source.Source, batch_size: int, first_step: int, process_index: int, process_count: int
) -> None:
    if not 1 <= batch_size <= data.num_examples:
        raise ValueError(
            f"batch size {batch_size} does not fit a set of {data.num_examples} examples; "
            f"use 1 to {data.num_examples}"
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch of {batch_size} cannot be divided over {process_count} processes; "
            f"use a multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index {process_index} is outside 0 to {process_count - 1} of "
            f"{process_count} processes"
        )
    if first_step < 0:
        raise ValueError(f"first_step is {first_step}; expected 0 or more")


def import_grain() -> Any:
    """Imports grain. Raises ImportError that names the extra."""
    try:
        import grain
        import grain.experimental
    except ImportError as error:
        raise ImportError(
            'streaming needs grain: pip install -e ".[data]", or keep the set on the device'
        ) from error
    return grain
