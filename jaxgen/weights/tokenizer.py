# SPDX-License-Identifier: MIT
"""CLIP's byte-pair encoding, from `vocab.json` and `merges.txt`: text -> token ids.

Sennrich et al. 2016 (arXiv:1508.07909) as CLIP uses it (arXiv:2103.00020, section 2.4): text in
lower case is split into words, and each word's bytes are merged pair by pair. Ids equal those of
transformers' CLIPTokenizer.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from jaxgen import files
from jaxgen.weights import vocabulary
from jaxgen.weights.vocabulary import MAX_TOKENS

BOS, EOS = vocabulary.BOS, vocabulary.EOS
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
MIN_LENGTH = 3  # of a prompt in tokens: the first, the last, and one between them
WORDS_KEY = "known_words"  # in tokenizer_config.json, jaxgen's own; transformers passes over it


class NewWords(NamedTuple):
    """Finds added words in texts."""

    pattern: re.Pattern[str]  # its group k + 1 is word k
    ids: list[list[int]]


class Tokenizer(NamedTuple):
    """A vocabulary, its merges, and what a folder says of special tokens and lengths."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    special: dict[str, dict[str, Any]]  # "pad_token" -> {"content": "!", "normalized": False, ...}
    max_length: int  # with the first and last token; 77 in every Stable Diffusion
    encoder: tokenizers.Tokenizer
    words: frozenset[str] | None = None  # all that the model was trained on; None is any text
    new_words: NewWords | None = None  # beyond the vocabulary
    # words that training added to the vocabulary, with the flags of AddedToken
    added: Mapping[str, dict[str, Any]] = MappingProxyType({})

    @property
    def bos_id(self) -> int:
        return self.vocab[self.special["bos_token"]["content"]]

    @property
    def eos_id(self) -> int:
        return self.vocab[self.special["eos_token"]["content"]]

    @property
    def pad_id(self) -> int:
        return self.vocab[self.special["pad_token"]["content"]]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text of any length, without first, last and padding tokens."""
    ids: list[int] = []
    for plain, ids_of_word in _cut(tokenizer.new_words, _as_utf8(text)):
        ids += tokenizer.encoder.encode(plain, add_special_tokens=False).ids + ids_of_word
    return ids


def unknown_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """Words and signs of a text that the model was not trained on, in their order."""
    known = tokenizer.words
    if known is None:
        return []
    plain = [part for part, _ in _cut(tokenizer.new_words, _as_utf8(text))]
    return [word for part in plain for word in _split(tokenizer.encoder, part) if word not in known]


def new_words(ids: Mapping[str, list[int]]) -> NewWords | None:
    """These words with their ids; None for none.

    A word is found in any case and the longest first, but not inside of another word.
    """
    words = sorted(ids, key=len, reverse=True)
    if not words:
        return None
    pattern = "|".join(_alone(word) for word in words)
    return NewWords(re.compile(pattern, re.IGNORECASE), [list(ids[word]) for word in words])


def pad(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """First token, ids, last token, then padding up to max_length; ids that do not fit are cut."""
    kept = list(ids[: tokenizer.max_length - 2])
    row = [tokenizer.bos_id, *kept, tokenizer.eos_id]
    return row + [tokenizer.pad_id] * (tokenizer.max_length - len(row))


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Texts as a text encoder takes them, cut or padded: [B] -> int32 [B, max_length]."""
    rows = [pad(tokenizer, encode(tokenizer, text)) for text in texts]
    return np.asarray(rows, np.int32).reshape(len(rows), tokenizer.max_length)


def build(
    vocab: dict[str, int],
    merges: Sequence[tuple[str, str]],
    special: dict[str, str | dict[str, Any]] | None = None,
    max_length: int = 77,
    words: Iterable[str] | None = None,
    added: Mapping[str, dict[str, Any]] | None = None,
) -> Tokenizer:
    """A tokenizer from its parts; `special` overrides CLIP's tokens by role, e.g. pad_token="!".

    words: all that a model knows, for models that know few. added: words of the vocabulary that are
    found whole in a text, with the flags of AddedToken. Raises ValueError when the parts do
    not belong together.
    """
    defaults = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    tokens = {role: _token(value, role) for role, value in {**defaults, **(special or {})}.items()}
    missing = sorted({t["content"] for t in tokens.values()} - vocab.keys())
    if missing:
        raise ValueError(
            f"the vocabulary lacks the special tokens {files.printable(', '.join(missing))}"
        )
    if not MIN_LENGTH <= max_length <= MAX_TOKENS:
        raise ValueError(f"model_max_length is {max_length}; expected {MIN_LENGTH} to {MAX_TOKENS}")
    whole = {
        word: _token({**flags, "content": word}, word) for word, flags in (added or {}).items()
    }
    encoder = _encoder(vocab, merges, tokens)
    encoder.add_tokens([tokenizers.AddedToken(**token) for token in whole.values()])
    known = None if words is None else frozenset(words)
    return Tokenizer(dict(vocab), list(merges), tokens, max_length, encoder, known, added=whole)


def train(texts: Iterable[str], max_length: int, vocab_size: int = 4096) -> Tokenizer:
    """A tokenizer in CLIP's format with merges learned from texts; it knows their words alone.

    The vocabulary is as CLIP's: every byte, every byte at the end of a word, the merges in their
    order, first and last token; `vocab_size` bounds it. Sennrich et al. 2016, algorithm 1.
    """
    texts = list(texts)
    ends = "</w>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [BOS, EOS, *alphabet, *(letter + ends for letter in alphabet)]
    if vocab_size < len(base):
        raise ValueError(f"a vocabulary of {vocab_size} cannot hold {len(base)} bytes and marks")
    bare = build({token: i for i, token in enumerate(base)}, []).encoder
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=base,
        end_of_word_suffix=ends,
    )
    bare.train_from_iterator(texts, trainer)
    learned = json.loads(bare.to_str())["model"]["merges"]
    merges = [(a, b) for a, b in learned]
    tokens = base[2:] + list(dict.fromkeys(a + b for a, b in merges)) + [BOS, EOS]
    vocab = {token: i for i, token in enumerate(tokens)}
    words = {word for text in set(texts) for word in _split(bare, text)}
    return build(vocab, merges, max_length=max_length, words=words)


