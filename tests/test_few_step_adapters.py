# SPDX-License-Identifier: MIT
"""LoRA files that make a model need few steps: their layouts, and the hints that they call for."""

import functools
import gzip
import json
import math
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from support import checkpoints
from support.adapters import draw, weight, write

from jaxgen.adapters import ldm_stems, spellings
from jaxgen.stable_diffusion import few_steps
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request, completed

STATE_SHAPES = json.loads(
    gzip.decompress((Path(__file__).parent / "data" / "state_shapes.json.gz").read_bytes())
)
RANK = 64
# what these files change: all layers inside of transformers, resnets and samplers
BLOCKS = {"sd1": "down_blocks.0.attentions.0", "xl": "down_blocks.1.attentions.0"}
LAYERS = (
    "proj_in", "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0.attn2.to_k",
    "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2", "proj_out",
)  # fmt: skip
OTHERS = (
    "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv",
    "up_blocks.0.resnets.0.conv_shortcut",
)  # fmt: skip


@functools.cache
def pipeline(kind):
    return StableDiffusion(checkpoints.checkpoint(kind))


def modules(kind):
    return [f"{BLOCKS[kind]}.{layer}" for layer in LAYERS] + list(OTHERS)


@functools.cache
def ldm_names(kind):
    tensors = checkpoints.checkpoint(kind).components["unet"].tensors
    return ldm_stems.of_unet([name.rpartition(".")[0] for name in tensors])


def stem(kind, module, spelling):
    if spelling == "peft":
        return f"unet.{module}"
    if spelling == "ldm":
        module = ldm_names(kind)[module]
    return "lora_unet_" + module.replace(".", "_")


def lora(kind, spelling, alpha, path, metadata=None):
    """Writes a file in a layout, and returns it with the changes that it means, in float64."""
    pipe, rng = pipeline(kind), np.random.default_rng(0)
    ends = ("lora_A", "lora_B") if spelling == "peft" else ("lora_down", "lora_up")
    values, changes = {}, {}
    for module in modules(kind):
        out, *inner = weight(pipe, "unet", module).shape
        down, up = draw(rng, RANK, *inner), draw(rng, out, RANK, *(1,) * len(inner[1:]))
        own = stem(kind, module, spelling)
        values |= {f"{own}.{ends[0]}.weight": down, f"{own}.{ends[1]}.weight": up}
        if alpha is not None:
            values[f"{own}.alpha"] = np.float32(alpha)
        product = np.tensordot(up.reshape(out, RANK).astype(np.float64), down, 1)
        changes[module] = product * (1 if alpha is None else alpha / RANK)
    path.parent.mkdir(exist_ok=True)
    return write(path, values, metadata), changes


# The file as its makers publish it: base model, spelling of names, alpha, and what it is made for.
# Sources: luosiallen/latent-consistency-model issue 57 prints a key of lcm-lora-sdv1-5; finegrain's
# refiners (stable_diffusion_xl/lcm_lora.py and tests/e2e/test_lightning.py) load LCM's and
# Lightning's by "lora_unet_" with diffusers' blocks and a scale of 8 / 64; the sizes of Hyper-SD's
# are below. Turbo's is kohya's extraction, which has XL's names of LDM. What has no public listing
# of its names is written in every spelling somewhere here.
FILES = {
    "lcm-lora-sdv1-5/pytorch_lora_weights.safetensors": ("sd1", "kohya", 8, "lcm", 4),
    "lcm-lora-sdxl/pytorch_lora_weights.safetensors": ("xl", "kohya", 8, "lcm", 4),
    "tcd-sdxl/pytorch_lora_weights.safetensors": ("xl", "peft", None, "tcd", 4),
    "sdxl_lightning_8step_lora.safetensors": ("xl", "kohya", 8, "lightning", 8),
    "Hyper-SD15-1step-lora.safetensors": ("sd1", "kohya", 64, "hyper", 1),
    "Hyper-SDXL-12steps-CFG-lora.safetensors": ("xl", "kohya", 64, "hyper", 12),
    "dmd2_sdxl_4step_lora.safetensors": ("xl", "peft", None, "dmd", 4),
    "sd_xl_turbo_lora_v1.safetensors": ("xl", "ldm", None, "turbo", 4),
}


@pytest.mark.parametrize("name", FILES)
def test_public_files_are_merged_and_set_steps_and_guidance(name, tmp_path):
    kind, spelling, alpha, made_for, steps = FILES[name]
    pipe = pipeline(kind)
    file, changes = lora(kind, spelling, alpha, tmp_path / name)
    before = {module: weight(pipe, "unet", module) for module in changes}
    pipe.set_adapters([file])
    for module, change in changes.items():
        expected = before[module] + change.reshape(before[module].shape)
        np.testing.assert_allclose(weight(pipe, "unet", module), expected, atol=1e-5)
    assert pipe.distilled.kind == made_for
    assert pipe.defaults == (steps, 7.5 if "CFG" in name else 1.0)
    pipe.set_adapters([])
    assert pipe.distilled == pipe.made_for == few_steps.Distilled()


