# SPDX-License-Identifier: MIT
"""Textual inversion: new words mean their vectors, in every file format, and compile nothing."""

import numpy as np
import pytest
from support import checkpoints, clip_words, compilations
from support.adapters import write

from jaxgen.adapters import embedding_file
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import tokenizer

KNOWN = "cat dog"  # two tokens of the small vocabulary
CALL = {"num_steps": 2, "sampler": "euler", "height": 16, "width": 16, "output": "latent"}
WIDTHS = {"sd1": {"text_encoder": 24}, "xl": {"text_encoder": 16, "text_encoder_2": 24}}


@pytest.fixture(scope="module")
def pipes():
    # an embedding of fewer rows than the default, so that "too many" is cheap to write
    return {
        kind: StableDiffusion(_legacy(checkpoints.checkpoint(kind)), embedding_rows=6)
        for kind in WIDTHS
    }


@pytest.fixture(autouse=True)
def restored(pipes):
    yield
    for pipe in pipes.values():
        pipe.set_embeddings([])


def _legacy(checkpoint):
    """With the end token of published configs, 2, which means "the largest id"."""
    parts = {
        name: part._replace(config=part.config | {"eos_token_id": 2}) if "text" in name else part
        for name, part in checkpoint.components.items()
    }
    return checkpoint._replace(components=parts)


def rows_of(pipe, name, text):
    """The embeddings that a text's tokens have in a text encoder."""
    table = pipe.params[name]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    return np.asarray(table)[tokenizer.encode(pipe.embedder.tokenizers[name], text)]


