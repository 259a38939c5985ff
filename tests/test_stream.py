# SPDX-License-Identifier: MIT
"""A batch is a function of (seed, step): resumed and divided runs see the same examples."""

import itertools
import pathlib
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import sets, source, stream

SHAPE = (2, 2, 1)


def numbered(num_examples: int, seen: list[int] | None = None) -> source.Source:
    """Example i is an image of the value i with the label i."""

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        if seen is not None:
            seen.extend(indices)
        labels = np.array(indices, np.int32)
        images = np.broadcast_to(labels[:, None, None, None], (len(labels), *SHAPE))
        return images.astype(np.uint8), labels

    return source.Source(num_examples, SHAPE, (), read)


def take(num_batches: int, data_source: source.Source, **options) -> list[np.ndarray]:
    """Labels [num_batches][b]; also checks that images stay with their labels."""
    batches = itertools.islice(stream.shuffled_batches(data_source, **options), num_batches)
    labels = []
    for batch in batches:
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        assert batch["image"].shape == (len(batch["label"]), *SHAPE)
        assert (batch["image"] == batch["label"][:, None, None, None]).all()
        labels.append(batch["label"])
    return labels


def test_an_epoch_has_every_example_once_and_each_epoch_its_own_order():
    epochs = np.array(take(12, numbered(60), batch_size=15, seed=0)).reshape(3, 60)
    for epoch in epochs:
        assert sorted(epoch) == list(range(60))
    same_place = [(a == b).mean() for a, b in itertools.combinations(epochs, 2)]
    assert max(same_place) < 0.2  # chance is 1/60


def test_examples_left_over_change_from_epoch_to_epoch():
    epochs = np.array(take(40, numbered(10), batch_size=8, seed=0))  # 2 left over in each
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    left_over = [set(range(10)) - set(epoch.tolist()) for epoch in epochs]
    assert set().union(*left_over) == set(range(10))


def test_examples_are_spread_evenly_over_an_epoch():
    epochs = np.array(take(20, numbered(250), batch_size=250, seed=3))  # [20, 250]
    fifth = (epochs // 50).reshape(20, 5, 50)  # of the examples, by fifth of the epoch
    counts = [np.bincount(part.ravel(), minlength=5) for part in fifth.swapaxes(0, 1)]
    # 200 expected; hypergeometric: variance 50 * 0.2 * 0.8 * 200/249 in each of the 20 epochs
    assert np.abs(np.array(counts) - 200).max() < 5 * (20 * 6.4) ** 0.5


def test_another_seed_is_another_order_and_not_a_later_epoch_of_the_same():
    first = np.array(take(9, numbered(50), batch_size=50, seed=0))
    second = np.array(take(9, numbered(50), batch_size=50, seed=1))
    assert not any((a == b).all() for a in first for b in second)


@pytest.mark.parametrize("first_step", [1, 4, 5, 1_000_003])
def test_a_stream_resumed_at_a_step_continues_exactly(first_step):
    options = {"batch_size": 10, "seed": 7}
    resumed = take(6, numbered(43), first_step=first_step, **options)
    start = first_step - 1  # also reached one step earlier, by going on
    straight = take(7, numbered(43), first_step=start, **options)[1:]
    np.testing.assert_array_equal(resumed, straight)


@pytest.mark.parametrize("num_threads", [1, 3, 16])
def test_the_number_of_threads_changes_nothing(num_threads):
    ours = take(9, numbered(64), batch_size=32, seed=1, num_threads=num_threads)
    np.testing.assert_array_equal(ours, take(9, numbered(64), batch_size=32, seed=1))


@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_processes_read_disjoint_rows_of_one_global_batch(process_count):
    whole = take(5, numbered(40), batch_size=12, seed=2, first_step=1)
    parts = [
        take(
            *(5, numbered(40)),
            batch_size=12,
            seed=2,
            first_step=1,
            process_index=p,
            process_count=process_count,
        )
        for p in range(process_count)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))


def test_a_process_decodes_only_its_own_rows():
    seen: list[int] = []
    batches = stream.shuffled_batches(
        numbered(100, seen), batch_size=100, seed=0, process_index=1, process_count=4, num_threads=1
    )
    own = {int(label) for label in next(batches)["label"]}
    assert set(seen[:25]) == own


def test_the_order_of_a_seed_is_fixed_for_good():
    # in every process; another one would break resuming of earlier runs
    order = [18, 3, 8, 15, 12, 11, 5, 4]
    assert take(1, numbered(20), batch_size=8, seed=0, first_step=3)[0].tolist() == order


# pictures on disk


def write_pictures(folder: pathlib.Path, number: int, size: int) -> str:
    for i in range(number):
        path = folder / f"{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((size, size, 3), i, np.uint8)).save(path)
    return str(folder)


def test_streamed_pictures_are_the_loaded_ones(tmp_path):
    folder = write_pictures(tmp_path, 40, 9)
    loaded = sets.load(folder, image_size=6, channels=3)
    opened = sets.open_source(folder, image_size=6, channels=3)
    assert sets.size_in_bytes(opened) == loaded.images.nbytes

    batches = stream.shuffled_batches(opened, batch_size=36, seed=0)
    batch = next(batches)

    order = np.argsort(batch["image"][:, 0, 0, 0])
    expected = np.argsort(loaded.images[:, 0, 0, 0])
    np.testing.assert_array_equal(batch["image"][order], loaded.images[expected])
    np.testing.assert_array_equal(batch["label"][order], loaded.labels[expected])


def test_streaming_holds_a_few_batches_and_not_the_set(tmp_path):
    folder = write_pictures(tmp_path, 200, 128)  # 9.8 MB decoded
    opened = sets.open_source(folder, image_size=128, channels=3)
    tracemalloc.start()
    batches = stream.shuffled_batches(opened, batch_size=4, seed=0, num_threads=2)
    for _ in range(60):
        next(batches)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sets.size_in_bytes(opened) / 3


def test_a_picture_that_cannot_be_read_stops_the_stream_with_its_name(tmp_path):
    folder = write_pictures(tmp_path, 20, 8)
    (tmp_path / "0" / "004.png").write_bytes(b"not a picture")
    opened = sets.open_source(folder, image_size=8, channels=3)
    batches = stream.shuffled_batches(opened, batch_size=18, seed=0)
    with pytest.raises(ValueError, match=r"0/004\.png: not a picture"):
        next(batches)


def test_an_abandoned_stream_leaves_no_thread():
    before = set(threading.enumerate())
    batches = stream.shuffled_batches(numbered(100), batch_size=10, seed=0)
    next(batches)
    del batches
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert not set(threading.enumerate()) - before


# errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "does not fit a set of 20"),
        ({"batch_size": 21}, "use 1 to 20"),
        ({"batch_size": 10, "process_count": 4}, "multiple of 4"),
        ({"batch_size": 10, "process_count": 2, "process_index": 2}, "outside 0 to 1"),
        ({"batch_size": 10, "first_step": -1}, "first_step is -1"),
    ],
)
def test_impossible_batches_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        stream.shuffled_batches(numbered(20), seed=0, **options)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"\.\[data\]"):
        stream.shuffled_batches(numbered(20), batch_size=2, seed=0)
