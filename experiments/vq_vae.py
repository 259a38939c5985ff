# SPDX-License-Identifier: MIT
"""Trains a VQ-VAE: images as maps of numbers of learned vectors; draws its reconstructions.

Examples:
    python experiments/vq_vae.py                                 # handwritten digits, a minute
    python experiments/vq_vae.py --codes 64 --stages 2
    python experiments/vq_vae.py --preset mnist
    python experiments/vq_vae.py --run-dir runs/vq_vae-digits --action evaluate
    python experiments/vq_vae.py --run-dir runs/vq_vae-digits --action sample
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from jaxgen import script
from jaxgen.evaluate import features, judge, likelihood, quality
from jaxgen.evaluate.quality import MOST_IMAGES
from jaxgen.nn import autoencoder, functional
from jaxgen.pictures import images
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import augment, step, vector_quantized
from jaxgen.types import Array, Key, Params


@dataclass(frozen=True)
class Config:
    """Options of the VQ-VAE."""

    action: Literal["train", "sample", "evaluate"] = may_change("train")  # what to do with a run
    preset: Literal["digits", "mnist", "cifar10"] = "digits"  # defaults for this data set
    codes: int = 32  # vectors of the codebook
    code_dim: int = 16  # entries of each vector
    stages: int = 1  # times that the map halves the image's sides
    width: int = 32  # features of the convolutions
    commitment: float = 0.25  # weight of the encoder's distance from its vectors
    codebook_decay: float = 0.99  # of the moving averages that the vectors are made of
    restart_below: float = 0.03  # a vector begins anew below this part of an equal share of the use
    features: str = may_change("random")  # evaluate: random, judge or inception:FILE[:SHA256]
    num_samples: int = may_change(64)  # sample: how many images
    # sample: the PNG to write; in the run's folder by default
    output: str | None = may_change(None)
    # its flags are made by command_line.py
    run: tyro.conf.Fixed[RunOptions] = field(default_factory=RunOptions)


PRESETS = {
    "digits": Config(run=RunOptions(steps=1000, batch_size=64, draw_every=250)),
    "mnist": Config(
        preset="mnist", codes=128, stages=2, width=64,
        run=RunOptions(data="mnist", epochs=10, draw_every=1000, checkpoint_every=2000),
    ),
    "cifar10": Config(
        preset="cifar10", codes=512, code_dim=64, stages=2, width=128,
        run=RunOptions(
            data="cifar10", epochs=50, augment="flip", learning_rate=2e-4, draw_every=2000,
            checkpoint_every=2000,
        ),
    ),
}  # fmt: skip
READ_WITH = {
    ("action", "sample"): ("num_samples", "output"),
    ("action", "evaluate"): ("features",),
}


def networks_of(config: Config, examples: Examples) -> tuple[Any, Any]:
    """Builds encoder [H, W, C] -> [h, w, D] and the decoder back, as linen modules."""
    dtype = experiment.network_dtype(config.run)
    channels = examples.image_shape[-1]
    return (
        autoencoder.MapEncoder(config.code_dim, config.width, config.stages, dtype),
        autoencoder.MapDecoder(channels, config.width, config.stages, dtype),
    )


def map_shape(config: Config, examples: Examples) -> tuple[int, int]:
    """Computes the sides of the map of numbers."""
    height, width, _ = examples.image_shape
    return height // 2**config.stages, width // 2**config.stages


def build(config: Config, examples: Examples) -> System:
    """Builds the System of the VQ-VAE: its first state, its step, its pictures."""
    plan.check_range(config, 1, "codes", "code_dim", "stages", "width", "num_samples")
    plan.check_range(config, 0, "commitment")
    if config.run.accumulate > 1:
        raise ValueError("a codebook looks at the whole batch; use --accumulate 1")
    encoder, decoder = networks_of(config, examples)
    encode, decode = functional.apply(encoder), functional.apply(decoder)
    loss = vector_quantized.vq_loss(encode, decode, config.commitment)
    options = config.run
    num_steps = experiment.num_steps(options, examples, options.batch_size)
    tx = vector_quantized.optimizer(
        experiment.optimizer_of(options, num_steps), config.codebook_decay, config.restart_below
    )

    def init(key: Key) -> Any:
        encoder_key, decoder_key, codebook_key = jax.random.split(key, 3)
        sides = map_shape(config, examples)
        params = {
            "encoder": functional.init(encoder, encoder_key, jnp.zeros(examples.image_shape)),
            "decoder": functional.init(decoder, decoder_key, jnp.zeros((*sides, config.code_dim))),
            "codebook": vector_quantized.init_codebook(
                codebook_key, config.codes, config.code_dim, math.prod(sides)
            ),
        }
        return step.init_state(params, tx)

    return System(
        init=init,
        step=step.gradient_step(augment.on_uint8(loss, augment.by_name(options.augment)), tx),
        draw=partial(draw, encode, decode),
        images_per_step=options.batch_size,
        progress_metrics=("loss", "mse", "perplexity"),
        convolutional=True,
    )


def draw(
    encode: Any, decode: Any, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Draws reconstructions beside inputs, and images of numbers drawn from their histograms."""
    x = augment.to_unit_range(jnp.asarray(examples.images))
    numbers = numbers_of(encode, state.params, x)
    samples = independent_numbers(key, numbers, 100)
    images_of = partial(show, decode, state.params)
    return {
        "reconstructions": images.beside(images.to_uint8(x), images.to_uint8(images_of(numbers))),
        "samples": images.grid(images.to_uint8(images_of(samples)), 10),
    }


