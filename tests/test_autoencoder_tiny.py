# SPDX-License-Identifier: MIT
"""The tiny autoencoder: what PyTorch computes, every kind of file, and as a pipeline's own."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from support import checkpoints, networks
from support.networks import TINY, make_tiny, relative_error, vae_inputs, weights_by_path

from jaxgen import files
from jaxgen.stable_diffusion import loading, programs
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import autoencoder, diffusers, layout, tensors

STORED = Path(__file__).parent / "data" / "networks.npz"
# the small checkpoints' latents are half as large as their pictures
HALVING = {key: value[:2] for key, value in TINY.items()}


def functions(config):
    """(encode, decode) of the network with the weights of its path."""
    module, shapes = make_tiny(config)
    params = {"params": weights_by_path(shapes)}
    halves = [jax.jit(partial(module.apply, method=method)) for method in ("encode", "decode")]
    return tuple(partial(half, params) for half in halves)


@pytest.fixture(scope="module")
def tiny():
    return functions(TINY)


def test_it_computes_what_pytorch_does(tiny):
    encode, decode = tiny
    stored, (x, z) = np.load(STORED), vae_inputs()
    latent, logvar = encode(x)
    assert relative_error(latent, stored["tiny/latent"]) < 1e-5
    assert np.isneginf(logvar).all()  # it is certain
    assert relative_error(decode(z), stored["tiny/image"]) < 1e-5


def test_the_decoder_takes_latents_that_are_far_too_large(tiny):
    image, near = (tiny[1](np.full((2, 3, 2, 4), value, np.float32)) for value in (1e6, 30))
    np.testing.assert_allclose(image, near, atol=1e-4)


def stored_tensors():
    _, shapes = make_tiny(HALVING)
    return layout.to_tensors(jax.device_get(weights_by_path(shapes)))


def by_its_author(stored):
    """The names of the published files: no "layers", and a clamp before the decoder."""
    renamed = {}
    for name, tensor in stored.items():
        half, _, place, *rest = name.split(".")
        place = int(place) + (half == "decoder")
        renamed[".".join([half, str(place), *rest])] = tensor
    return renamed


def folder_of_diffusers(folder, stored):
    folder.mkdir()
    config = {"_class_name": "AutoencoderTiny", **{k: list(v) for k, v in HALVING.items()}}
    (folder / "config.json").write_text(files.dumps(config))
    tensors.write_file(folder / "diffusion_pytorch_model.safetensors", stored)
    return folder


def one_file(path, stored):
    tensors.write_file(path, stored)
    return path


def two_files(folder, stored):
    folder.mkdir()
    for half in ("encoder", "decoder"):
        own = {n.removeprefix(f"{half}."): t for n, t in stored.items() if n.startswith(half)}
        tensors.write_file(folder / f"taesd_{half}.safetensors", own)
    return folder


FILES = {
    "diffusers' folder": lambda path: folder_of_diffusers(path / "vae", stored_tensors()),
    "one file": lambda path: one_file(path / "a.safetensors", stored_tensors()),
    "its author's names": lambda path: one_file(
        path / "b.safetensors", by_its_author(stored_tensors())
    ),
    "its author's two files": lambda path: two_files(path / "c", by_its_author(stored_tensors())),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_same_network(kind, tmp_path):
    component = autoencoder.read(FILES[kind](tmp_path))
    assert component.class_name == "AutoencoderTiny"
    fields = diffusers.fields(component)
    assert {key: fields[key] for key in HALVING} == HALVING
    assert fields["scaling_factor"] == 1.0  # not that of the model's own autoencoder
    _, shapes = make_tiny(HALVING)
    params = layout.load(component.tensors, shapes)
    jax.tree.map(np.testing.assert_array_equal, params, weights_by_path(shapes))


def test_a_pipeline_decodes_and_encodes_with_it(tmp_path):
    diffusers.write(tmp_path / "model", checkpoints.checkpoint())
    vae = FILES["one file"](tmp_path)
    pipe = StableDiffusion.from_pretrained(tmp_path / "model", vae=vae)
    latents = np.float32(np.random.default_rng(0).normal(size=(2, 4, 4, 4)))
    encode, decode = functions(HALVING)
    expected = np.round(np.clip(np.asarray(decode(latents)) / 2 + 0.5, 0, 1) * 255)
    assert np.abs(pipe.decode(latents) - expected).max() <= 1
    component = autoencoder.read(vae)
    assert np.abs(loading.previewer(component, pipe.networks)(latents) - expected).max() <= 1
    config = {key: list(value) for key, value in TINY.items()}
    with pytest.raises(ValueError, match="makes latents 4 times smaller with 4 channels"):
        loading.previewer(component._replace(config=config), pipe.networks)
    picture, seeds = np.float32(np.random.default_rng(1).normal(size=(1, 8, 8, 3))), np.uint32([0])
    vae, params = pipe.networks.vae, pipe.params["vae"]
    known = programs.encode(pipe.programs, vae, params, None, picture, seeds, "image")
    np.testing.assert_allclose(known, encode(picture)[0], atol=1e-5)


def test_what_is_no_whole_one_is_refused(tmp_path):
    stored = stored_tensors()
    half = {name: tensor for name, tensor in stored.items() if name.startswith("encoder.")}
    with pytest.raises(ValueError, match="decoder of the tiny autoencoder lacks its first"):
        autoencoder.read(one_file(tmp_path / "half.safetensors", half))
    folder = two_files(tmp_path / "c", by_its_author(stored))
    with pytest.raises(ValueError, match="is one half of a tiny autoencoder; give the folder"):
        autoencoder.read(folder / "taesd_decoder.safetensors")
    widths = networks.TINY | {"encoder_block_out_channels": [8, 16, 8]}
    component = diffusers.Component("AutoencoderTiny", widths, {})
    with pytest.raises(ValueError, match="must each be one width"):
        diffusers.fields(component)
