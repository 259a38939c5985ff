# SPDX-License-Identifier: MIT
import jax.numpy as jnp
import numpy as np

from jaxgen.miniature import model
from jaxgen.weights import tokenizer


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
