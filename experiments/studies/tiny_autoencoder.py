# SPDX-License-Identifier: MIT
"""Distils a tiny autoencoder (TAESD) for a small model of the world, to draw its previews.

Its decoder learns the pictures of random scenes from the latents that the model's own encoder draws
for them, its encoder the means of these; each by itself. Bohan 2023 (github.com/madebyollin/taesd)
distils with a discriminator on top, which flat shapes do not need.

Examples:
    python experiments/studies/tiny_autoencoder.py                   # of shapes, 13 min. of a core
    python experiments/studies/tiny_autoencoder.py --model runs/mine --output runs/mine_tiny

The folder that it writes is one that --preview, vae= and diffusers' AutoencoderTiny take.
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from optax import contrib

from jaxgen import files, script
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.nn.stable_diffusion.autoencoder_tiny import AutoencoderTiny
from jaxgen.runs import plan
from jaxgen.stable_diffusion import decoding, loading
from jaxgen.train import augment, losses, optimizer, step
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params
from jaxgen.weights import diffusers, hub, layout, weight_files
from jaxgen.weights.diffusers import Component
from jaxgen.world import render, scene

STEM = "diffusion_pytorch_model"
CHUNK = 64  # pictures that are encoded at once
REPORT = 250  # steps from one line of progress to the next
HELD_OUT = 2**30  # the first number of scenes that are not trained on


@dataclass(frozen=True)
class Config:
    """Options of the distillation."""

    model: str = hub.EMBEDDED  # whose autoencoder to copy: a model of the world
    output: Path = Path("runs/tiny_autoencoder")  # a new folder
    width: int = 32  # channels of all layers
    encoder_blocks: tuple[int, ...] = (0, 1, 2, 2)  # of each level, from pixels to latents
    decoder_blocks: tuple[int, ...] = (4, 4, 2, 0)  # of each level, from latents to pixels
    num_scenes: int = 8192  # to train on
    num_tests: int = 256  # other scenes, to measure with
    steps: int = 6000  # of the decoder
    encoder_steps: int = 1500
    batch_size: int = 8
    learning_rate: float = 5e-3  # at the start; it falls to 0 as a cosine
    seed: int = 0


class Teacher(NamedTuple):
    """The autoencoder that is copied."""

    vae: AutoencoderKL
    params: Params


def open_teacher(model: str) -> Teacher:
    """Finds the autoencoder of a model. Raises ValueError for a tiny one."""
    checkpoint = hub.open_checkpoint(model)
    vae = loading.networks(checkpoint).vae
    if not isinstance(vae, AutoencoderKL):
        raise ValueError(f"the autoencoder of {model} is a tiny one already; give another model")
    return Teacher(vae, layout.load(checkpoint.components["vae"].tensors, loading.shapes(vae)))


def examples(teacher: Teacher, first: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Draws scenes from number `first` on, uint8, and the posterior of their latents."""
    key, chunk = jax.random.key(seed), min(count, CHUNK)

    @jax.jit
    def some(params: Params, start: Array) -> tuple[Array, Any]:
        keys = jax.vmap(partial(jax.random.fold_in, key))(start + jnp.arange(chunk))
        x = jax.vmap(render.render)(jax.vmap(scene.draw)(keys))
        moments = teacher.vae.apply({"params": params}, x, method="encode")
        return jnp.round((x + 1) * 127.5).astype(jnp.uint8), moments

    parts = [
        jax.device_get(some(teacher.params, jnp.int32(start)))
        for start in range(first, first + count, chunk)
    ]
    columns = ([p[0] for p in parts], [p[1][0] for p in parts], [p[1][1] for p in parts])
    names = ("image", "mean", "logvar")
    return {n: np.concatenate(c)[:count] for n, c in zip(names, columns, strict=True)}


def component_of(config: Config, teacher: AutoencoderKL) -> Component:
    """Describes the tiny autoencoder as diffusers stores it, without weights."""
    levels = len(teacher.block_out_channels)
    for name in ("encoder_blocks", "decoder_blocks"):
        if len(getattr(config, name)) != levels:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} needs {levels} numbers, one a level of the model's own")
    return Component(
        "AutoencoderTiny",
        {
            "_class_name": "AutoencoderTiny",
            "latent_channels": teacher.latent_channels,
            "encoder_block_out_channels": [config.width] * levels,
            "decoder_block_out_channels": [config.width] * levels,
            "num_encoder_blocks": list(config.encoder_blocks),
            "num_decoder_blocks": list(config.decoder_blocks),
        },
        {},
    )


def decoder_loss(tiny: AutoencoderTiny, teacher: AutoencoderKL) -> LossFn:
    """mean |d| + mean d^2 over pixels, d = x - decode(z), z drawn from the model's posterior."""

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        z = losses.reparameterize(key, example["mean"], example["logvar"])
        z = decoding.scaled(teacher, z[None])  # as the sampler has it
        error: Any = tiny.apply({"params": params}, z, method="decode")
        error = error[0] - example["image"]
        mse = jnp.mean(error**2)
        total = jnp.mean(jnp.abs(error)) + mse
        return total, {"loss": total, "mse": mse}

    return loss


def encoder_loss(tiny: AutoencoderTiny, teacher: AutoencoderKL) -> LossFn:
    """mean d^2 over the entries of a latent, d = mean(x) - encode(x), mean(x) the posterior's."""

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        encoding: Any = tiny.apply({"params": params}, example["image"][None], method="encode")
        mean = decoding.scaled(teacher, example["mean"][None])
        mse = jnp.mean((encoding[0] - mean) ** 2)
        return mse, {"loss": mse, "mse": mse}

    return loss


