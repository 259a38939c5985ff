# SPDX-License-Identifier: MIT
"""The first stage: pictures to latents and back."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from diffusing.options import NAME, Config, captions_of, check, sizes_of
from PIL import Image

from jaxgen.data import sets
from jaxgen.miniature import captioned, model
from jaxgen.miniature.model import Sizes
from jaxgen.nn.autoencoder_kl import AutoencoderKL
from jaxgen.pictures import images
from jaxgen.runs import command_line, experiment, run, run_folder
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import augment, latent_losses, step
from jaxgen.types import Array, Key, Params


class First(NamedTuple):
    """The trained first stage."""

    sizes: Sizes
    vae: AutoencoderKL
    params: Params
    runs: tuple[tuple[Config, int], ...]  # options and steps of the runs that trained it, in order


def open_split(config: Config, options: RunOptions, split: str) -> sets.Source:
    """The pictures of "train" or "test", without their captions."""
    check(config)
    return captions_of(config, options, split).source


def encoder_of(vae: AutoencoderKL) -> captioned.Encode:
    """(params, pictures [B, H, W, 3]) -> mean and log-variance [B, h, w, C]."""

    def encode(params: Params, x: Array) -> Any:  # a pair; linen's type allows for more
        return vae.apply({"params": params}, x, method="encode")

    return encode


def build(config: Config, examples: Examples, num_steps: int) -> System:
    """The first stage as the run wants it: first state, one step, pictures."""
    check(config)
    vae = model.autoencoder(sizes_of(config), experiment.network_dtype(config.run))
    encode = encoder_of(vae)

    def encode_one(params: Params, x: Array) -> tuple[Array, Array]:
        mean, logvar = encode(params, x[None])
        if config.freeze_encoder:
            mean, logvar = jax.lax.stop_gradient((mean, logvar))
        return mean[0], logvar[0]

    def decode_one(params: Params, z: Array) -> Array:
        return vae.apply({"params": params}, z[None], method="decode")[0]

    loss = latent_losses.autoencoder_kl_loss(
        encode_one, decode_one, config.kl_weight, config.edge_weight
    )
    options = config.run
    tx = experiment.optimizer_of(options, num_steps)

    begun = trained(config.begin_with).params if config.begin_with else None
    if begun is not None:
        model.check_fits(begun, vae, config.begin_with)

    def init(key: Key) -> Any:
        return step.init_state(model.init(key, vae) if begun is None else begun, tx)

    return System(
        init=init,
        step=step.gradient_step(
            augment.on_uint8(loss, augment.by_name(options.augment)), tx, options.accumulate
        ),
        draw=partial(draw_reconstructions, vae),
        images_per_step=options.batch_size,
        shown=("l1", "mse", "kl_nats"),
        convolutional=True,
    )


def draw_reconstructions(
    vae: AutoencoderKL, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Test pictures beside what comes back through the posterior's mean."""
    shown = examples.images[:40]
    output = jax.jit(vae.apply)({"params": state.params}, augment.to_unit_range(jnp.asarray(shown)))
    return {"reconstructions": images.beside(shown, images.to_uint8(output))}


def trained(run_dir: str) -> First:
    """The autoencoder that a run of the first stage has trained."""
    config = command_line.from_dict(Config, run_folder.read_config(Path(run_dir), NAME))
    if config.stage != "autoencoder":
        raise ValueError(f"{run_dir} is a run of the stage {config.stage}, not of the autoencoder")
    config = replace(config, run=replace(config.run, run_dir=run_dir))
    earlier = trained(config.begin_with).runs if config.begin_with else ()
    # what it began with is no part of its state, and is not read again
    alone = replace(config, begin_with="")
    state, done, _ = run.restore(alone, build, partial(open_split, alone))
    sizes = sizes_of(config)
    params = experiment.model(state, config.run).params
    return First(sizes, model.autoencoder(sizes), params, (*earlier, (config, done)))


def with_decoder(first: First, run_dir: str) -> First:
    """The autoencoder with the decoder of a run that began with it and froze the encoder.

    Raises ValueError when that run's encoder is another, so that its latents would be.
    """
    other = trained(run_dir)
    if other.sizes != first.sizes or not _same(_encoders(first.params), _encoders(other.params)):
        raise ValueError(
            f"{run_dir} has another encoder than the diffusion was trained with; take a run with "
            f"--freeze-encoder --begin-with that autoencoder"
        )
    return other


def _encoders(params: Params) -> Params:
    return {name: params[name] for name in ("encoder", "quant_conv")}


def _same(a: Params, b: Params) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))
