# SPDX-License-Identifier: MIT
"""Compresses a data set without loss by a trained VAE, and restores it: its bound, in bytes.

Bits back with asymmetric numeral systems, Townsend, Bird & Barber 2019 (arXiv:1901.04866): an image
costs -log p(x | z) - log p(z) and gives back -log q(z | x), which is the bound. The coder is the
library constriction (pip install -e ".[compress]"). Networks must compute the same bits in both
directions: restore where you compressed, with the same versions.

Examples:
    python experiments/vae.py --run-dir runs/vae-digits
    python experiments/compress.py --run-dir runs/vae-digits --file digits.vae
    python experiments/compress.py --run-dir runs/vae-digits --file digits.vae --action restore
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import vae
from jaxgen import files, script
from jaxgen.evaluate import likelihood
from jaxgen.nn import functional
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.train import augment, losses
from parts import vae_model

MAGIC = b"jaxgen bits back 1\n"
HEADER_BYTES = 1000  # at most
MAX_BYTES = 2**31
WIDTH = 1 / 256  # of the bins of z: fine beside any posterior
BINS = 2048  # on either side of 0: eight standard deviations of the prior


@dataclass(frozen=True)
class Config:
    """Options of the compressor."""

    run_dir: str  # the folder of a run of vae.py
    file: Path  # the compressed file
    action: Literal["compress", "restore"] = "compress"  # restore also checks every image
    split: Literal["train", "test"] = "test"  # of the run's data
    num_images: int | None = None  # the first ones; all by default
    seed: int = 0  # of the binarization and of the first bits


class Codec(NamedTuple):
    """The networks as functions of one image or latent, on the host."""

    posterior: Any  # pixels of 0 and 1 [P] -> mean and standard deviation [D], in bins
    pixels: Any  # z [D] in bins -> probabilities of 1 [P]
    latent_dim: int


def codec_of(config: vae_model.Config, examples: Any, params: Any) -> Codec:
    """Builds the codec of a trained VAE. Raises ValueError for a model that has no such code."""
    if not vae_model.is_binarized(config):
        raise ValueError("pixels must be drawn as 0 or 1: a run with --likelihood bernoulli")
    if config.conditional or config.top_dim or config.pseudo_inputs:
        raise ValueError(
            "bits back needs q(z | x) and N(0, I) alone: a run without --conditional, --top-dim "
            "and --pseudo-inputs"
        )
    encoder, decoder = vae_model.networks(config, examples)
    encode, decode = jax.jit(functional.apply(encoder)), jax.jit(functional.apply(decoder))

    def posterior(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = jnp.asarray(2.0 * bits - 1, jnp.float32).reshape(examples.image_shape)
        mean, logvar = np.split(np.asarray(encode(params["encoder"], x), np.float64), 2)
        return mean / WIDTH, np.exp(logvar / 2) / WIDTH

    def pixels(z: np.ndarray) -> np.ndarray:
        logits = decode(params["decoder"], jnp.asarray(z * WIDTH, jnp.float32))
        return 1 / (1 + np.exp(-np.asarray(logits, np.float64).ravel()))

    return Codec(posterior, pixels, config.latent_dim)


def import_coder() -> Any:
    """Imports the library of the coder. Raises ImportError with what to install."""
    try:
        return importlib.import_module("constriction").stream
    except ImportError:
        raise ImportError('the coder is missing: pip install -e ".[compress]"') from None


def models(stream: Any) -> tuple[Any, Any, Any]:
    """Builds the distributions of z, in bins, by mean and deviation and by the prior; of pixels."""
    gaussian = stream.model.QuantizedGaussian(-BINS, BINS)
    prior = stream.model.QuantizedGaussian(-BINS, BINS, 0.0, 1 / WIDTH)
    return gaussian, prior, stream.model.Bernoulli(perfect=False)


def compress(codec: Codec, bits: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Writes images of 0 and 1 [N, P] as words, on a stack that begins with the words `start`."""
    stream = import_coder()
    gaussian, prior, bernoulli = models(stream)
    words = start
    for i, image in enumerate(bits):
        stack = stream.stack.AnsCoder(masked(words, i, codec.latent_dim))
        z = stack.decode(gaussian, *codec.posterior(image))  # the bits that come back
        stack.encode_reverse(image.astype(np.int32), bernoulli, codec.pixels(z))
        stack.encode_reverse(z, prior)
        words = stack.get_compressed()
    return words


