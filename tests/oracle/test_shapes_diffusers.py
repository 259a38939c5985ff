# SPDX-License-Identifier: MIT
"""PyTorch diffusers loads the model that comes with jaxgen and draws the same pictures."""

import pathlib
import re

import numpy as np
import pytest

from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import autoencoder, hub, tokenizer

# torch and diffusers warn of each other's and of numpy's future
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

FOLDER = hub.resolve(hub.EMBEDDED)
PROMPTS = [
    "a large red star above a small blue ring",
    "a small yellow heart left of a large green square on black",
]


@pytest.fixture(scope="module")
def pipes():
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER)  # as the model card has it
    assert theirs.text_encoder.dtype == torch.float32
    theirs.set_progress_bar_config(disable=True)
    return StableDiffusion.from_pretrained(hub.EMBEDDED), theirs


@pytest.mark.parametrize("sampler", [None, "ddim"])
def test_from_the_same_noise_come_the_same_pictures(pipes, sampler):
    ours, theirs = pipes
    if sampler == "ddim":
        theirs.scheduler = diffusers.DDIMScheduler.from_config(
            theirs.scheduler.config, clip_sample=False
        )
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    call = {"num_inference_steps": 10, "guidance_scale": 3.0}
    given = torch.from_numpy(noise).permute(0, 3, 1, 2).contiguous()
    latents = theirs(PROMPTS, latents=given, output_type="latent", **call).images
    with torch.no_grad():
        decoded = theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample
    pictures = theirs.image_processor.postprocess(decoded, output_type="np")

    call = {"num_steps": 10, "guidance_scale": 3.0, "latents": noise, "sampler": sampler}
    expected = latents.permute(0, 2, 3, 1).numpy()
    found = ours(PROMPTS, output="latent", **call)
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)
    levels = np.abs(ours.decode(found).astype(int) - np.rint(255 * pictures).astype(int))
    assert levels.max() <= 1


def test_its_tiny_autoencoder_is_one_of_diffusers(pipes):
    folder = hub.resolve_vae(hub.EMBEDDED_TINY)
    theirs = diffusers.AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32)
    ours = loading.previewer(autoencoder.read(folder), pipes[0].networks)
    latents = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample
    expected = expected.permute(0, 2, 3, 1).numpy().clip(-1, 1) / 2 + 0.5
    levels = np.abs(ours(latents).astype(int) - np.rint(255 * expected).astype(int))
    assert levels.max() <= 1


def test_the_tokenizers_agree(pipes):
    ours, theirs = pipes
    for prompt in [*PROMPTS, "", "A  LARGE red STAR"]:
        expected = theirs.tokenizer(prompt, padding="max_length", max_length=24).input_ids
        found = ours.embedder.tokenizers["text_encoder"]
        assert tokenizer.tokenize(found, [prompt])[0].tolist() == list(expected)


def test_the_snippet_of_the_card_runs_as_written(tmp_path, monkeypatch):
    (tmp_path / "this folder").symlink_to(FOLDER)
    monkeypatch.chdir(tmp_path)
    card = (pathlib.Path(FOLDER) / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    (snippet,) = [block for block in blocks if "import diffusers" in block]
    names = {}
    exec(snippet, names)
    assert names["image"].size == (64, 64)
    assert len(np.unique(np.asarray(names["image"]).reshape(-1, 3), axis=0)) > 10
