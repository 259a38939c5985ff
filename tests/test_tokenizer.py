# SPDX-License-Identifier: MIT
"""CLIP's tokenizer: ids of transformers (stored), special tokens, lengths, bad files."""

import json
from pathlib import Path

import numpy as np
import pytest
import small_clip

from jaxgen.io import tokenizer

STORED = Path(__file__).parent / "data" / "clip_ids.json"
VOCAB, MERGES = small_clip.small_vocabulary()
BOS, EOS = len(VOCAB) - 2, len(VOCAB) - 1


def _build(pad="<|endoftext|>"):
    # "normalized" as in the special_tokens_map.json of the published checkpoints
    special = {
        role: {"content": f"<|{text}oftext|>", "normalized": True}
        for role, text in (("bos_token", "start"), ("eos_token", "end"), ("unk_token", "end"))
    }
    return tokenizer.build(VOCAB, MERGES, {**special, "pad_token": pad})


@pytest.fixture
def folder(tmp_path):
    tokenizer.write(tmp_path, _build())
    return tmp_path


@pytest.mark.parametrize(("name", "pad"), [("end", "<|endoftext|>"), ("exclamation", "!")])
def test_ids_equal_those_of_transformers(name, pad):
    stored = json.loads(STORED.read_text())
    texts = small_clip.strings(stored["count"])
    tokens = _build(pad)
    wrong = []
    for text, row in zip(texts, stored[name], strict=True):
        full = row + [tokens.pad_id] * (77 - len(row))
        if tokenizer.tokenize(tokens, [text])[0].tolist() != full:
            wrong.append(text)
    assert wrong == []


def test_words_are_merged_to_their_tokens():
    ids = tokenizer.encode(_build(), "Photo of A  CAT")
    assert ids == [VOCAB["photo</w>"], VOCAB["of</w>"], VOCAB["a</w>"], VOCAB["cat</w>"]]


def test_row_is_begin_text_end_padding():
    tokens = _build()
    row = tokenizer.tokenize(tokens, ["a cat"])[0]
    assert row.tolist() == [BOS, VOCAB["a</w>"], VOCAB["cat</w>"], EOS] + [EOS] * 73
    assert row.dtype == np.int32


def test_padding_is_what_the_folder_says(folder):
    config = folder / "special_tokens_map.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "!"}))
    tokens = tokenizer.read(folder)
    assert tokens.pad_id == 0  # although tokenizer_config.json still says <|endoftext|>
    assert tokenizer.tokenize(tokens, [""])[0].tolist() == [BOS, EOS] + [0] * 75


def test_newer_configs_overrule_the_special_tokens_map(folder):
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "pad_token": "!"}
    path.write_text(json.dumps(config))
    assert tokenizer.read(folder).pad_id == EOS  # as special_tokens_map.json says
    token = {"content": "!", "lstrip": False, "normalized": False, "rstrip": False}
    path.write_text(json.dumps({**config, "added_tokens_decoder": {"0": token}}))
    assert tokenizer.read(folder).pad_id == 0


def test_long_text_is_cut_in_rows_and_whole_in_ids():
    tokens = _build()
    ids = tokenizer.encode(tokens, "cat " * 200)
    assert ids == [VOCAB["cat</w>"]] * 200
    assert tokenizer.pad(tokens, ids) == [BOS, *ids[:75], EOS]


def test_lengths_follow_model_max_length(folder):
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 9}))
    assert tokenizer.tokenize(tokenizer.read(folder), ["cat " * 20]).shape == (1, 9)


def test_no_texts_give_no_rows():
    assert tokenizer.tokenize(_build(), []).shape == (0, 77)


def test_half_a_surrogate_pair_is_a_question_mark():
    tokens = _build()
    assert tokenizer.encode(tokens, "cat \ud83d") == tokenizer.encode(tokens, "cat ?")


def test_written_folder_is_read_equal(folder):
    again = tokenizer.read(folder)
    assert again[:4] == _build()[:4]


def test_tokenizer_json_alone_is_enough(folder):
    combined = {
        "added_tokens": [{"id": BOS, "content": "<|startoftext|>", "normalized": True}],
        "model": {"type": "BPE", "vocab": VOCAB, "merges": [list(m) for m in MERGES]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(combined))
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    text = "a photo, of the Cat! <|STARTOFTEXT|>"
    assert tokenizer.encode(tokenizer.read(folder), text) == tokenizer.encode(_build(), text)


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("vocab.json", "[1, 2]", "expected an object"),
        ("vocab.json", '{"a": 0, "a": 1}', "given twice"),
        ("vocab.json", '{"a": -1}', "token ids must be integers"),
        ("vocab.json", '{"a": 10000000000}', "token ids must be integers"),
        ("vocab.json", '{"a": true}', "token ids must be integers"),
        ("vocab.json", '{"a": 1, "b": 1}', "same id"),
        ("vocab.json", '{"a": 1}', "lacks the special tokens"),
        ("vocab.json", " " * (2**24 + 1), "larger than"),
        ("merges.txt", "a b c\n", "not a merge"),
        ("merges.txt", "no such\n", "do not fit"),
        ("merges.txt", b"\xff\xfe", "not UTF-8"),
        ("tokenizer_config.json", '{"model_max_length": 1}', "model_max_length is 1"),
        ("special_tokens_map.json", '{"pad_token": "<pad>"}', "lacks the special tokens <pad>"),
        ("special_tokens_map.json", '{"pad_token": 7}', "pad_token is 7"),
        ("added_tokens.json", '{"<cat-toy>": 700}', "adds the tokens <cat-toy>"),
    ],
)
def test_bad_file_is_one_clear_error(folder, file, content, match):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=match):
        tokenizer.read(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected vocab\.json and merges\.txt"):
        tokenizer.read(tmp_path)
