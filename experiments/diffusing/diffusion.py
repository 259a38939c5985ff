# SPDX-License-Identifier: MIT
"""The second stage: latents out of noise, guided by captions."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from diffusing import autoencoder
from diffusing.autoencoder import First, encoder_of
from diffusing.options import NAME, Config, captions_of, check, sizes_of
from PIL import Image

from jaxgen.data import sets
from jaxgen.miniature import captioned, model
from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS, Sizes
from jaxgen.pictures import images
from jaxgen.runs import command_line, experiment, run, run_folder
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Examples, System
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.train import latent_losses, step
from jaxgen.types import Array, Key, Params
from jaxgen.weights import tokenizer
from jaxgen.weights.diffusers import Checkpoint
from jaxgen.weights.tokenizer import Tokenizer

TOKENIZER = "tokenizer"  # in the run folder


class Second(NamedTuple):
    """What the second stage is built from, beside its options."""

    first: First
    checkpoint: Checkpoint  # without weights
    prompts: list[str]  # of the test split
    begun: Params | None  # what the UNet and the text encoder begin with, else fresh
    runs: tuple[tuple[Config, int], ...]  # options and steps of the runs behind `begun`


def prepare(config: Config, begun_before: bool = False) -> Second:
    """The first stage, the networks of the second, and captions to draw.

    begun_before: the run folder exists, and its vocabulary is the one that was trained with.
    """
    check(config)
    if config.run.augment != "none":
        raise ValueError("--augment changes pictures that are encoded once; leave it out")
    if not config.autoencoder:
        raise ValueError("which autoencoder? Give --autoencoder the run folder of the first stage")
    first = autoencoder.trained(config.autoencoder)
    earlier = _earlier(config.begin_with) if config.begin_with else None
    sizes = sizes_of(config)
    _check_same(sizes, first, config.autoencoder)
    train, test = (captions_of(config, config.run, split) for split in ("train", "test"))
    if begun_before:
        tokens = tokenizer.read(run.folder(config.run) / TOKENIZER)
    else:
        tokens = tokenizer.train(train.captions, config.max_tokens)
    scale = captioned.scale_of_latents(train.source, encoder_of(first.vae), first.params)
    made = model.checkpoint(sizes, tokens, scale)
    begun, runs = (None, ()) if earlier is None else (_carried(earlier, tokens), earlier.runs)
    return Second(first, made, test.captions, begun, runs)


def _check_same(sizes: Sizes, first: First, run_dir: str) -> None:
    for name in ("image_size", "vae_channels", "norm_groups"):
        own, given = getattr(sizes, name), getattr(first.sizes, name)
        if own != given:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is {own} and {run_dir} was trained with {given}; say that")


def _carried(earlier: Second, tokens: Tokenizer) -> Params:
    """What an earlier run has come to, for this run's vocabulary."""
    params, old = earlier.begun or {}, earlier.checkpoint.tokenizers["tokenizer"]
    text_encoder = model.with_vocabulary(params["text_encoder"], old, tokens)
    return {**params, "text_encoder": text_encoder}


def _earlier(run_dir: str) -> Second:
    """A run of the second stage, `begun` being what it has come to."""
    config = command_line.from_dict(Config, run_folder.read_config(Path(run_dir), NAME))
    if config.stage != "diffusion":
        raise ValueError(f"{run_dir} is a run of the stage {config.stage}, not of diffusion")
    config = replace(config, run=replace(config.run, run_dir=run_dir))
    second = prepare(config, begun_before=True)
    state, done, _ = run.restore(
        config, partial(build, second), partial(open_split, config, second)
    )
    ema = experiment.model(state, config.run).ema
    return second._replace(begun=ema, runs=(*second.runs, (config, done)))


def open_split(config: Config, second: Second, options: RunOptions, split: str) -> sets.Source:
    """Latents of the pictures, with token ids as labels."""
    first, tokens = second.first, second.checkpoint.tokenizers["tokenizer"]
    scale = second.checkpoint.components["vae"].config["scaling_factor"]
    pictures = captioned.tokenized(captions_of(config, options, split), tokens)
    return captioned.encoded(pictures, encoder_of(first.vae), first.params, scale)


def build(second: Second, config: Config, examples: Examples, num_steps: int) -> System:
    """The second stage as the run wants it: first state, one step, pictures."""
    networks = loading.networks(second.checkpoint, experiment.network_dtype(config.run))
    unet, text_encoder = networks.unet, networks.encoders["text_encoder"]
    tokens = second.checkpoint.tokenizers["tokenizer"]

    def predict(params: Params, x_t: Array, t: Array, context: Array) -> Array:
        return unet.apply({"params": params}, x_t[None], t[None], context[None])[0]

    def embed(params: Params, ids: Array) -> Array:
        encoding: Any = text_encoder.apply({"params": params}, ids[None])
        return encoding.context[0]

    if second.begun is not None:
        for name, module in (("unet", unet), ("text_encoder", text_encoder)):
            model.check_fits(second.begun[name], module, config.begin_with)
    loss = latent_losses.diffusion_loss(
        predict, embed, model.alphas_cumprod(), config.prediction,
        tokenizer.tokenize(tokens, [""])[0], config.caption_dropout,
    )  # fmt: skip
    options = config.run
    tx = experiment.optimizer_of(options, num_steps)

    def init(key: Key) -> step.AveragedState:
        unet_key, text_key = jax.random.split(key)
        params = second.begun or {
            "unet": model.init(unet_key, unet),
            "text_encoder": model.init(text_key, text_encoder),
        }
        return step.AveragedState(step.init_state(params, tx), jax.tree.map(jnp.copy, params))

    return System(
        init=init,
        step=step.with_moving_average(
            step.gradient_step(loss, tx, options.accumulate), config.ema_decay
        ),
        draw=partial(draw_samples, second),
        keep=partial(keep_vocabulary, tokens),
        images_per_step=options.batch_size,
        shown=("loss", "grad_norm"),
        convolutional=True,
    )


def keep_vocabulary(tokens: Tokenizer, folder: Path) -> None:
    """Writes the vocabulary into the run folder: what the ids mean must outlive the captions."""
    (folder / TOKENIZER).mkdir()
    tokenizer.write(folder / TOKENIZER, tokens)


def trained(second: Second, state: Any) -> Checkpoint:
    """The whole model with its weights, those of the second stage averaged."""
    return model.with_params(second.checkpoint, {**state.ema, "vae": second.first.params})


def draw_samples(
    second: Second, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Pictures of captions that training has not seen, made by the pipeline."""
    prompts = second.prompts[:32]
    pipe = StableDiffusion(trained(second, state))
    made = pipe(prompts, num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE)
    return {"samples": images.grid(made, 8)}
