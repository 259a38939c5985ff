# SPDX-License-Identifier: MIT
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.miniature import model
from jaxgen.nn.linear import Conv, Dense, Embed
from jaxgen.nn.norm import GroupNorm
from jaxgen.stable_diffusion import loading
from jaxgen.weights import tokenizer


class Layers(nn.Module):
    """A layer of each kind that draws its parameters; two tables have one shape."""

    @nn.compact
    def __call__(self, ids):
        x = Embed(40, 80)(ids) + Embed(40, 80)(ids)
        x = Conv(64, (3, 3))(Dense(160)(x).reshape(1, 4, 4, -1))
        return GroupNorm(8, epsilon=1e-5)(x)


def test_fresh_parameters_are_distributed_as_the_layers_draw_them(monkeypatch):
    ids = jnp.arange(16)
    monkeypatch.setattr(loading, "example_inputs", lambda module: (ids,))
    params = model.init(jax.random.key(0), Layers())
    expected = Layers().init(jax.random.key(1), ids)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)

    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, x), y in zip(leaves, jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        if np.ptp(y) == 0:  # biases and scales
            np.testing.assert_array_equal(x, y)
            continue
        assert abs(np.mean(x)) < 4 * np.std(x) / np.sqrt(x.size), path
        for power in (2, 4):  # the fourth power tells a truncated normal from a whole one
            assert np.mean(x**power) == pytest.approx(np.mean(y**power), rel=0.15), path
    assert not np.array_equal(*(params[f"Embed_{i}"]["embedding"] for i in (0, 1)))


def test_words_of_both_vocabularies_keep_their_embedding_and_new_ones_differ():
    old = tokenizer.train(["a red star above a ring"], 12)
    new = tokenizer.train(["a ring at the top", "a star at the bottom"], 12)
    table = np.arange(2.0 * len(old.vocab), dtype=np.float32).reshape(-1, 2)
    params = {"text": {"token_embedding": {"embedding": jnp.asarray(table)}, "rest": jnp.ones(3)}}
    made = model.with_vocabulary(params, old, new)["text"]
    rows = np.asarray(made["token_embedding"]["embedding"])
    assert rows.shape == (len(new.vocab), 2)
    assert rows.dtype == np.float32
    assert "ring</w>" in old.vocab
    for token in old.vocab.keys() & new.vocab.keys():
        np.testing.assert_array_equal(rows[new.vocab[token]], table[old.vocab[token]])
    fresh = rows[[new.vocab[token] for token in new.vocab.keys() - old.vocab.keys()]]
    assert len(fresh) > 2
    assert len(np.unique(fresh, axis=0)) == len(fresh)
    np.testing.assert_array_equal(made["rest"], np.ones(3))