def restore(codec: Codec, words: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads images [count, P] back from words; also returns the words that the stack began with."""
    stream = import_coder()
    gaussian, prior, bernoulli = models(stream)
    images = []
    for i in reversed(range(count)):  # a stack: the last image comes first
        stack = stream.stack.AnsCoder(words)
        z = stack.decode(prior, codec.latent_dim)
        image = stack.decode(bernoulli, codec.pixels(z))
        stack.encode_reverse(z, gaussian, *codec.posterior(image))
        words = masked(stack.get_compressed(), i, codec.latent_dim)
        images.append(image)
    return np.array(images[::-1], np.uint8), words


def masked(words: np.ndarray, i: int, latent_dim: int) -> np.ndarray:
    """Combines (xor) the words that the next z can need with random ones.

    Otherwise the z of an image would be read from the bits to which the prior's distribution
    function has just written the z before it, and would be mean + deviation * that z: a walk where
    the deviation is near 1, which costs a fifth of the file (test_compress.py). The last word,
    which must not be 0, stays.
    """
    count = min(len(words) - 1, latent_dim + 2)
    mask = np.random.default_rng(i).integers(0, 2**32, count, dtype=np.uint32)
    words = words.copy()
    words[-1 - count : -1] ^= mask
    return words


def starting_words(seed: int, latent_dim: int) -> np.ndarray:
    """Draws random words of 32 bits from which the first image takes its z: more than it needs.

    None is 0: the coder could not tell a last 0 from nothing.
    """
    return np.random.default_rng(seed).integers(1, 2**32, latent_dim + 4, dtype=np.uint32)


def binary_images(config: Config, run_options: Any) -> np.ndarray:
    """Reads the images of the split and draws each pixel as 0 or 1: uint8 [N, H, W, C]."""
    images = run.load_split(run_options, config.split).images[: config.num_images]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(config.seed), jnp.arange(len(images))
    )
    x = jax.vmap(losses.binarize)(keys, augment.to_unit_range(jnp.asarray(images)))
    return np.asarray(x > 0, np.uint8)


def write(path: Path, words: np.ndarray, shape: tuple[int, ...]) -> None:
    """Writes words and the shape of the images [N, H, W, C] into one file."""
    header = MAGIC + json.dumps({"shape": shape}).encode() + b"\n"
    files.write_whole(path, lambda p: p.write_bytes(header + words.astype("<u4").tobytes()))


def read(path: Path) -> tuple[np.ndarray, tuple[int, ...]]:
    """Reads the words and the shape in a file. Raises ValueError for another kind of file."""
    content = files.read_bytes(path, MAX_BYTES)
    end = content.find(b"\n", len(MAGIC))
    if not content.startswith(MAGIC) or not len(MAGIC) < end < HEADER_BYTES:
        raise ValueError(f"{path} is no file of compress.py")
    shape = files.parse_object(content[len(MAGIC) : end], str(path)).get("shape")
    words = content[end + 1 :]
    if not isinstance(shape, list) or len(shape) != 4 or len(words) % 4:
        raise ValueError(f"{path} is damaged; compress again")
    return np.frombuffer(words, "<u4").astype(np.uint32), tuple(int(n) for n in shape)


def negative_bound(
    config: vae_model.Config, examples: Any, params: Any, images: np.ndarray
) -> float:
    """Computes the mean negative ELBO of these images in nats, by the analytic KL and new draws."""
    encode, decode = map(functional.apply, vae_model.networks(config, examples))
    loss = losses.vae_loss(encode, decode, losses.bernoulli)
    test = {"images": 2.0 * images - 1, "labels": np.zeros(len(images), np.int32)}
    return likelihood.mean_terms(loss, params, test, jax.random.key(1))["neg_elbo_nats"][0]


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED)
    plan.check_range(config, 1, "num_images")
    import_coder()
    flags = [f"--run-dir={config.run_dir}", "--action", "evaluate"]
    model = command_line.parse("vae", vae_model.PRESETS, "", flags)
    script.set_up()
    state, _, examples = run.restore(model, vae.build)
    params = experiment.model(state, model.run).params
    codec = codec_of(model, examples, params)
    images = binary_images(config, model.run)
    start = starting_words(config.seed, codec.latent_dim)

    if config.action == "restore":
        words, shape = read(config.file)
        if shape[1:] != images.shape[1:]:
            raise ValueError(f"{config.file} holds images {shape[1:]}, the run {images.shape[1:]}")
        restored, rest = restore(codec, words, shape[0])
        if not (np.array_equal(restored.reshape(shape), images) and np.array_equal(rest, start)):
            raise ValueError(
                f"{config.file} does not hold these images: another run, split, seed or machine?"
            )
        print(f"{len(restored)} images restored, each bit as it was")
        return

    words = compress(codec, images.reshape(len(images), -1).astype(np.int32), start)
    write(config.file, words, images.shape)
    bits = 32 * (len(words) - len(start))
    nats = negative_bound(model, examples, params, images)
    bound = nats * len(images) / math.log(2)
    size = math.prod(images.shape)
    print(
        f"{len(images)} images: {bits / size:.4f} bits a pixel ({bits / 8:.0f} bytes without the "
        f"{4 * len(start)} random ones at the start, {config.file.stat().st_size} in the file); "
        f"negative ELBO {bound / size:.4f} bits a pixel: {100 * (bits / bound - 1):+.2f} %"
    )


if __name__ == "__main__":
    script.main(main)