def initial(key: Key, tiny: AutoencoderTiny) -> Params:
    """Makes parameters with which every block returns its input: it has no norms at first."""
    params = jax.jit(tiny.init)(key, jnp.zeros((1, scene.SIZE, scene.SIZE, 3)))["params"]

    def scaled(path: Any, x: Array) -> Array:
        # He et al. 2015 (arXiv:1502.01852): twice the variance, since the ReLU leaves half of it
        return x * (0.0 if "conv_4" in jax.tree_util.keystr(path) else 2**0.5)

    return jax.tree_util.tree_map_with_path(scaled, params)


def muon(learning_rate: float, num_steps: int, params: Params) -> optax.GradientTransformation:
    """Builds Muon (Jordan 2024), half of Adam's steps suffice with it; Adam for the biases."""
    rate = optimizer.schedule(learning_rate, num_steps, "cosine", min(50, num_steps // 2))
    kernel = contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=(3,))
    dimensions = jax.tree.map(lambda x: kernel if x.ndim == 4 else None, params)
    return contrib.muon(rate, muon_weight_dimension_numbers=dimensions)


def train(
    loss: LossFn,
    params: Params,
    dataset: dict[str, np.ndarray],
    config: Config,
    num_steps: int,
    key: Key,
    report: Callable[[int, float], None],
) -> Params:
    """The parameters after so many steps on batches drawn at random; report(step, mean loss)."""
    tx = muon(config.learning_rate, num_steps, params)
    one = jax.jit(step.gradient_step(augment.on_uint8(loss), tx), donate_argnums=0)
    state, rng = step.init_state(params, tx), np.random.default_rng(config.seed)
    recent: list[Array] = []
    for i in range(num_steps):
        rows = rng.integers(0, len(dataset["image"]), config.batch_size)
        state, metrics = one(state, {name: x[rows] for name, x in dataset.items()}, key)
        recent.append(metrics["loss"])
        if (i + 1) % REPORT == 0 or i + 1 == num_steps:
            report(i + 1, float(np.mean(jax.device_get(recent))))
            recent = []
    return state.params


def quality(
    tiny: AutoencoderTiny, params: Params, teacher: Teacher, dataset: dict[str, np.ndarray]
) -> dict[str, float]:
    """Mean squared errors as PSNR in dB, over pictures that were not trained on."""
    x = augment.to_unit_range(jnp.asarray(dataset["image"]))
    z = decoding.scaled(teacher.vae, jnp.asarray(dataset["mean"]))

    @jax.jit
    def decoded(params: Params, own: Params, x: Array, z: Array) -> tuple[Any, Any, Any]:
        apply = partial(tiny.apply, {"params": params})
        latent: Any = apply(x, method="encode")
        unscaled = decoding.unscaled(teacher.vae, z)
        whole = teacher.vae.apply({"params": own}, unscaled, method="decode")
        return apply(z, method="decode"), apply(latent[0], method="decode"), whole

    parts = [
        decoded(params, teacher.params, x[i : i + CHUNK], z[i : i + CHUNK])
        for i in range(0, len(x), CHUNK)
    ]
    tiny_x, again, own = (jnp.clip(jnp.concatenate(p), -1, 1) for p in zip(*parts, strict=True))
    return {
        "its decoder beside the scenes": psnr(tiny_x, x),
        "its decoder beside the model's own": psnr(tiny_x, own),
        "its encoder and decoder beside the scenes": psnr(again, x),
        "the model's own decoder beside the scenes": psnr(own, x),
    }


def psnr(a: Array, b: Array) -> float:
    """Computes the peak signal-to-noise ratio of pictures in [-1, 1], in dB."""
    return 10 * float(np.log10(4 / jnp.mean((a - b) ** 2)))


def write(folder: Path, component: Component) -> None:
    """Writes a new folder that diffusers' AutoencoderTiny loads, weights in float16."""

    def fill(inside: Path) -> None:
        inside.mkdir(parents=True)
        (inside / "config.json").write_text(files.dumps(component.config))
        weight_files.write_component(inside, STEM, component.tensors, np.dtype(np.float16))

    folder.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(folder, fill)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    plan.check_range(config, 1, "width", "num_scenes", "num_tests", "batch_size")
    plan.check_range(config, 1, "steps", "encoder_steps")
    plan.check_range(config, 0, "encoder_blocks", "decoder_blocks", "learning_rate")
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED)
    files.check_new(config.output)
    script.set_up()
    teacher = open_teacher(config.model)
    component = component_of(config, teacher.vae)
    tiny = AutoencoderTiny(**diffusers.fields(component))
    dataset = examples(teacher, 0, config.num_scenes, config.seed)
    init_key, noise_key = jax.random.split(jax.random.key(config.seed))
    params = initial(init_key, tiny)
    parts = {
        "encoder": (encoder_loss(tiny, teacher.vae), config.encoder_steps),
        "decoder": (decoder_loss(tiny, teacher.vae), config.steps),
    }
    for name, (loss, num_steps) in parts.items():
        half = train(
            loss, {name: params[name]}, dataset, config, num_steps, noise_key,
            lambda i, value, name=name: print(f"{name}, step {i}: loss {value:.4f}", flush=True),
        )  # fmt: skip
        params = {**params, **half}
    write(config.output, diffusers.with_params(component, params))
    print(config.output)
    test = examples(teacher, HELD_OUT, config.num_tests, config.seed)
    for text, decibels in quality(tiny, params, teacher, test).items():
        print(f"{text}: {decibels:.1f} dB")


if __name__ == "__main__":
    script.main(main)