FORMATS = {
    "of diffusers": ("sd1", "<thing>", {"text_encoder": "<thing>"}),
    "of AUTOMATIC1111": ("sd1", "thing-5", {"text_encoder": "emb_params"}),
    "of XL": ("xl", "thing-5", {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}),
    "of XL, by diffusers": (
        "xl",
        "thing-5",
        {"text_encoder": "text_encoders_0", "text_encoder_2": "text_encoders_1"},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_word_with_the_vectors_of_known_words_means_them(pipes, name, tmp_path):
    kind, word, keys = FORMATS[name]
    pipe = pipes[kind]
    values = {key: rows_of(pipe, encoder, KNOWN) for encoder, key in keys.items()}
    pipe.set_embeddings([write(tmp_path / "thing-5.safetensors", values)])
    expected = pipe.embed([f"a ({KNOWN}:1.2) on the mat"])
    text = pipe.embed([f"a ({word.upper()}:1.2) on the mat"])
    np.testing.assert_array_equal(text.context, expected.context)
    if kind == "xl":  # the state of the end token, though the new ids are larger
        np.testing.assert_array_equal(text.pooled, expected.pooled)
    pipe.set_embeddings([])
    assert (pipe.embed([f"a {word}"]).context != pipe.embed([f"a {KNOWN}"]).context).any()


def test_a_folder_holds_one_file_for_each_text_encoder(pipes, tmp_path):
    pipe = pipes["xl"]
    for encoder, file in embedding_file.IN_FOLDERS.items():
        write(tmp_path / file, {"<thing>": rows_of(pipe, encoder, KNOWN)[0]})
    pipe.set_embeddings([tmp_path])
    texts = pipe.embed(["a <thing>", f"a {KNOWN.split()[0]}"])
    np.testing.assert_array_equal(texts.context[0], texts.context[1])


def test_other_words_compile_nothing_and_leave_other_prompts_alone(pipes, tmp_path):
    pipe = pipes["sd1"]
    plain = pipe("a cat", **CALL)
    rng = np.random.default_rng(0)
    files = [
        write(tmp_path / f"word{n}.safetensors", {"emb_params": rng.normal(0, 1, (n, 24))})
        for n in (1, 3)
    ]
    with compilations.counted() as seconds:
        pictures = []
        for entries in ([files[0]], [(files[1], "word1")], files):
            pipe.set_embeddings(entries)
            pictures.append(pipe("a word1", **CALL))
            np.testing.assert_array_equal(pipe("a cat", **CALL), plain)
    assert len(seconds) == 0
    assert (pictures[0] != pictures[1]).any()
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_words_are_found_whole_and_the_longest_first():
    tokens = tokenizer.build(*clip_words.small_vocabulary(), words=["a", "cat"])
    words = {"<x>": [900], "ted": [901], "ted-2": [902, 903]}
    tokens = tokens._replace(new_words=tokenizer.new_words(words))
    cat = tokenizer.encode(tokens, "cat")
    for text, ids in {
        "<x>": [900],
        "cat<x>cat": [*cat, 900, *cat],
        "TED cat": [901, *cat],
        "ted-2 ted": [902, 903, 901],
    }.items():
        assert tokenizer.encode(tokens, text) == ids
    assert 901 not in tokenizer.encode(tokens, "tedcat teddy _ted 2ted")
    assert tokenizer.unknown_words(tokens, "a <x> ted cat dog") == ["dog"]


def vectors(count, width=24):
    return np.ones((count, width), np.float32)


BAD = {
    "old.pt": ({}, r'pickle.*save_file\(data, "NEW.safetensors"\)'),
    "wide": ({"emb_params": vectors(1, 768)}, "768 numbers.* 24.* for Stable Diffusion 1.x"),
    "wider": ({"<x>": vectors(1, 1024)}, "for Stable Diffusion 2.x"),
    "xl": (
        {"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)},
        "768 and 1280 numbers.*for Stable Diffusion XL",
    ),
    "lora": ({"lora_unet.alpha": np.float32(1)}, "Is it a LoRA"),
    "none": ({"emb_params": vectors(0)}, "expected .vectors, width."),
    "nan": ({"emb_params": vectors(1) * np.nan}, "emb_params holds NaN or infinity"),
    "many": ({"emb_params": vectors(7)}, "have 7 vectors.*room for 6.*embedding_rows=7"),
    "a(b": ({"emb_params": vectors(1)}, "cannot be a word.*another one, as .path, word."),
    "AND": (
        {"emb_params": vectors(1)},
        "'AND' cannot be a word of prompts, in which AND separates",
    ),
    "break": ({"Do BREAK it": vectors(1)}, "in which BREAK separates texts; give another one"),
    "you and me": ({"you AND me": vectors(1)}, "in which AND separates texts; give another one"),
    "two": ({"emb_params": vectors(1), "clip_l": vectors(3)}, "has emb_params and clip_l, both"),
    "own": ({"emb_params": vectors(1), "own": vectors(1)}, "has emb_params and own, both the"),
    "case": ({"<Cat>": vectors(1), "<cat>": vectors(2)}, "do not tell apart.*in any case"),
    "empty": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_one_error(pipes, name, tmp_path):
    values, message = BAD[name]
    pipe = pipes["sd1"]
    good = write(tmp_path / "good.safetensors", {"emb_params": vectors(1)})
    pipe.set_embeddings([good])
    before = pipe.embedder
    file = tmp_path / (name if "." in name else f"{name}.safetensors")
    write(file, values)
    with pytest.raises(ValueError, match=message) as error:
        pipe.set_embeddings([file])
    assert "\n" not in str(error.value)
    assert pipe.embedder is before


def test_files_of_sd_1_do_not_fit_xl(pipes, tmp_path):
    file = write(tmp_path / "a.safetensors", {"emb_params": vectors(1, 768)})
    with pytest.raises(ValueError, match=r"768 numbers.*16 and 24 .*Stable Diffusion 1.x"):
        pipes["xl"].set_embeddings([file])


def test_wrong_lists_are_refused(pipes, tmp_path):
    one = write(tmp_path / "a.safetensors", {"emb_params": vectors(1)})
    two = write(tmp_path / "b.safetensors", {"<x>": vectors(1), "<y>": vectors(1)})
    for entries, message in (
        (one, "give a list"),
        ([(one, 2)], "give a path or .path, word."),
        ([one, (two, "z")], "2 words .<x>, <y>."),
        ([two, (one, "<X>")], "both have the word"),
        ([one, one], "a.safetensors is given twice for 'a'; give it once"),
        ([(write(tmp_path / "i.safetensors", {"x": vectors(1)}, dtype=np.int8))], "type int8; exp"),
        ([(one, "")], "cannot be a word"),
        ([tmp_path], "learned_embeds"),
    ):
        with pytest.raises(ValueError, match=message):
            pipes["sd1"].set_embeddings(entries)
    with pytest.raises(ValueError, match="embedding_rows is -1"):
        StableDiffusion(checkpoints.checkpoint("sd1"), embedding_rows=-1)


def test_the_command_line_names_files_and_words():
    for text, entry in {
        "a/b.safetensors": "a/b.safetensors",
        "a/b.safetensors:<x>": ("a/b.safetensors", "<x>"),
        "someone/thing:cat toy": ("someone/thing", "cat toy"),
        "C:/a.safetensors": "C:/a.safetensors",
        "odd:name.safetensors": "odd:name.safetensors",
        "a.safetensors:": "a.safetensors:",
    }.items():
        assert embedding_file.from_text(text) == entry
