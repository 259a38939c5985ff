# SPDX-License-Identifier: MIT
"""A folder that is no pipeline is answered with the path to give instead."""

import re

import pytest

from jaxgen.adapters import controlnet_file, embedding_file
from jaxgen.weights import autoencoder, hub

INDEX = "model_index.json"
# the files of a place -> the folder given in it, and what the message has to say
PLACES = {
    "one single file": (["m/v1.safetensors", "m/notes.txt"], "m", "itself: {}/m/v1.safetensors"),
    "several": (["m/a.safetensors", "m/b.safetensors"], "m", "one of {0}/m/a.saf"),
    "named model": (["m/model.safetensors"], "m", "itself: {}/m/model.safetensors"),
    "one too high": ([f"m/sd15/{INDEX}"], "m", "give {}/m/sd15, which is a pipeline"),
    "two pipelines": ([f"m/a/{INDEX}", f"m/b/{INDEX}"], "m", "one of {0}/m/a, {0}/m/b, which are"),
    "the Hub's cache": ([f"m/snapshots/0f/{INDEX}", "m/refs/main"], "m", "give {}/m/snapshots/0f,"),
    "one too low": ([f"m/{INDEX}", "m/unet/config.json"], "m/unet", "give that folder: {}/m"),
    "a network alone": (["unet/config.json", "unet/x.safetensors"], "unet", "one network alone"),
    "without config": (["u/diffusion_pytorch_model.safetensors"], "u", "one network alone"),
    "without index": (["m/unet/config.json", "m/vae/x"], "m", "the parts unet, vae without"),
    "a pickle": (["m/v1-5.ckpt"], "m", "can run code"),
    "nothing": ([], "m", "it holds nothing: give the folder of a pipeline, or the path"),
}  # fmt: skip


def place(tmp_path, names):
    (tmp_path / "m").mkdir()
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}" if name.endswith(".json") else b"")


@pytest.mark.parametrize("options", [{}, {"tokenizer": "clip"}], ids=["plain", "tokenizer="])
@pytest.mark.parametrize("name", PLACES)
def test_a_folder_that_is_no_pipeline_is_answered_with_what_to_give(name, options, tmp_path):
    names, folder, words = PLACES[name]
    place(tmp_path, names)
    with pytest.raises(ValueError, match=re.escape(words.format(tmp_path))):
        hub.open_checkpoint(tmp_path / folder, **options)


def test_a_repository_of_both_kinds_names_its_single_files(tmp_path):
    place(tmp_path, [f"m/{INDEX}", "m/v1-5.safetensors"])
    path = re.escape(str(tmp_path / "m" / "v1-5.safetensors"))
    with pytest.raises(ValueError, match=f"leave it out; or give the path .*: {path}"):
        hub.open_checkpoint(tmp_path / "m", tokenizer="clip")
    with pytest.raises(ValueError, match=f"names no unet.*; or give the path .*: {path}"):
        hub.open_checkpoint(tmp_path / "m")


OPENERS = {
    "vae": autoencoder.read,
    "controlnet": controlnet_file.open_controlnet,
    "embedding": lambda folder: embedding_file.read(folder, {}),
}


@pytest.mark.parametrize("name", OPENERS)
def test_a_folder_with_the_file_of_a_part_names_it(name, tmp_path):
    place(tmp_path, ["m/own.safetensors"])
    with pytest.raises(ValueError, match=re.escape(f"itself: {tmp_path}/m/own.safetensors")):
        OPENERS[name](tmp_path / "m")
