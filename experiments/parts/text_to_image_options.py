# SPDX-License-Identifier: MIT
"""The options of `text_to_image.py`, in the groups that its help shows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from jaxgen.weights import hub


@dataclass(frozen=True)
class FromImage:
    """The image begins with a picture instead of noise, or follows one."""

    image: Path | None = None  # begin with this picture
    strength: float = 0.8  # how much of --image is made anew: 0 nothing, 1 all
    mask: Path | None = None  # white where --image is made anew
    hires: float | None = None  # draw a small picture, enlarge it by this, and draw from that
    hires_strength: float = 0.6  # how much is then made anew
    hires_upscale: Literal["latent", "pixels"] = "latent"  # what is enlarged
    controlnet: tuple[str, ...] = ()  # ControlNets: folders, files or Hub ids
    control_image: tuple[Path, ...] = ()  # the picture of edges, depth, ... for each of them
    control_edges: bool = False  # use the edges of these pictures, for ControlNets of Canny edges
    control_scale: float = 1.0  # how strongly they act


@dataclass(frozen=True)
class Sampling:
    """These say how noise becomes an image, and how the prompt is read."""

    # euler, dpmpp_2m_karras, "DPM++ 2M Karras", ...; the model's own by default
    sampler: str | None = None
    # of the steps in time; the model's own by default
    spacing: Literal["leading", "linspace", "trailing"] | None = None
    # of noise, placed by this formula; schedule: as in training; the model's own by default
    levels: Literal["karras", "exponential", "beta", "schedule"] | None = None
    # the training times of the steps, falling, in place of --steps and --spacing, as 999 749 499
    times: tuple[int, ...] | None = None
    eta: float | None = None  # fresh noise of ddim and tcd
    # guide between these shares of the run only, as 0.2 0.8
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0  # 0 to 1; against the burnt look of strong guidance
    # 0 to 1: how much of it goes along the picture itself; 0 acts against burnt colours
    guidance_parallel: float = 1.0
    guidance_limit: float | None = None  # the largest norm of its change at a step
    guidance_momentum: float = 0.0  # -1 to 1: how much of earlier changes a step adds
    pag_scale: float = 0.0  # perturbed attention guidance; usual is 3, half as much work again
    # whose self-attention it leaves out: down, mid, up, or the beginning of a name (up_blocks.1)
    pag_layers: tuple[str, ...] = ("mid",)
    clip_skip: int = 0  # last layers of the text encoder to leave out
    cache_interval: int = 1  # only every so many steps run the whole UNet: faster, less exact
    weighting: bool = True  # brackets in prompts are emphasis; --no-weighting: they are text


@dataclass(frozen=True)
class Weights:
    """These say how the model is read."""

    # of parameters and arithmetic; auto is float32 on CPU, elsewhere bfloat16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # keep kernels in 8 bits: half of bfloat16; with w8a8 dense layers multiply int8 by int8
    quantize: Literal["int8", "fp8", "w8a8"] | None = None
    variant: str | None = None  # of the weight files, as fp16
    vae: str | None = None  # take this autoencoder: a folder, a file, or a Hub id
    unet: str | None = None  # take this UNet: the same, as SDXL-Lightning's
    lora: tuple[str, ...] = ()  # merge these files, each as FILE or FILE:STRENGTH
    # for each prompt how strongly it takes each of --lora, as 1,0 0,0.8: one batch, not merged
    lora_rows: tuple[str, ...] = ()
    # words of textual inversion files, each as FILE or FILE:WORD
    embedding: tuple[str, ...] = ()
    # for single files: a folder or Hub id with a CLIP tokenizer; the public one by default
    tokenizer: str | None = None
    # what the UNet returns, if not what the model's scheduler says
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None


@dataclass(frozen=True)
class Devices:
    """These divide the work over several devices."""

    data_devices: int = 1  # images are divided over so many devices
    model_devices: int = 1  # and large parameters over so many


@dataclass(frozen=True)
class Config:
    """Holds the options of a call."""

    prompt: tuple[str, ...] = ()  # one or several; (word:1.3) weighs a word (needed)
    negative: str | None = None  # what the images should not show
    model: str = hub.EMBEDDED  # a diffusers folder, a .safetensors file, a Hub id, or "shapes"
    # of the sampler; 20 with "shapes", 50 with others, fewer with models distilled for it
    steps: int | None = None
    # how closely to follow the prompt: 3 with "shapes", 7.5 with others, 1 with distilled models,
    # which is no guidance and half the work
    guidance: float | None = None
    seed: int = 0  # of the first image; the others count up
    batch_size: int = 1  # images of each prompt, all made at once
    width: int | None = None  # pixels; the picture's or the model's own by default
    height: int | None = None  # pixels
    output: Path = Path("outputs")  # folder
    # write OUTPUT/preview.png after every step, decoded by this autoencoder: a tiny one, which is
    # fast (that of shapes is "shapes-tiny"), or "own" for the model's
    preview: str | None = None
    from_image: tyro.conf.OmitArgPrefixes[FromImage] = field(default_factory=FromImage)
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    weights: tyro.conf.OmitArgPrefixes[Weights] = field(default_factory=Weights)
    devices: tyro.conf.OmitArgPrefixes[Devices] = field(default_factory=Devices)