def numbers_of(encode: Any, params: Params, x: Array) -> Array:
    """Encodes a batch of images as maps of numbers: [N, H, W, C] -> int32 [N, h, w]."""
    z = jax.jit(encode)(params["encoder"], x)
    return vector_quantized.nearest(params["codebook"].vectors, z)


def show(decode: Any, params: Params, numbers: Array) -> Array:
    """Decodes maps of numbers to images: [N, h, w] -> [N, H, W, C]."""
    return jax.jit(decode)(params["decoder"], params["codebook"].vectors[numbers])


def independent_numbers(key: Key, numbers: Array, count: int) -> Array:
    """Draws maps [count, h, w], each place by itself from that place of `numbers` [N, h, w].

    A draw knows how often a number stands at a place, and nothing of its neighbours: samples show
    what a learned prior over the maps (the paper has a PixelCNN) would have to add.
    """
    places = jax.random.randint(key, (count, *numbers.shape[1:]), 0, len(numbers))
    return jnp.take_along_axis(numbers, places, axis=0)


def numbers_of_set(encode: Any, params: Params, pixels: np.ndarray) -> Array:
    """Encodes uint8 images [N, H, W, C] as maps of numbers, int32 [N, h, w], part by part."""
    parts = np.array_split(pixels, max(1, len(pixels) // 1000))
    return jnp.concatenate(
        [numbers_of(encode, params, augment.to_unit_range(jnp.asarray(part))) for part in parts]
    )


def samples_of(
    encode: Any, decode: Any, params: Params, train: np.ndarray, count: int, key: Key
) -> np.ndarray:
    """Draws images uint8 [count, H, W, C] of numbers that are independent, place by place.

    Each is one of the numbers that training images have at its place.
    """
    numbers = independent_numbers(key, numbers_of_set(encode, params, train), count)
    parts = [show(decode, params, numbers[i : i + 500]) for i in range(0, count, 500)]
    return images.measurable(np.concatenate(parts))


def sample(config: Config) -> None:
    """Draws images of independent numbers, and writes one grid."""
    path = run.samples_file(config.run, config.output)
    state, done, examples = run.restore(config, build)
    encode, decode = map(functional.apply, networks_of(config, examples))
    params = experiment.model(state, config.run).params
    train, key = run.load_split(config.run, "train").images, experiment.sample_key(config.run)
    pictures = samples_of(encode, decode, params, train, config.num_samples, key)
    images.save(path, images.grid(pictures))
    print(f"{config.num_samples} samples of independent numbers, step {done}: {path}")


def evaluate(config: Config) -> None:
    """Prints the test set's error, the use of the codebook, what a code costs, and distances.

    The distances are those of samples of independent numbers: without a learned prior.
    """
    state, done, examples = run.restore(config, build)
    encode, decode = map(functional.apply, networks_of(config, examples))
    loss = augment.on_uint8(vector_quantized.vq_loss(encode, decode, config.commitment))
    train, test = (run.load_split(config.run, split) for split in ("train", "test"))
    extract = features.by_name(config.features, lambda: judge.train(train, test))
    places, count = math.prod(map_shape(config, examples)), min(len(test.images), MOST_IMAGES)
    for i in range(config.run.num_models):
        params = experiment.model(state, config.run, i).params
        key, samples_key = jax.random.split(experiment.sample_key(config.run))
        mse, error = likelihood.mean_terms(loss, params, test._asdict(), key)["mse"]
        numbers = np.ravel(numbers_of_set(encode, params, test.images))
        counts = np.bincount(numbers, minlength=config.codes)
        usage = counts[counts > 0] / counts.sum()
        perplexity = np.exp(-np.sum(usage * np.log(usage)))
        print(
            f"model {i}, step {done}, {len(test.images)} test images: mse {mse:.5f} +- {error:.5f} "
            f"on [-1, 1]; {len(usage)} of {config.codes} vectors used, "
            f"perplexity {perplexity:.1f}; "
            f"{places} numbers an image, {places * np.log2(perplexity):.0f} bits"
        )
        drawn = samples_of(encode, decode, params, train.images, count, samples_key)
        print("samples of independent numbers, as frequent at each place as in training images:")
        print(*quality.report(drawn, train.images, test.images, extract), sep="\n")


def main() -> None:
    config = command_line.parse("vq_vae", PRESETS, __doc__, read_with=READ_WITH)
    script.set_up(config.run.distributed)
    match config.action:
        case "train":
            run.train("vq_vae", config, build)
        case "sample":
            sample(config)
        case "evaluate":
            evaluate(config)


if __name__ == "__main__":
    script.main(main)
