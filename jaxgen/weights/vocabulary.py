# SPDX-License-Identifier: MIT
"""The files of a tokenizer's vocabulary and merges, read and checked one by one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from jaxgen import files

MAX_TOKENS = 2**20
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")  # in the order they are registered


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of tokens in a merges.txt, in their order."""
    data = files.read_bytes(path, files.INDEX_BYTES)
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    first = 1 if lines[0].startswith("#version") else 0
    return [_pair(line.rstrip("\r"), path) for line in lines[first:] if line.strip("\r")]


def _pair(line: Any, path: Path) -> tuple[str, str]:
    parts = line.split(" ") if isinstance(line, str) else line
    good = (
        isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, str) and p for p in parts)
    )
    if not good:
        raise ValueError(f"{path}: {str(line)[:80]!r} is not a merge of two tokens")
    return (parts[0], parts[1])


def read_combined(
    combined: dict[str, Any], path: Path
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and merges in tokenizer.json, which newer transformers writes alone."""
    model = combined.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError(f"{path} holds no byte-pair encoding; CLIP's tokenizer is one")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise ValueError(f"{path} lacks the model's vocab or merges")
    return vocab, [_pair(merge, path) for merge in merges]


def check(vocab: dict[str, Any], folder: Path) -> None:
    """ValueError unless a vocabulary gives each token an id of its own."""
    ids = list(vocab.values())
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < MAX_TOKENS for i in ids):
        raise ValueError(f"{folder}: token ids must be integers from 0 to {MAX_TOKENS - 1}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"{folder}: two tokens of the vocabulary have the same id")


def check_reached(
    vocab: dict[str, int], merges: list[tuple[str, str]], marks: Iterable[str]
) -> None:
    """In a vocabulary made as CLIP's, merges make every token but bytes, special and added ones.

    Otherwise merges.txt was cut, and words would silently become other tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    base = {*alphabet, *(letter + "</w>" for letter in alphabet)}
    if not base <= vocab.keys():
        return
    lacking = vocab.keys() - base - set(marks) - {a + b for a, b in merges}
    if lacking:
        first = min(lacking, key=vocab.__getitem__)
        raise ValueError(
            f"{len(lacking)} tokens of the vocabulary come from no merge, first "
            f"{files.printable(first, 80)!r}; the merges are incomplete, fetch them again"
        )


def read_optional(path: Path, max_bytes: int = files.CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none."""
    return files.read_object(path, max_bytes) if path.is_file() else {}


def special_tokens(
    folder: Path, config: dict, combined: dict
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Any]]:
    """Role -> token; each word that was added to the vocabulary -> its id and flags; and the ids
    that these files give to special tokens, which the vocabulary itself may lack.

    special_tokens_map.json overrides tokenizer_config.json, unless the latter has the newer
    `added_tokens_decoder`; so reads transformers, and SD 2's "!" hangs on it.
    """
    tokens = {role: config[role] for role in SPECIAL if config.get(role) is not None}
    decoder, listed = config.get("added_tokens_decoder"), combined.get("added_tokens")
    if isinstance(decoder, dict):
        listed = [{**t, "id": _number(i)} for i, t in decoder.items() if isinstance(t, dict)]
    else:
        roles = read_optional(folder / "special_tokens_map.json")
        tokens.update({role: roles[role] for role in SPECIAL if roles.get(role) is not None})
    entries = [t for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
    known = {t["content"]: t for t in entries if isinstance(t.get("content"), str)}
    texts = {role: t.get("content") if isinstance(t, dict) else t for role, t in tokens.items()}
    older = read_optional(folder / "added_tokens.json").items()
    added = {word: {"id": i, "normalized": True} for word, i in older} | known
    special = {
        text: added.pop(text, {}).get("id") for text in {BOS, EOS, *map(str, texts.values())}
    }
    ids = {text: number for text, number in special.items() if number is not None}
    return {role: known.get(str(text), tokens[role]) for role, text in texts.items()}, added, ids


def _number(text: str) -> Any:
    return int(text) if text.isdecimal() and len(text) < 10 else text
