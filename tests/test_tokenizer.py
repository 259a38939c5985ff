# SPDX-License-Identifier: MIT
"""CLIP's tokenizer: ids of transformers (stored), special tokens, lengths, bad files."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import clip_words

from jaxgen.weights import tokenizer

STORED = Path(__file__).parent / "data" / "clip_ids.json"
VOCAB, MERGES = clip_words.small_vocabulary()
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
    texts = clip_words.strings(stored["count"])
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


def test_files_as_windows_saves_them_are_the_same(folder):
    plain = tokenizer.read(folder)
    for path in folder.iterdir():  # a byte order mark, and both signs at the end of a line
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    read = tokenizer.read(folder)
    assert (read.vocab, read.merges, read.special) == (plain.vocab, plain.merges, plain.special)


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
        ("tokenizer_config.json", '{"model_max_length": 2}', "model_max_length is 2; expected 3"),
        ("merges.txt", "#version: 0.2\n", "tokens of the vocabulary come from no merge"),
        ("special_tokens_map.json", '{"pad_token": "<pad>"}', "lacks the special tokens <pad>"),
        ("special_tokens_map.json", '{"pad_token": 7}', "pad_token is 7"),
        ("added_tokens.json", '{"<cat-toy>": 0}', "two tokens of the vocabulary have the same id"),
        ("added_tokens.json", '{"<cat-toy>": "700"}', "token ids must be integers"),
        ("tokenizer_config.json", '{"known_words": "cat"}', "known_words is not a list of words"),
        ("tokenizer_config.json", '{"known_words": ["cat", 7]}', "is not a list of words"),
        ("tokenizer_config.json", '{"known_words": {"cat": 1}}', "is not a list of words"),
    ],
)
def test_bad_file_is_one_clear_error(folder, file, content, match):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=match):
        tokenizer.read(folder)


@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder"])
def test_words_that_training_added_are_found_whole_and_written(folder, tmp_path, form):
    number = len(VOCAB)
    if form == "added_tokens.json":
        (folder / form).write_text(json.dumps({"<Cat-toy>": number}))
    else:
        path = folder / "tokenizer_config.json"
        decoder = {str(number): {"content": "<Cat-toy>", "normalized": True}}
        path.write_text(json.dumps({**json.loads(path.read_text()), form: decoder}))
    tokens = tokenizer.read(folder)
    cat = VOCAB["cat</w>"]
    assert tokenizer.encode(tokens, "Cat <cat-toy>cat") == [cat, number, cat]
    (tmp_path / "again").mkdir()
    tokenizer.write(tmp_path / "again", tokens)
    again = tokenizer.read(tmp_path / "again")
    assert tokenizer.encode(again, "Cat <cat-toy>cat") == [cat, number, cat]
    assert again.vocab == tokens.vocab


@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder"])
def test_a_padding_token_may_stand_among_the_added_ones_alone(folder, tmp_path, form):
    number, path = len(VOCAB), folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    if form == "added_tokens.json":
        (folder / form).write_text(json.dumps({"<pad>": number}))
    else:
        config[form] = {str(number): {"content": "<pad>", "normalized": False}}
    path.write_text(json.dumps(config))
    tokens = tokenizer.read(folder)
    assert tokenizer.tokenize(tokens, ["cat"])[0].tolist()[-1] == number
    (tmp_path / "again").mkdir()
    tokenizer.write(tmp_path / "again", tokens)
    assert tokenizer.read(tmp_path / "again").pad_id == number


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected vocab\.json and merges\.txt"):
        tokenizer.read(tmp_path)


# trained vocabularies

CAPTIONS = [
    "a large red star above a small blue ring on white",
    "an orange heart, under the moon!",
    "It's a Café at 10:30",
]


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train(CAPTIONS, 24)


def test_every_word_of_the_training_text_becomes_one_token(trained):
    for word in ("a", "large", "red", "star", "an", "orange", "heart", "under", "moon"):
        assert tokenizer.encode(trained, word) == [trained.vocab[f"{word}</w>"]]
    ids = tokenizer.encode(trained, CAPTIONS[0])
    assert ids == [trained.vocab[f"{word}</w>"] for word in CAPTIONS[0].split()]
    assert len(tokenizer.encode(trained, "café")) == 1  # of five bytes


def test_a_trained_vocabulary_is_laid_out_as_clips(trained):
    """Bytes, bytes at the end of a word, merges in their order, first and last token."""
    tokens = sorted(trained.vocab, key=trained.vocab.get)
    assert list(trained.vocab.values()) == list(range(len(tokens)))
    assert set(tokens[:256]) == set(clip_words.byte_characters())
    assert tokens[256:512] == [token + "</w>" for token in tokens[:256]]
    assert tokens[512:-2] == list(dict.fromkeys(a + b for a, b in trained.merges))
    assert tokens[-2:] == [tokenizer.BOS, tokenizer.EOS]
    assert (trained.max_length, trained.pad_id) == (24, trained.eos_id)


def test_the_most_frequent_pair_is_merged_first():
    """Sennrich et al. 2016, algorithm 1, by hand: "n</w>" has 8, then "i" + "n</w>" 6."""
    texts = ["in"] * 3 + ["bin"] * 2 + ["tin"] + ["un"] * 2
    merges = tokenizer.train(texts, 24).merges
    assert merges[0] == ("i", "n</w>")  # 6 of them; ("u", "n</w>") and ("b", "in</w>") have 2
    assert set(merges) == {("i", "n</w>"), ("b", "in</w>"), ("u", "n</w>"), ("t", "in</w>")}
    assert merges[-1] == ("t", "in</w>")  # the only one that occurs once


def test_words_outside_the_vocabulary_still_have_ids(trained):
    assert len(tokenizer.encode(trained, "zebra")) > 1
    assert len(tokenizer.encode(trained, "\N{ZEBRA FACE}")) == 4  # its bytes


def test_a_vocabulary_is_bounded_and_holds_all_bytes():
    bounded = tokenizer.train(CAPTIONS, 24, vocab_size=520)
    assert len(bounded.vocab) == 520
    assert len(bounded.merges) == 6
    with pytest.raises(ValueError, match="vocabulary of 513 cannot hold 514 bytes and marks"):
        tokenizer.train(CAPTIONS, 24, vocab_size=513)


def test_training_twice_gives_the_same_tokenizer(trained):
    assert tokenizer.train(CAPTIONS, 24)[:4] == trained[:4]


def test_words_that_training_did_not_show_are_named_in_their_order(trained):
    assert tokenizer.unknown_words(trained, CAPTIONS[0].upper()) == []
    assert tokenizer.unknown_words(trained, "A zebra's red, red moon; 9") == ["zebra", ";", "9"]
    assert tokenizer.unknown_words(_build(), "a zebra \N{ZEBRA FACE}") == []


def test_known_words_are_written_and_read(trained, tmp_path):
    tokenizer.write(tmp_path, trained)
    again = tokenizer.read(tmp_path)
    assert again.words == trained.words
    assert {"large", "café", ",", "'s", "1", ":"} <= again.words
    assert again[:4] == trained[:4]
    assert tokenizer.tokenize(again, CAPTIONS).tolist() == (
        tokenizer.tokenize(trained, CAPTIONS).tolist()
    )


def test_folders_that_name_no_words_know_all(folder):
    assert "known_words" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer.read(folder).words is None


@pytest.mark.parametrize("lines", [1, 2, 10, len(MERGES)])
def test_merges_that_are_cut_at_a_line_end_are_refused(folder, lines):
    path = folder / "merges.txt"
    kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:-lines]
    path.write_text("".join(kept), encoding="utf-8")
    with pytest.raises(ValueError, match="come from no merge, first .*; the merges are incomplete"):
        tokenizer.read(folder)
