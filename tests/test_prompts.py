# SPDX-License-Identifier: MIT
"""Prompts as pieces with weights, and as chunks of tokens of any length."""

import numpy as np
import pytest
from support import clip_words

from jaxgen.stable_diffusion.texts import prompts
from jaxgen.weights import tokenizer

TOKENS = tokenizer.build(*clip_words.small_vocabulary())
SECOND = tokenizer.build(*clip_words.small_vocabulary(), {"pad_token": "!"})


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("", [("", 1.0)]),
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
        ("a ((cat)) sits", [("a ", 1.0), ("cat", 1.21), (" sits", 1.0)]),
        ("a [cat]", [("a ", 1.0), ("cat", 1 / 1.1)]),
        ("(cat:1.3)", [("cat", 1.3)]),
        ("(cat: .5 )", [("cat", 0.5)]),
        ("(cat:-1)", [("cat", -1.0)]),
        ("(a (cat:2) on [a mat]:1.5)", [("a ", 1.5), ("cat", 3.0), (" on ", 1.5),
                                        ("a mat", 1.5 / 1.1)]),
        (r"\(cat\) \[dog\] \\", [(r"(cat) [dog] \ ".rstrip(), 1.0)]),
        (r"(a \(cat:1.5\):1.2)", [("a (cat:1.5)", 1.2)]),
        ("at 10:30, a:b", [("at 10:30, a:b", 1.0)]),
        ("(at 10:30)", [("at 10", 30.0)]),
        ("a cat:1.3", [("a cat:1.3", 1.0)]),
        ("a cat:1.3)", [("a cat:1.3)", 1.0)]),
        ("(cat:high)", [("cat:high", 1.1)]),
        ("a cat) and] a dog", [("a cat) and] a dog", 1.0)]),
        ("a (cat and a dog", [("a ", 1.0), ("cat and a dog", 1.1)]),
        ("([cat)]", [("cat)", 1.0)]),
        ("(a\nb:2)", [("a\nb", 2.0)]),
        ("()", [("", 1.0)]),
    ],
)  # fmt: skip
def test_prompt_is_read_as_pieces_with_weights(prompt, pieces):
    found = prompts.parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    np.testing.assert_allclose([weight for _, weight in found], [weight for _, weight in pieces])


def test_any_string_is_a_prompt():
    for text in clip_words.strings(1500, seed=3):
        assert all(np.isfinite(weight) for _, weight in prompts.parse(text))


def test_plain_prompts_give_the_ids_of_the_tokenizer():
    texts = ["a photo of the cat", "", "word " * 74, "cat's dog, sunset!"]
    assert prompts.count_chunks(TOKENS, texts[:2]) == 1
    for tokens in (TOKENS, SECOND):
        chunks = prompts.chunk(tokens, texts[:2], 1)
        np.testing.assert_array_equal(chunks.ids[:, 0], tokenizer.tokenize(tokens, texts[:2]))
        np.testing.assert_array_equal(chunks.weights, 1)


def test_weights_stand_at_the_tokens_of_their_words():
    ids, weights = prompts.tokenize(TOKENS, "a (photo of:1.5) the [cat]")
    plain = tokenizer.encode(TOKENS, "a photo of the cat")
    assert ids == plain
    np.testing.assert_allclose(weights, [1, 1.5, 1.5, 1, 1 / 1.1])
    chunks = prompts.chunk(TOKENS, ["a (photo of:1.5) the [cat]"], 1)
    np.testing.assert_allclose(chunks.weights[0, 0, :8], [1, 1, 1.5, 1.5, 1, 1 / 1.1, 1, 1])
    assert (chunks.weights[0, 0, 6:] == 1).all()  # the last token and the padding


def test_brackets_are_text_without_weighting():
    ids, weights = prompts.tokenize(TOKENS, "a (cat:1.5)", weighting=False)
    assert ids == tokenizer.encode(TOKENS, "a (cat:1.5)")
    assert set(weights) == {1.0}


@pytest.mark.parametrize(("count", "num_chunks"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_chunks_hold_75_tokens_each(count, num_chunks):
    text = "cat " * count
    assert prompts.count_chunks(TOKENS, ["a", text]) == num_chunks
    chunks = prompts.chunk(TOKENS, [text], num_chunks)
    assert chunks.ids.shape == chunks.weights.shape == (1, num_chunks, 77)
    assert (chunks.ids[0, :, 0] == TOKENS.bos_id).all()
    (cat,) = tokenizer.encode(TOKENS, "cat")
    assert (chunks.ids == cat).sum() == count


def test_shorter_texts_are_filled_up_with_empty_chunks():
    chunks = prompts.chunk(SECOND, ["cat " * 80, "the (dog:2)"], 2)
    np.testing.assert_array_equal(chunks.ids[1, 1], tokenizer.tokenize(SECOND, [""])[0])
    np.testing.assert_array_equal(chunks.ids[1, 0], tokenizer.tokenize(SECOND, ["the dog"])[0])
    assert chunks.weights[1].max() == 2


@pytest.mark.parametrize("prompt", [f"(cat:{'9' * 400})", "(" * 200 + "cat", "(cat:-5000)"])
def test_weights_beyond_reason_are_errors(prompt):
    with pytest.raises(ValueError, match="the weight .* of 'cat' is beyond 1000"):
        prompts.tokenize(TOKENS, prompt)


FEW = tokenizer.train(["a red star above a blue ring"], 24)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a red cat", "'cat'"),
        ("a (shiny:1.3) red star [beside] it", "'shiny', 'beside', 'it'"),
        ("a cat and a cat", "'cat', 'and'"),
        ("a red star!", "'!'"),
        ("a " + "x" * 100, "'" + "x" * 40 + "'"),
    ],
)
def test_words_that_a_model_does_not_know_are_named_with_those_that_it_knows(prompt, named):
    with pytest.raises(ValueError, match="does not know") as caught:
        prompts.tokenize(FEW, prompt)
    assert str(caught.value) == (
        f"this model does not know {named}; the words it knows are: a, above, blue, red, ring, star"
    )


def test_brackets_are_unknown_signs_without_weighting():
    ids, weights = prompts.tokenize(FEW, "a (red:1.3) star")
    assert ids == tokenizer.encode(FEW, "a red star")
    np.testing.assert_allclose(weights, [1, 1.3, 1])
    with pytest.raises(ValueError, match=r"does not know '\('"):
        prompts.tokenize(FEW, "a (red) star", weighting=False)


def test_an_empty_prompt_has_no_unknown_words():
    assert prompts.tokenize(FEW, "") == ([], [])
    assert prompts.count_chunks(FEW, ["", "a red ring"]) == 1


def test_models_of_all_words_know_every_prompt():
    assert prompts.tokenize(TOKENS, "a zebra \N{ZEBRA FACE}")[0]


def test_an_error_about_words_stays_readable():
    many = tokenizer.train([f"word{'abcdefghij'[i % 10] * (i + 1)}" for i in range(300)], 24)
    with pytest.raises(ValueError, match="does not know") as caught:
        prompts.tokenize(many, "nothing " + " ".join("q" * i for i in range(1, 60)))
    assert str(caught.value).count("'") == 2 * 20
    assert str(caught.value).split("are: ")[1].count(",") == 199