def read(folder: Path, special: dict[str, str] | None = None) -> Tokenizer:
    """The tokenizer in a folder: vocab.json and merges.txt, or only tokenizer.json.

    `special` overrides the folder's special tokens. Raises ValueError when files are missing,
    malformed, too large or do not belong together.
    """
    with files.one_error(folder):
        return _read(Path(folder), special or {})


def _read(folder: Path, special: dict[str, str]) -> Tokenizer:
    combined = vocabulary.read_optional(folder / "tokenizer.json", files.INDEX_BYTES)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = files.read_object(folder / "vocab.json", files.INDEX_BYTES)
        merges = vocabulary.read_merges(folder / "merges.txt")
    elif combined:
        vocab, merges = vocabulary.read_combined(combined, folder / "tokenizer.json")
    else:
        raise ValueError(
            f"no tokenizer in {folder}: expected vocab.json and merges.txt, or tokenizer.json"
        )
    config = vocabulary.read_optional(folder / "tokenizer_config.json")
    roles, added, special_ids = vocabulary.special_tokens(folder, config, combined)
    ids: dict[str, Any] = {word: token.get("id") for word, token in added.items()}
    vocab = {**special_ids, **vocab, **ids}
    vocabulary.check(vocab, folder)
    max_length = config.get("model_max_length", 77)
    if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length > MAX_TOKENS:
        max_length = 77  # "no limit" is written as 1e30; the text encoders have 77 positions
    tokens = build(vocab, merges, roles | special, max_length, _words(config), added)
    marks = {BOS, EOS, *(token["content"] for token in tokens.special.values()), *tokens.added}
    vocabulary.check_reached(vocab, merges, marks)
    return tokens


def write(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the files that diffusers folders hold, into an existing folder."""
    merges = "".join(f"{a} {b}\n" for a, b in tokenizer.merges)
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": tokenizer.max_length,
        "tokenizer_class": "CLIPTokenizer",
        **{role: token["content"] for role, token in tokenizer.special.items()},
        **({} if tokenizer.words is None else {WORDS_KEY: sorted(tokenizer.words)}),
    }
    own = {token: i for token, i in tokenizer.vocab.items() if token not in tokenizer.added}
    vocab = json.dumps(own, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(files.dumps(config), encoding="utf-8")
    if tokenizer.added:
        ids = {word: tokenizer.vocab[word] for word in tokenizer.added}
        (folder / "added_tokens.json").write_text(files.dumps(ids), encoding="utf-8")
    special = files.dumps(tokenizer.special)
    (folder / "special_tokens_map.json").write_text(special, encoding="utf-8")


def _cut(words: NewWords | None, text: str) -> Iterator[tuple[str, list[int]]]:
    """The other parts of a text, each with the ids of the new word that follows it."""
    end = 0
    if words is not None:
        for match in words.pattern.finditer(text):
            yield text[end : match.start()], words.ids[(match.lastindex or 1) - 1]
            end = match.end()
    yield text[end:], []


def _alone(word: str) -> str:
    """A pattern of the word where no letter or digit continues it."""
    before, after = (re.match(r"\w", sign) is not None for sign in (word[0], word[-1]))
    return r"(?<!\w)" * before + f"({re.escape(word)})" + r"(?!\w)" * after


def _encoder(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], special: dict[str, dict]
) -> tokenizers.Tokenizer:
    unk = special["unk_token"]["content"]
    try:
        model = models.BPE(vocab, list(merges), unk_token=unk, end_of_word_suffix="</w>")
    except Exception as error:  # the library has no narrower type
        raise ValueError(f"vocabulary and merges do not fit: {files.printable(error)}") from None
    encoder = tokenizers.Tokenizer(model)
    encoder.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # A special token is found in the text before it is split into words. So where "!" is the
    # padding, an exclamation mark becomes padding too: as transformers has it, and SD 2 was used.
    added = [tokenizers.AddedToken(**token, special=True) for token in special.values()]
    encoder.add_special_tokens(added)
    return encoder


def _split(encoder: tokenizers.Tokenizer, text: str) -> list[str]:
    """The normalised words and signs of a text, before their bytes are merged."""
    normal = encoder.normalizer.normalize_str(_as_utf8(text))
    return [normal[start:end] for _, (start, end) in encoder.pre_tokenizer.pre_tokenize_str(normal)]


def _as_utf8(text: str) -> str:
    """The text without halves of surrogate pairs, which UTF-8 cannot carry to the encoder."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _words(config: dict[str, Any]) -> list[str] | None:
    words = config.get(WORDS_KEY)
    if words is None:
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"tokenizer_config.json: {WORDS_KEY} is not a list of words")
    return words


def _token(value: Any, role: str) -> dict[str, Any]:
    """The arguments of AddedToken for a special token, which is a string or such a dict."""
    if isinstance(value, str):
        value = {"content": value, "normalized": False}
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"{role} is {str(value)[:80]}; expected a token's text")
    flags = ("lstrip", "normalized", "rstrip", "single_word")
    return {"content": value["content"], **{name: value.get(name) is True for name in flags}}
