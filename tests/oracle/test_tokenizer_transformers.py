# SPDX-License-Identifier: MIT
"""The tokenizer against transformers' CLIPTokenizer, on several thousand strings.

With JAXGEN_CLIP_BPE=path/to/bpe_simple_vocab_16e6.txt.gz (the merge list in openai/CLIP) the real
vocabulary of Stable Diffusion is compared too.
"""

import gzip
import json
import os

import pytest

transformers = pytest.importorskip("transformers")

from make_clip_ids import write_folder  # noqa: E402
from support import clip_words  # noqa: E402

from jaxgen.weights import tokenizer  # noqa: E402

pytestmark = pytest.mark.oracle

TEXTS = clip_words.strings(6000, seed=1)
PADS = ["<|endoftext|>", "!"]


def _assert_ids_equal(ours, reference):
    theirs = reference(TEXTS, add_special_tokens=False, truncation=False, verbose=False).input_ids
    wrong = [t for t, ids in zip(TEXTS, theirs, strict=True) if tokenizer.encode(ours, t) != ids]
    assert wrong == []
    rows = reference(TEXTS, padding="max_length", truncation=True, max_length=77).input_ids
    assert tokenizer.tokenize(ours, TEXTS).tolist() == rows


@pytest.fixture(params=["small", "real"])
def vocabulary(request):
    if request.param == "small":
        return clip_words.small_vocabulary()
    path = os.environ.get("JAXGEN_CLIP_BPE")
    if not path:
        pytest.skip("JAXGEN_CLIP_BPE does not name CLIP's merge list")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    tokens = clip_words.byte_characters()
    tokens += [token + "</w>" for token in tokens]
    tokens += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == 49408
    return {token: i for i, token in enumerate(tokens)}, merges


@pytest.mark.parametrize("pad", PADS)
def test_published_files_give_the_ids_of_transformers(vocabulary, pad, tmp_path):
    write_folder(tmp_path, *vocabulary, pad)
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = tokenizer.read(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.max_length) == (
        reference.bos_token_id,
        reference.eos_token_id,
        reference.pad_token_id,
        reference.model_max_length,
    )
    _assert_ids_equal(ours, reference)


@pytest.mark.parametrize("pad", PADS)
def test_newer_files_give_the_ids_of_transformers(vocabulary, pad, tmp_path):
    """XL's tokenizer_config.json lists its special tokens in `added_tokens_decoder`."""
    write_folder(tmp_path, *vocabulary, pad)
    path = tmp_path / "tokenizer_config.json"
    ids = {0: "!", len(vocabulary[0]) - 2: tokenizer.BOS, len(vocabulary[0]) - 1: tokenizer.EOS}
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {
        str(i): {"content": text, "normalized": text == tokenizer.BOS, **flags}
        for i, text in ids.items()
        if i or pad == "!"
    }
    config = {**json.loads(path.read_text()), "pad_token": pad, "added_tokens_decoder": decoder}
    path.write_text(json.dumps(config))
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    _assert_ids_equal(tokenizer.read(tmp_path), reference)


def test_a_padding_token_that_was_added_has_the_id_of_transformers(tmp_path):
    write_folder(tmp_path, *clip_words.small_vocabulary(), PADS[0])
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    reference.add_special_tokens({"pad_token": "<pad>"})
    reference.save_pretrained(tmp_path / "saved")
    ours = tokenizer.read(tmp_path / "saved")
    assert ours.pad_id == reference.pad_token_id == len(reference) - 1
    theirs = reference(TEXTS[:20], padding="max_length", truncation=True, max_length=77).input_ids
    assert tokenizer.tokenize(ours, TEXTS[:20]).tolist() == theirs


def test_words_that_training_added_give_the_ids_of_transformers(tmp_path):
    vocab, merges = clip_words.small_vocabulary()
    write_folder(tmp_path, vocab, merges, PADS[0])
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    reference.add_tokens(["<cat-toy>", "Sks", "<cat-toy>_1"])
    reference.save_pretrained(tmp_path / "saved")
    ours = tokenizer.read(tmp_path / "saved")
    texts = ["a <cat-toy> on a mat", "A<CAT-TOY>_1x", "sks SKS risks", "<cat-toy>_", *TEXTS[:50]]
    theirs = reference(texts, add_special_tokens=False).input_ids
    assert [tokenizer.encode(ours, text) for text in texts] == theirs
    (tmp_path / "ours").mkdir()
    tokenizer.write(tmp_path / "ours", ours)
    again = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
    assert again(texts, add_special_tokens=False).input_ids == theirs


@pytest.mark.parametrize("pad", PADS)
def test_files_saved_by_transformers_give_its_ids(vocabulary, pad, tmp_path):
    write_folder(tmp_path, *vocabulary, pad)
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    reference.save_pretrained(tmp_path / "saved")
    _assert_ids_equal(tokenizer.read(tmp_path / "saved"), reference)


@pytest.mark.parametrize("pad", PADS)
def test_transformers_reads_our_files_alike(vocabulary, pad, tmp_path):
    write_folder(tmp_path, *vocabulary, pad)
    ours = tokenizer.read(tmp_path)
    (tmp_path / "ours").mkdir()
    tokenizer.write(tmp_path / "ours", ours)
    _assert_ids_equal(ours, transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours"))
