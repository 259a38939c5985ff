# SPDX-License-Identifier: MIT
"""Writes tests/data/clip_ids.json: what transformers' CLIPTokenizer makes of difficult strings.

Run from the repository root: python tests/oracle/make_clip_ids.py
"""

import json
import sys
import tempfile
from pathlib import Path

import transformers

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from support import clip_words

COUNT = 500


def main() -> None:
    vocab, merges = clip_words.small_vocabulary()
    texts = clip_words.strings(COUNT)
    result = {"transformers": transformers.__version__, "count": COUNT}
    for name, pad in (("end", "<|endoftext|>"), ("exclamation", "!")):
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), vocab, merges, pad)
            reference = transformers.CLIPTokenizer.from_pretrained(folder)
        rows = reference(texts, padding="max_length", truncation=True, max_length=77).input_ids
        result[name] = [_without_padding(row, reference.pad_token_id) for row in rows]
    path = TESTS / "data" / "clip_ids.json"
    path.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


def write_folder(folder: Path, vocab: dict, merges: list, pad: str) -> None:
    """The four files as the published checkpoints have them; SD 2 changes only the last one."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    bos, eos = ({"content": t, **flags} for t in ("<|startoftext|>", "<|endoftext|>"))
    config = {
        "bos_token": {"__type": "AddedToken", **bos}, "eos_token": {"__type": "AddedToken", **eos},
        "unk_token": {"__type": "AddedToken", **eos}, "pad_token": "<|endoftext|>",
        "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    special = {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": pad}
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def _without_padding(row: list[int], pad: int) -> list[int]:
    end = max(i for i, token in enumerate(row) if token != pad or i == 0) + 1
    return row[:end]


if __name__ == "__main__":
    main()
