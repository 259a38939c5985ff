# SPDX-License-Identifier: MIT
"""The UNet and text encoder of `latent_diffusion.py`: their options, their sizes, their loss."""

from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from jaxgen.miniature import captioned, model
from jaxgen.miniature.model import Sizes
from jaxgen.runs import plan
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.train import latent_losses
from jaxgen.types import Array, LossFn, Params
from jaxgen.weights import tokenizer
from jaxgen.weights.tokenizer import Tokenizer
from jaxgen.world import scene


@dataclass(frozen=True)
class Config:
    """Options of UNet and text encoder, and of the finished model."""

    action: Literal["train", "export"] = may_change("train")  # export: write the finished model
    autoencoder: str = ""  # the run folder of latent_autoencoder.py; needed
    begin_with: str = ""  # the folder of an earlier run whose parameters to begin with
    num_scenes: int = 60_000  # world: how many of its scenes are the training set
    unet_channels: tuple[int, ...] = (80, 112)  # of each level
    unet_heads: int = 4  # attention heads
    text_width: int = 96  # features of the text encoder
    text_layers: int = 2  # its layers
    max_tokens: int = 24  # of a caption, with first and last
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"  # what the UNet predicts
    caption_dropout: float = 0.1  # share of examples without caption, for guidance
    ema_decay: float = 0.999  # of the moving average that is exported
    # export: a run of latent_autoencoder.py that froze this encoder; take its decoder
    decoder: str = may_change("")
    output: str = may_change("shapes")  # export: the folder to write, in diffusers' layout
    # export: measure so many prompts of each of four groups; 0 does not measure
    num_prompts: int = may_change(400)
    # its flags are made by command_line.py
    run: tyro.conf.Fixed[RunOptions] = field(default_factory=RunOptions)


READ_WITH = {
    ("data", captioned.WORLD): ("num_scenes", "num_prompts"),
    ("action", "export"): ("decoder", "output", "num_prompts"),
}

# about an hour on two CPU cores
WORLD = Config(
    run=RunOptions(
        data=captioned.WORLD, schedule="cosine", clip_norm=1.0, steps=10_500, batch_size=32,
        learning_rate=1e-3, warmup_steps=300, draw_every=1000, checkpoint_every=500,
    )
)  # fmt: skip


def check(config: Config, image_size: int, norm_groups: int) -> None:
    """Raises ValueError for the first option that no network can have with this autoencoder."""
    if config.run.image_size not in (None, image_size):
        raise ValueError(
            f"{config.autoencoder} was trained with {image_size} pixels; leave --image-size out"
        )
    if config.run.data == captioned.WORLD and image_size != scene.SIZE:
        raise ValueError(
            f"{config.autoencoder} was trained with pictures of {image_size} pixels, and the world "
            f"is drawn in {scene.SIZE}; give --data the folder that it was trained on"
        )
    plan.check_multiple("unet_channels", config.unet_channels, norm_groups, "its --norm-groups")


def sizes_of(
    config: Config, image_size: int, vae_channels: tuple[int, ...], norm_groups: int
) -> Sizes:
    """Gathers the sizes of all networks; those of the autoencoder are as it was trained."""
    return Sizes(
        image_size,
        vae_channels,
        config.unet_channels,
        config.unet_heads,
        config.text_width,
        config.text_layers,
        norm_groups,
        config.prediction,
    )


def loss_of(config: Config, unet: Any, text_encoder: Any, tokens: Tokenizer) -> LossFn:
    """Builds the denoising loss of these two networks."""

    def predict(params: Params, x_t: Array, t: Array, context: Array) -> Array:
        return unet.apply({"params": params}, x_t[None], t[None], context[None])[0]

    def embed(params: Params, ids: Array) -> Array:
        encoding: Any = text_encoder.apply({"params": params}, ids[None])
        return encoding.context[0]

    return latent_losses.diffusion_loss(
        predict, embed, model.alphas_cumprod(), config.prediction,
        tokenizer.tokenize(tokens, [""])[0], config.caption_dropout,
    )  # fmt: skip
