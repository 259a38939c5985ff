# SPDX-License-Identifier: MIT
"""The order of examples is a function of (key, step), whatever the size of the requests."""

import jax
import numpy as np
import pytest

from jaxgen.train import order, parallel


def batches(num_examples: int, batch_size: int, seed: int = 0):
    mesh = parallel.data_mesh(1)
    data = parallel.put({"image": np.zeros((num_examples, 1), np.uint8)}, mesh)
    return order.resident_batches(data, batch_size, jax.random.key(seed), mesh)


def rows(num_examples: int, batch_size: int, first: int, count: int, seed: int = 0) -> np.ndarray:
    return np.asarray(batches(num_examples, batch_size, seed)(first, count)[1])


def test_an_epoch_shows_every_example_at_most_once_and_leaves_out_only_the_remainder():
    epoch = rows(22, 4, 0, 5).ravel()

    assert len(set(epoch.tolist())) == 20
    assert epoch.min() >= 0
    assert epoch.max() < 22


def test_epochs_and_seeds_differ():
    epochs = rows(64, 8, 0, 16).reshape(2, 64)

    assert epochs[0].tolist() != epochs[1].tolist()
    assert rows(64, 8, 0, 8, seed=1).ravel().tolist() != epochs[0].tolist()


@pytest.mark.parametrize("cuts", [(1,) * 12, (5, 5, 2), (7, 5), (12,)])
def test_requests_of_any_size_give_the_same_order(cuts):
    whole = rows(20, 4, 0, 12)  # 5 steps an epoch: requests cross two ends of epochs
    ask = batches(20, 4)

    parts, first = [], 0
    for count in cuts:
        parts.append(np.asarray(ask(first, count)[1]))
        first += count

    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_resumed_run_sees_what_it_would_have_seen():
    np.testing.assert_array_equal(rows(20, 4, 7, 3), rows(20, 4, 0, 12)[7:10])


def test_a_set_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="batch of 8 is larger than the data set of 5"):
        batches(5, 8)
