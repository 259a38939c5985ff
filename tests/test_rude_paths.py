# SPDX-License-Identifier: MIT
"""Errors that quote a path or a name can be printed, whoever calls: nothing in them commands.

The command line escapes what it prints; this is for programs that print or log the errors.
"""

import gzip

import pytest

from jaxgen.adapters import adapter_file, controlnet_file, embedding_file
from jaxgen.data import caption_folder, sets
from jaxgen.runs import run_folder
from jaxgen.weights import autoencoder, diffusers, hub, single_file, tokenizer

RUDE = "a\x1b[2J\u202eb"  # clears the screen and turns the text around
READERS = {
    "pipeline": hub.open_checkpoint,
    "its vae": lambda path: hub.open_checkpoint("shapes", vae=path),
    "its tokenizer": lambda path: hub.open_checkpoint(path, tokenizer=path),
    "its variant": lambda path: hub.open_checkpoint(path, variant=str(path)),
    "folder": diffusers.read,
    "single file": lambda path: single_file.read(path, path),
    "autoencoder": autoencoder.read,
    "tokenizer": tokenizer.read,
    "controlnet": controlnet_file.open_controlnet,
    "adapter": lambda path: adapter_file.read(path, {"unet": ["conv_in"]}),
    "embedding": lambda path: embedding_file.read(path, {"text_encoder": 8}),
    "set": lambda path: sets.load(str(path)),
    "split": lambda path: sets.load("digits", split=str(path)),
    "captions": lambda path: caption_folder.open_split(path, "train", image_size=8, channels=3),
    "run": lambda path: run_folder.read_config(path, "vae"),
}
# what lies under the rude name: nothing, a folder with one file, or a file
CONTENTS = {
    "missing": None,
    "empty folder": {},
    "folder of one file": {f"{RUDE}.safetensors": b"\x00" * 20},
    "broken configs": dict.fromkeys(
        ("config.json", "model_index.json", "vocab.json", "merges.txt", "metadata.jsonl"),
        f'{{"_class_name": "{RUDE}", "x": 1}} {RUDE}'.encode(),
    ),
    "pictures": {f"{RUDE}.png": b"x", f"{RUDE}.bin": b"x", "train/0.png": b"x"},
    "idx": {f"train-{kind}-ubyte": gzip.compress(b"x") for kind in ("images-idx3", "labels-idx1")},
    ".safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{}",
    ".npz": b"PK",
    ".ckpt": b"PK",
    ".pt": b"",
}


@pytest.mark.parametrize("reader", READERS)
def test_what_a_file_is_called_does_not_reach_the_terminal_raw(reader, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for number, (name, content) in enumerate(CONTENTS.items()):
        path = tmp_path / str(number) / (RUDE + (name if name.startswith(".") else ""))
        path.parent.mkdir()
        if isinstance(content, bytes):
            path.write_bytes(content)
        for own, text in content.items() if isinstance(content, dict) else ():
            (path / own).parent.mkdir(parents=True, exist_ok=True)
            (path / own).write_bytes(text)
        if name == "empty folder":
            path.mkdir()
        with pytest.raises((ValueError, FileNotFoundError)) as refusal:
            READERS[reader](path)
        message = str(refusal.value)
        assert all(line.isprintable() for line in message.split("\n")), (name, message)
        assert len(message) < 3000, name
