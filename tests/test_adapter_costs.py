# SPDX-License-Identifier: MIT
"""What adapters and their training cost, counted from equations: nothing is compiled or run."""

import functools

import jax
import pytest

from benchmarks import adapters, lora_step


@functools.cache
def train_step(remat, batch_size):
    return lora_step.train_step("tiny", 4, batch_size, "float32", remat)


@functools.cache
def kept_bytes(remat, batch_size):
    loss, _, (state, batch, key) = train_step(remat, batch_size)
    return lora_step.kept_bytes(loss, state.params, batch, key)


def flops(remat):
    _, one, inputs = train_step(remat, 2)
    return lora_step.products.flops(one, *inputs)


@pytest.mark.slow
def test_gradient_checkpointing_keeps_less_and_computes_more():
    assert kept_bytes(True, 2) < kept_bytes(False, 2) / 5
    plain = flops(remat=False)
    assert plain < flops(remat=True) < 1.5 * plain


def test_what_is_kept_grows_with_the_batch_and_holds_no_parameters():
    kept = [kept_bytes(True, batch_size) for batch_size in (2, 4)]
    assert 1.9 < kept[1] / kept[0] < 2.1


def test_a_states_arrays_are_those_of_the_factors():
    _, _, (state, batch, _) = lora_step.train_step("tiny", 4, 2, "bfloat16", False)
    kernels = [leaf.shape for leaf in jax.tree.leaves(state.params)]
    assert all(4 in shape for shape in kernels)  # the rank
    assert len(jax.tree.leaves(state.opt_state)) == 2 * len(kernels) + 1
    assert {leaf.dtype.name for leaf in jax.tree.leaves(batch[lora_step.tuning.BASE])} == {
        "bfloat16"
    }


def test_merged_adapters_cost_nothing_and_those_of_each_image_little():
    flops = adapters.counted("tiny", 2)
    assert flops[adapters.MERGED] == flops[adapters.PLAIN]
    assert flops[adapters.PLAIN] < flops[adapters.BESIDE] < flops[adapters.CONTROL]
    assert flops[adapters.CACHED] < flops[adapters.PLAIN] < 3 * flops[adapters.CACHED]