# layers of these files: those of diffusers' train_lcm_distill_lora_sdxl.py
ENDS = re.compile(
    r".*\.(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.(0\.proj|2)|conv[12]|conv_shortcut"
    r"|time_emb_proj|(down|up)samplers\.0\.conv)"
)


@pytest.mark.parametrize(
    ("kind", "count", "megabytes"),
    [("v1", 278, {2: 134.5, 4: 269.0}), ("xl", 788, {2: 393.5, 4: 787.0})],
)
def test_rank_64_of_these_layers_has_the_published_sizes(kind, count, megabytes):
    """The lists of ComfyUI-Manager say 269 and 787 MB of Hyper-SD's files, which are float32, and
    135 and 394 MB of LCM's and DMD2's, which are float16: that fixes layers and rank."""
    shapes = STATE_SHAPES["models"][kind]["unet"]["shapes"]
    weights = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if ENDS.fullmatch(name.removesuffix(".weight"))
    }
    size = sum(RANK * (shape[0] + math.prod(shape[1:])) for shape in weights.values())
    assert len(weights) == count
    for width, expected in megabytes.items():
        assert width * size / 1e6 == pytest.approx(expected, abs=0.05)
    known = spellings.stems({"unet": [name.rpartition(".")[0] for name in shapes]})
    for module in weights:
        assert known[stem(kind, module, "kohya")].name == module


def test_a_page_of_the_hub_is_known_by_its_repository(tmp_path, monkeypatch):
    pipe, (file, _) = pipeline("sd1"), lora("sd1", "kohya", 8, tmp_path / "x.safetensors")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: str(file))
    repo = "https://huggingface.co/latent-consistency/lcm-lora-sdv1-5"
    pipe.set_adapters([f"{repo}/resolve/main/pytorch_lora_weights.safetensors?download=true"])
    assert pipe.distilled.kind == "lcm"
    pipe.set_adapters([])


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("my-style.safetensors", "LCM_LoRA_SDXL"), "lcm"),
        (("merged.safetensors", "Hyper-SDXL-8steps-lora"), "hyper"),
        (("hyper_detailed_sdxl.safetensors",), None),
        (("lightning_storm_style.safetensors", "lightning storm"), None),
        (("turbocharger.safetensors",), None),
        (("turbo_granny_v2.safetensors",), None),
        (("hyper_sdxl_portraits.safetensors",), None),
        (("Hyper-SD-style.safetensors", "sdxl lightning bolts"), None),
        (("sdxl_turbo_anime_style.safetensors",), None),
        (("sdxl_hyper_sd_4step_lora.safetensors",), "hyper"),  # as Fooocus calls them
        (("sdxl_lcm_lora.safetensors",), "lcm"),
        (("sd_xl_turbo_lora_v1-128dim.safetensors",), "turbo"),
    ],
)
def test_common_words_in_names_are_no_sign(names, kind):
    found = few_steps.of_adapters([("style.safetensors",), names])
    assert (found and found.kind) == kind


def hint(pipe, **options):
    request = completed(Request("a cat", **options), *pipe.defaults)
    batch = arguments.batch(request, pipe.networks, pipe.scheduler)
    return few_steps.hint(pipe.distilled, pipe.scheduler, request, batch)


def test_a_call_that_does_not_follow_the_file_is_hinted_at(tmp_path):
    pipe = pipeline("sd1")
    metadata = {"ss_output_name": "lcm-lora-sdv1-5"}
    file, _ = lora("sd1", "kohya", 8, tmp_path / "fast.safetensors", metadata)
    pipe.set_adapters([(file, 1.0, {"unet": 0.0})])
    assert hint(pipe) is None
    pipe.set_adapters([file])
    assert hint(pipe, sampler="lcm") is None
    text = hint(pipe, num_steps=30, guidance_scale=7.5)
    assert text.startswith("fast.safetensors seems to make this a distilled model (LCM), made for")
    assert text.endswith("this run has 30 steps and guidance scale 7.5 and sampler 'ddim'")
    assert "this run has sampler 'euler'" in hint(pipe, sampler="euler", spacing="trailing")
    pipe.set_adapters([])


def test_files_for_guidance_keep_it_and_the_wrong_spacing_is_told():
    pipe, name = pipeline("sd1"), "Hyper-SD15-8steps-CFG-lora.safetensors"
    own = few_steps.of_adapters([(name,)])
    assert few_steps.of_adapters([("Hyper-SD15-8steps-lora.safetensors",)]).takes_guidance is False
    request = completed(Request("a cat", spacing="trailing"), own.num_steps, own.guidance_scale)
    batch = arguments.batch(request, pipe.networks, pipe.scheduler)
    assert few_steps.hint(own, pipe.scheduler, request, batch) is None
    request = completed(Request("a cat"), 4, 20.0)
    batch = arguments.batch(request, pipe.networks, pipe.scheduler)
    text = few_steps.hint(own, pipe.scheduler, request, batch)
    assert "guidance scale 5 to 8; this run has a first step at 75%" in text
