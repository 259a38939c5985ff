# SPDX-License-Identifier: MIT
"""Several texts for one image: AND, BREAK, texts that change with the step; all of it data."""

import re
import time

import numpy as np
import pytest
from support import clip_words, compilations, pipeline_cases

from jaxgen.diffusion import config
from jaxgen.stable_diffusion.request import Request
from jaxgen.stable_diffusion.texts import notation, phases, prompts
from jaxgen.weights import tokenizer

CALL = {
    "num_steps": 4,
    "sampler": "euler",
    "output": "latent",
    "height": 16,
    "width": 16,
    "seed": 3,
}
TOKENS = tokenizer.build(*clip_words.small_vocabulary())


@pytest.fixture(scope="module")
def pipe():
    return pipeline_cases.pipeline("sd1")


def texts_of(prompt, num_steps=10):
    (part,) = notation.parts_of(prompt)
    return [notation.text_at(part.nodes, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("prompt", "runs"),  # texts with the number of steps that they hold
    [
        ("a (cat:1.2) [dog] \\[x|y\\]", [("a (cat:1.2) [dog] \\[x|y\\]", 10)]),
        ("a [cat:dog:0.3] sits", [("a cat sits", 3), ("a dog sits", 7)]),
        ("a [cat:dog:4]", [("a cat", 4), ("a dog", 6)]),
        ("a[ cat:0.5]", [("a", 5), ("a cat", 5)]),
        ("a[ cat::0.5]", [("a cat", 5), ("a", 5)]),
        ("[a:b:0.0][c:d:1.0]", [("bc", 10)]),
        ("[a:b:99]", [("a", 10)]),
        ("[a:[b:c:0.6]:0.2]", [("a", 2), ("b", 4), ("c", 4)]),
        ("[(a:1.3):((b)): .5 ]", [("(a:1.3)", 5), ("((b))", 5)]),
        ("at 10:30 [x]: y|z", [("at 10:30 [x]: y|z", 10)]),
        ("[a:b] (c [d:2)", [("[a:b] (c [d:2)", 10)]),
        ("[a:b:c]", [("[a:b:c]", 10)]),
        ("[a\\:b|c:0.3]", None),
    ],
)
def test_texts_change_when_they_should(prompt, runs):
    if runs is not None:
        assert texts_of(prompt) == [text for text, count in runs for _ in range(count)]


def test_texts_take_turns():
    assert texts_of("a [cat|dog|]", 4) == ["a cat", "a dog", "a ", "a cat"]
    assert texts_of("[[a|b]|[c:d:2]]", 4) == ["a", "c", "a", "d"]


def test_and_joins_prompts_with_weights():
    parts = notation.parts_of("a cat:1.5 AND [b:c:0.5] AND x:-.5 AND SAND (d:2)")
    texts = [notation.text_at(part.nodes, 0, 2).strip() for part in parts]
    assert texts == ["a cat", "b", "x", "SAND (d:2)"]
    assert [part.weight for part in parts] == [1.5, 1.0, -0.5, 1.0]
    (alone,) = notation.parts_of("a cat:1.5")
    assert alone == notation.Part(["a cat:1.5"], 1.0)


@pytest.mark.parametrize(
    ("prompt", "place", "message"),
    [
        ("a [b:c:1.5]", 8, "cannot change at 1.5"),
        ("a [b:c:-2]", 8, "cannot change at -2"),
        ("a [b:c:d:0.5]", 3, "expected .from:to:when."),
        ("a [b|c", 3, "never closed"),
        ("a [b:c:0.5", 3, "never closed"),
        ("a AND ", 6, "one of them is empty"),
        ("AND a", 1, "one of them is empty"),
        ("a AND b:9999", 8, "weight 9999 is beyond 1000"),
        ("x AND a [b|c", 9, "never closed"),
        ("[a|" * 60 + "]" * 60, 122, "more than 40 deep"),
    ],
)
def test_what_it_cannot_mean_is_an_error_with_its_position(pipe, prompt, place, message):
    with pytest.raises(ValueError, match=f"at character {place} .*{message}"):
        notation.parts_of(prompt)
    with pytest.raises(ValueError, match=message):
        pipe(prompt, **CALL)
    batch = phases.phases([prompt], [None], True, False, table(), 4)  # weighting=False: text
    assert batch.positives == [[prompt]]


LONG = {
    "brackets of emphasis": "(" * 8000,
    "open brackets": "[a:" * 8000,
    "open emphasis": "(a: [a " * 4000,
    "nested emphasis": "(a" * 8000 + ":1)" * 8000,
    "colons": "(a" + ":" * 20000,
    "spaces": "a" + " " * 20000 + "b",
    "spaces after AND": "a AND b" + " " * 20000 + "c",
    "digits": "[a:" + "1" * 20000 + "x]",
    "digits after AND": "a AND b:" + "1" * 20000 + "x",
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_prompt_takes_time_that_grows_with_its_length_alone(name):
    start = time.process_time()
    parts = notation.parts_of(LONG[name])
    for text in (notation.text_at(part.nodes, 0, 2) for part in parts):
        prompts.parse(text)
        prompts.tokenize(TOKENS, text)
    assert time.process_time() - start < 2  # squared, each takes from 3 to 40 s


@pytest.mark.parametrize(
    "text", ["a \n BREAK  b", "BREAK BREAK", " a BREAKS ", "a\u3000BREAK, b", "aBREAK", "BREAK "]
)
def test_spaces_beside_break_belong_to_no_text(text):
    parts = re.split(r"\s*\bBREAK\b\s*", text)  # the definition, which takes squared time
    chunks = prompts.chunk(TOKENS, [text], len(parts))
    np.testing.assert_array_equal(chunks.ids[0], tokenizer.tokenize(TOKENS, parts))


def table(name="euler", num_steps=4, **options):
    return config.from_config({}, name)(num_steps, **options)


def test_any_string_is_read_or_refused():
    refused = 0
    for text in clip_words.strings(1500, seed=5):
        try:
            parts = notation.parts_of(text)
        except ValueError:
            refused += 1
        else:
            assert all(isinstance(notation.text_at(p.nodes, 1, 4), str) for p in parts)
    assert refused < 750


def test_every_row_of_a_step_has_the_texts_of_its_step():
    for name in ("euler", "heun"):
        own = table(name)
        found = phases.phases(["[a:b:0.5]", "c"], ["d", None], True, True, own, 4)
        assert (found.negatives, found.positives) == ([["d", None]], [["a", "c"], ["b", "c"]])
        steps = [0, 1, 2, 3] if name == "euler" else [0, 0, 1, 1, 2, 2, 3]
        expected = [[[0, 2 if step >= 2 else 1], [0, 1]] for step in steps]
        np.testing.assert_array_equal(found.index[: len(steps)], expected)
    joined = phases.phases(["a:2 AND b AND c", "d"], ["", ""], False, True, own, 4)
    assert joined.positives == [["a", "d"], [" b ", "d"], [" c", "d"]]
    np.testing.assert_array_equal(joined.weights, [[2, 1, 1], [1, 0, 0]])
    plain = phases.phases(["a"], ["b"], True, True, own, 4)
    assert plain.index is None
    assert plain.weights is None


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_switch_gives_the_steps_of_each_text(kind):
    """Two calls stitched together by hand at the moment of the change."""
    pipe = pipeline_cases.pipeline(kind)
    switched = pipe("a [cat:dog:0.5]", "x", **CALL)
    first, second = (pipe.inputs(Request(text, "x", **CALL)) for text in ("a cat", "a dog"))
    prepared, state = pipe.programs.begin(pipe.params["unet"], first)
    other, _ = pipe.programs.begin(pipe.params["unet"], second)
    for i in range(4):
        inputs, own = (first, prepared) if i < 2 else (second, other)
        state, _ = pipe.programs.step(pipe.params["unet"], inputs, own, np.int32(i), state)
    np.testing.assert_allclose(switched, state.latents[0], rtol=1e-4, atol=1e-4)


def test_equal_prompts_joined_by_and_are_one_of_the_sum_of_their_weights(pipe):
    # eps = u + s (w1 (c - u) + w2 (c - u)), so scale 3 with weights 0.5 and 1.5 is scale 6
    joined = pipe("a cat:0.5 AND a cat:1.5", "a lake", guidance_scale=3.0, **CALL)
    alone = pipe("a cat", "a lake", guidance_scale=6.0, **CALL)
    np.testing.assert_allclose(joined, alone, rtol=1e-4, atol=1e-4)
    # without guidance the parts still need the negative text
    two = pipe("a cat AND a dog", guidance_scale=1.0, **CALL)
    assert np.abs(two - pipe("a cat", guidance_scale=1.0, **CALL)).max() > 1e-2


def test_prompts_of_equal_size_compile_nothing(pipe):
    def draw(prompt, **options):
        pipe(prompt, **CALL | options)

    draw("[a cat:a dog:0.5]")
    draw("a cat AND a dog")
    with compilations.counted() as seconds:
        draw("[a lake|a dog]", num_steps=5)
        draw("a [red:blue:2] dog", sampler="heun", guidance_scale=2.0)
        draw("[a photo:0.25]", sampler="ddim")
        draw("a lake:0.3 AND the dog:-1", num_steps=6)
    assert len(seconds) == 0


def test_break_ends_a_chunk():
    chunks = prompts.chunk(TOKENS, ["a cat BREAK a dog", "a (cat BREAK a dog:1.5)", "BREAK"], 2)
    alone = prompts.chunk(TOKENS, ["a cat", "a dog", ""], 1)
    np.testing.assert_array_equal(chunks.ids[0], alone.ids[:2, 0])
    np.testing.assert_array_equal(chunks.ids[1], alone.ids[:2, 0])
    assert (chunks.weights[1] == 1.5).sum() == 3
    np.testing.assert_array_equal(chunks.ids[2], alone.ids[[2, 2], 0])
    assert prompts.count_chunks(TOKENS, ["cat " * 80 + "BREAK x"]) == 3
    text = prompts.chunk(TOKENS, ["a BREAK b"], 1, weighting=False)
    np.testing.assert_array_equal(text.ids[0], tokenizer.tokenize(TOKENS, ["a BREAK b"]))


def test_and_is_refused_where_it_means_nothing(pipe):
    with pytest.raises(ValueError, match="negative_prompt 'a AND b' has an AND"):
        pipe("a", "a AND b", **CALL)
