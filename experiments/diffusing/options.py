# SPDX-License-Identifier: MIT
"""The options of both stages, their presets, and what of them is impossible."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from jaxgen.miniature import captioned
from jaxgen.miniature.model import Sizes
from jaxgen.runs import plan
from jaxgen.runs.command_line import RunOptions

NAME = "latent_diffusion"


@dataclass(frozen=True)
class Config:
    """Options of both stages."""

    action: Literal["train", "export"] = "train"  # export: write the finished model
    stage: Literal["autoencoder", "diffusion"] = "autoencoder"  # which of the two to train
    num_scenes: int = 30_000  # world: how many of its scenes training goes over
    vae_channels: tuple[int, ...] = (16, 32, 64, 64)  # of each level; each halves the picture
    kl_weight: float = 2e-4  # autoencoder: weight of the KL term, a mean over latent entries
    edge_weight: float = 1.0  # autoencoder: weight of the error of outlines
    freeze_encoder: bool = False  # autoencoder: train the decoder alone; latents stay as they are
    begin_with: str = ""  # the run folder of the same stage whose parameters to begin with
    autoencoder: str = ""  # diffusion: the run folder of the first stage
    unet_channels: tuple[int, ...] = (80, 112)  # diffusion: of each level
    unet_heads: int = 4  # diffusion: attention heads
    text_width: int = 96  # diffusion: features of the text encoder
    text_layers: int = 2  # diffusion: its layers
    norm_groups: int = 8  # groups of every normalisation
    max_tokens: int = 24  # diffusion: of a caption, with first and last
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"  # what the UNet predicts
    caption_dropout: float = 0.1  # share of examples without caption, for guidance
    ema_decay: float = 0.999  # of the moving average that is exported
    decoder: str = ""  # export: a run of the first stage that froze this encoder; take its decoder
    output: str = "shapes"  # export: the folder to write, in diffusers' layout
    num_prompts: int = 400  # export: measure so many of each of four groups; 0 does not measure
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


COMMON = RunOptions(data=captioned.WORLD, schedule="cosine", clip_norm=1.0)
# each under an hour on two CPU cores, where many small steps learn more than few large ones
STAGES = {
    "autoencoder": Config(
        run=replace(
            COMMON, steps=16_000, batch_size=4, learning_rate=1e-3, warmup_steps=200,
            draw_every=1000, checkpoint_every=1000,
        ),
    ),
    "diffusion": Config(
        stage="diffusion",
        num_scenes=60_000,
        run=replace(
            COMMON, steps=10_500, batch_size=32, learning_rate=1e-3, warmup_steps=300,
            draw_every=1000, checkpoint_every=500,
        ),
    ),
}  # fmt: skip


def sizes_of(config: Config) -> Sizes:
    """The sizes of the networks that the options ask for."""
    return Sizes(
        config.run.image_size or 64,
        config.vae_channels,
        config.unet_channels,
        config.unet_heads,
        config.text_width,
        config.text_layers,
        config.norm_groups,
        config.prediction,
    )


def check(config: Config) -> None:
    """Raises ValueError for the first option that no network can have."""
    plan.check_range(
        config, 1, "num_scenes", "vae_channels", "unet_channels", "unet_heads", "text_width",
        "text_layers", "norm_groups",
    )  # fmt: skip
    plan.check_range(config, 0, "kl_weight", "edge_weight")
    plan.check_range(config, 0, "ema_decay", high=0.99999)
    plan.check_range(config, 3, "max_tokens")
    plan.check_range(config, 0, "caption_dropout", high=0.99)
    check_multiple("vae_channels", config.vae_channels, config.norm_groups, "norm_groups")
    check_multiple("unet_channels", config.unet_channels, config.norm_groups, "norm_groups")
    check_multiple("unet_channels", config.unet_channels, config.unet_heads, "unet_heads")
    check_multiple("text_width", (config.text_width,), 32, "a head's features")
    options, sizes = config.run, sizes_of(config)
    if options.data != captioned.WORLD and options.image_size is None:
        raise ValueError("a folder of pictures needs --image-size, to resize and crop them to one")
    check_multiple("image_size", (sizes.image_size,), sizes.factor, "the autoencoder's reduction")


def check_multiple(name: str, values: tuple[int, ...], of: int, what: str) -> None:
    """Raises ValueError for the first value that is no multiple; `what` says of what."""
    for value in values:
        if value % of:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} has {value}; use multiples of {of} ({what})")


def captions_of(config: Config, options: RunOptions, split: str) -> captioned.Captioned:
    """The captioned pictures of "train" or "test"."""
    return captioned.open_split(options.data, split, options.image_size, config.num_scenes)
