# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""PyTorch diffusers and transformers load what experiments/latent_diffusion.py exports."""

import warnings

import numpy as np
import pytest
from support import clip_words

torch = pytest.importorskip("torch")
torch_diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

import jax.numpy as jnp
from support.networks import weights_by_path

from jaxgen.miniature import captioned, model
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers, tokenizer
from jaxgen.world import caption

pytestmark = pytest.mark.oracle
PROMPTS = ["a large red star above a small blue ring on white", "an orange heart"]
CALL = {"guidance_scale": 3.0}


@pytest.fixture(scope="module")
def captions():
    return caption.captions(captioned.world_scenes("train", 2000))


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def folder(request, captions, tmp_path_factory):
    """An export with weights that no training has seen, stored in half precision."""
    sizes = model.Sizes(64, (8, 8, 8, 8), (8, 16), 2, 32, 2, 4, request.param)
    made = model.checkpoint(sizes, tokenizer.train(captions, 24), scaling_factor=0.8)
    networks = loading.networks(made)
    modules = {"unet": networks.unet, "vae": networks.vae, **networks.encoders}
    params = {name: weights_by_path(loading.shapes(module)) for name, module in modules.items()}
    path = tmp_path_factory.mktemp("export") / request.param
    diffusers.write(path, model.with_params(made, params), jnp.float16)
    return path


@pytest.fixture
def theirs(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # as a user loads it: the folder itself has to say in which type to compute
        pipe = torch_diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_diffusers_draws_the_same_from_the_same_noise(folder, theirs):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(noise, -1, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        final, image = (
            theirs(PROMPTS, num_inference_steps=6, latents=given, output_type=kind, **CALL).images
            for kind in ("latent", "np")
        )

    pipe = StableDiffusion.from_pretrained(folder)
    found = pipe(PROMPTS, num_steps=6, latents=noise, output="latent", **CALL)
    levels = pipe(PROMPTS, num_steps=6, latents=noise, **CALL).astype(int)

    expected = np.moveaxis(final.numpy(), 1, -1)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"relative error of final latents {error:.1e}")
    assert error < 1e-3
    assert np.linalg.norm(noise - expected) > 0.1 * np.linalg.norm(expected)
    assert levels.shape == (2, 64, 64, 3)
    assert np.abs(levels - np.rint(255 * image)).max() <= 1
    assert levels.std() > 1


def test_the_exported_sampler_is_dpm_solver_plus_plus_of_second_order(folder, theirs):
    found = theirs.scheduler
    assert type(found).__name__ == "DPMSolverMultistepScheduler"
    assert (found.config.algorithm_type, found.config.solver_order) == ("dpmsolver++", 2)
    assert found.config.prediction_type == folder.name


def test_ids_of_trained_vocabularies_equal_those_of_transformers(folder, captions):
    theirs = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ours = tokenizer.read(folder / "tokenizer")
    assert theirs.model_max_length == ours.max_length == 24
    for texts in (captions, clip_words.strings(1000, seed=4)):
        rows = theirs(texts, padding="max_length", truncation=True, max_length=24).input_ids
        assert tokenizer.tokenize(ours, texts).tolist() == rows
