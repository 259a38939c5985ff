# SPDX-License-Identifier: MIT
"""Trains the autoencoder of a small Stable Diffusion: pictures to latents and back.

Examples:
    python experiments/latent_autoencoder.py --run-dir runs/first
    python experiments/latent_autoencoder.py --data path/to/folder --image-size 64
    python experiments/latent_autoencoder.py --begin-with runs/first --freeze-encoder

It is the first of two stages; latent_diffusion.py is the second. The data is a rendered world of
coloured shapes, or a folder of pictures with a metadata.jsonl as latent_diffusion.py needs it.
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from PIL import Image

from jaxgen import script
from jaxgen.data import sets
from jaxgen.miniature import captioned, model
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.pictures import images
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import augment, latent_losses, step
from jaxgen.types import Array, Key, Params
from jaxgen.world import scene

NAME = "latent_autoencoder"


@dataclass(frozen=True)
class Config:
    """Options of the autoencoder."""

    begin_with: str = ""  # the folder of an earlier run whose parameters to begin with
    freeze_encoder: bool = False  # train the decoder alone; latents stay as they are
    num_scenes: int = 30_000  # world: how many of its scenes are the training set
    vae_channels: tuple[int, ...] = (16, 32, 64, 64)  # of each level; each but the first halves
    norm_groups: int = 8  # groups of every normalisation
    kl_weight: float = 2e-4  # of the KL term, a mean over latent entries
    edge_weight: float = 1.0  # of the error of outlines
    # its flags are made by command_line.py
    run: tyro.conf.Fixed[RunOptions] = field(default_factory=RunOptions)


READ_WITH = {("data", captioned.WORLD): ("num_scenes",)}

# under an hour on two CPU cores, where many small steps learn more than few large ones
WORLD = Config(
    run=RunOptions(
        data=captioned.WORLD, schedule="cosine", clip_norm=1.0, steps=16_000, batch_size=4,
        learning_rate=1e-3, warmup_steps=200, draw_every=1000, checkpoint_every=1000,
    )
)  # fmt: skip


def check(config: Config) -> None:
    """Raises ValueError for the first option that no network can have."""
    plan.check_range(config, 1, "num_scenes", "vae_channels", "norm_groups")
    plan.check_range(config, 0, "kl_weight", "edge_weight")
    plan.check_multiple("vae_channels", config.vae_channels, config.norm_groups, "norm_groups")
    if config.run.data != captioned.WORLD and config.run.image_size is None:
        raise ValueError("a folder of pictures needs --image-size, to resize and crop them to one")
    factor = 2 ** (len(config.vae_channels) - 1)
    plan.check_multiple("image_size", (image_size(config),), factor, "the autoencoder's reduction")


def image_size(config: Config) -> int:
    """Returns the height, and the width, of the pictures."""
    return config.run.image_size or scene.SIZE


def open_split(config: Config, options: RunOptions, split: str) -> sets.Source:
    """Opens the pictures of "train" or "test", without their captions."""
    check(config)
    pictures = captioned.open_split(options.data, split, options.image_size, config.num_scenes)
    return pictures.source


def network(config: Config, dtype: Any = jnp.float32) -> AutoencoderKL:
    """Builds the module that the options describe."""
    return model.autoencoder(image_size(config), config.vae_channels, config.norm_groups, dtype)


def encoder_of(vae: AutoencoderKL) -> captioned.Encode:
    """Builds the encoder, (params, pictures [B, H, W, 3]) -> mean, logvar [B, h, w, C]."""

    def encode(params: Params, x: Array) -> Any:  # a pair; linen's type allows for more
        return vae.apply({"params": params}, x, method="encode")

    return encode


def build(config: Config, examples: Examples) -> System:
    """Builds the System of the autoencoder: its first state, its step, its pictures."""
    check(config)
    vae = network(config, experiment.network_dtype(config.run))
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
    num_steps = experiment.num_steps(options, examples, options.batch_size)
    tx = experiment.optimizer_of(options, num_steps)

    earlier = trained(config.begin_with).params if config.begin_with else None
    if earlier is not None:
        model.check_fits(earlier, vae, config.begin_with)

    def init(key: Key) -> Any:
        return step.init_state(model.init(key, vae) if earlier is None else earlier, tx)

    return System(
        init=init,
        step=step.gradient_step(
            augment.on_uint8(loss, augment.by_name(options.augment)), tx, options.accumulate
        ),
        draw=partial(draw_reconstructions, jax.jit(vae.apply)),
        images_per_step=options.batch_size,
        progress_metrics=("l1", "mse", "kl_nats"),
        convolutional=True,
    )


def draw_reconstructions(
    apply: Any, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Draws test pictures beside what comes back through the posterior's mean."""
    inputs = examples.images[:40]
    output = apply({"params": state.params}, augment.to_unit_range(jnp.asarray(inputs)))
    return {"reconstructions": images.beside(inputs, images.to_uint8(output))}


class Trained(NamedTuple):
    """An autoencoder that a run has trained."""

    config: Config
    image_size: int  # pixels
    vae: AutoencoderKL
    encode: captioned.Encode  # one function, so that what is compiled with it serves again
    params: Params
    runs: tuple[tuple[Config, int], ...]  # options and steps of the runs that trained it, in order


def trained(run_dir: str) -> Trained:
    """Reads the autoencoder in a run folder, with the newest parameters there."""
    config = command_line.read(Config, run_dir, NAME)
    earlier = trained(config.begin_with).runs if config.begin_with else ()
    # what it began with is no part of its state, and is not read again
    alone = replace(config, begin_with="")
    state, done, _ = run.restore(alone, build, partial(open_split, alone))
    params, vae = experiment.model(state, config.run).params, network(config)
    runs = (*earlier, (config, done))
    return Trained(config, image_size(config), vae, encoder_of(vae), params, runs)


def with_decoder(first: Trained, run_dir: str) -> Trained:
    """Gives the autoencoder the decoder of a run that began with it and froze the encoder.

    Raises ValueError when that run has another encoder, whose latents are others.
    """
    other = trained(run_dir)
    if other.vae != first.vae or not _same(_encoders(first.params), _encoders(other.params)):
        raise ValueError(
            f"{run_dir} has another encoder than the diffusion was trained with; take a run with "
            f"--freeze-encoder --begin-with that autoencoder"
        )
    return other


def _encoders(params: Params) -> Params:
    return {name: params[name] for name in ("encoder", "quant_conv")}


def _same(a: Params, b: Params) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))


def main() -> None:
    config = command_line.parse(NAME, {"world": WORLD}, __doc__, read_with=READ_WITH)
    script.set_up(config.run.distributed)
    run.train(NAME, config, build, partial(open_split, config))


if __name__ == "__main__":
    script.main(main)
