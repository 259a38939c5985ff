# SPDX-License-Identifier: MIT
"""Distils a tiny autoencoder (TAESD) from that of a small model, on pictures of the world.

Its decoder learns the pictures from the latents that the large encoder draws, its encoder those
latents' means; each by itself. Bohan 2023 (github.com/madebyollin/taesd) distils the decoder with a
discriminator on top, which flat shapes do not need.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import files
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.nn.stable_diffusion.autoencoder_tiny import AutoencoderTiny
from jaxgen.stable_diffusion import decoding, loading
from jaxgen.types import Array, Key, Params
from jaxgen.weights import diffusers, layout, weight_files
from jaxgen.weights.diffusers import Checkpoint, Component
from jaxgen.world import render, scene

STEM = "diffusion_pytorch_model"


class Plan(NamedTuple):
    """Says what is trained, and how long."""

    width: int = 16  # channels of all layers
    encoder_blocks: tuple[int, ...] = (1, 1, 1, 1)  # of each level, from pixels to latents
    decoder_blocks: tuple[int, ...] = (2, 2, 2, 1)  # of each level, from latents to pixels
    steps: int = 1200
    batch_size: int = 16
    learning_rate: float = 2e-3  # at the start; it falls to 0 as a cosine
    seed: int = 0


def distill(
    checkpoint: Checkpoint, plan: Plan, report: Callable[[int, float], None]
) -> tuple[Component, float]:
    """The tiny autoencoder of a checkpoint, and its decoder's PSNR on other pictures, in dB.

    report(step, loss) is called every hundred steps.
    """
    teacher = loading.networks(checkpoint).vae
    if not isinstance(teacher, AutoencoderKL):
        raise ValueError("the model's autoencoder is a tiny one already")
    known = layout.load(checkpoint.components["vae"].tensors, loading.shapes(teacher))
    config = {
        "_class_name": "AutoencoderTiny",
        "latent_channels": teacher.latent_channels,
        "encoder_block_out_channels": [plan.width] * len(plan.encoder_blocks),
        "decoder_block_out_channels": [plan.width] * len(plan.decoder_blocks),
        "num_encoder_blocks": list(plan.encoder_blocks),
        "num_decoder_blocks": list(plan.decoder_blocks),
    }
    component = Component("AutoencoderTiny", config, {})
    tiny = AutoencoderTiny(**diffusers.fields(component))
    params = _trained(plan, tiny, teacher, known, report)
    return diffusers.with_params(component, params), _psnr(tiny, params, teacher, known)


def write(folder: Path, component: Component) -> None:
    """Writes a new folder that diffusers' AutoencoderTiny loads, weights in float16."""

    def fill(partial_: Path) -> None:
        partial_.mkdir(parents=True)
        (partial_ / "config.json").write_text(files.dumps(component.config))
        dtype = np.dtype(np.float16)
        weight_files.write_component(partial_, STEM, component.tensors, dtype)

    folder.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(folder, fill)


def _trained(
    plan: Plan,
    tiny: AutoencoderTiny,
    teacher: AutoencoderKL,
    known: Params,
    report: Callable[[int, float], None],
) -> Params:
    init_key, train_key = jax.random.split(jax.random.key(plan.seed))
    pictures = jnp.zeros((1, scene.SIZE, scene.SIZE, 3))
    params = jax.jit(tiny.init)(init_key, pictures)["params"]
    tx = optax.adam(optax.cosine_decay_schedule(plan.learning_rate, plan.steps))

    @jax.jit
    def step(params: Params, opt_state: Any, known: Params, i: Array) -> Any:
        key = jax.random.fold_in(train_key, i)
        lesson = _examples(teacher, known, key, plan.batch_size)
        loss, grads = jax.value_and_grad(_loss)(params, tiny, *lesson)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = tx.init(params)
    for i in range(plan.steps):
        params, opt_state, loss = step(params, opt_state, known, jnp.int32(i))
        if (i + 1) % 100 == 0:
            report(i + 1, float(loss))
    return params


def _examples(
    teacher: AutoencoderKL, known: Params, key: Key, count: int
) -> tuple[Array, Array, Array]:
    """Pictures [B, H, W, 3] of random scenes, their latents as the sampler has them, and the means
    of these."""
    scene_key, noise_key = jax.random.split(key)
    x = jax.vmap(render.render)(scene.draw_many(scene_key, count))
    moments: Any = teacher.apply({"params": known}, x, method="encode")
    mean, logvar = moments
    noise = jax.random.normal(noise_key, mean.shape)
    z = decoding.scaled(teacher, mean + jnp.exp(logvar / 2) * noise)
    return x, z, decoding.scaled(teacher, mean)


def _loss(params: Params, tiny: AutoencoderTiny, x: Array, z: Array, mean: Array) -> Array:
    """The mean absolute error of decoded pictures and the squared one of encoded means."""
    variables = {"params": params}
    decoded: Any = tiny.apply(variables, z, method="decode")
    encoded: Any = tiny.apply(variables, x, method="encode")
    return jnp.mean(jnp.abs(decoded - x)) + jnp.mean((encoded[0] - mean) ** 2)


def _psnr(tiny: AutoencoderTiny, params: Params, teacher: AutoencoderKL, known: Params) -> float:
    """The decoder's PSNR beside 256 pictures that it was not trained on, in dB."""
    x, z, _ = jax.jit(partial(_examples, teacher, count=256))(known, jax.random.key(2**31))
    decoded: Any = jax.jit(partial(tiny.apply, method="decode"))({"params": params}, z)
    error = float(jnp.mean((jnp.clip(decoded, -1, 1) - x) ** 2))
    return 10 * float(np.log10(4 / error))
