# SPDX-License-Identifier: MIT
"""Compresses a data set without loss by a trained VAE, and restores it: its bound, in bytes.

Bits back with asymmetric numeral systems, Townsend, Bird & Barber 2019 (arXiv:1901.04866): an image
costs -log p(x | z) - log p(z) and gives back -log q(z | x), which is the bound. The coder is the
library constriction (pip install -e ".[compress]"). Networks must compute the same bits in both
directions: restore where you compressed, with the same versions. Restoring needs the run's folder
and the file, not the data set: digests in the file say whether each bit is as it was.

Examples:
    python experiments/vae.py --run-dir runs/vae-digits
    python experiments/compress.py --run-dir runs/vae-digits --file digits.vae
    python experiments/compress.py --run-dir runs/vae-digits --file digits.vae --action restore
    python experiments/vae.py --data digits.npz    # the restored images
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import hashlib
import importlib
import io
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
from jaxgen.data import source
from jaxgen.evaluate import likelihood
from jaxgen.nn import functional
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.train import augment, losses
from parts import vae_model

MAGIC = b"jaxgen bits back 2\n"
MAX_BYTES = 2**31
OTHER_BITS = "restore on the machine and with the versions that compressed"
WIDTH = 1 / 256  # of the bins of z: fine beside any posterior
BINS = 2048  # on either side of 0: eight standard deviations of the prior
READ_WITH = {
    ("action", "compress"): ("split", "num_images", "seed"), ("action", "restore"): ("output",),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Options of the compressor."""

    run_dir: str  # the folder of a run of vae.py
    file: Path  # the compressed file
    action: Literal["compress", "restore"] = "compress"
    split: Literal["train", "test"] = "test"  # compress: of the run's data
    num_images: int | None = None  # compress: the first ones; all by default
    seed: int = 0  # compress: of the binarization and of the first bits
    output: Path | None = None  # restore: the .npz to write; beside the file by default


class Codec(NamedTuple):
    """The networks as functions of one image or latent, on the host."""

    posterior: Any  # pixels of 0 and 1 [P] -> mean and standard deviation [D], in bins
    pixels: Any  # z [D] in bins -> probabilities of 1 [P]
    latent_dim: int


class Compressed(NamedTuple):
    """What a file holds."""

    shape: tuple[int, ...]  # of the images [N, H, W, C]
    model: bytes  # digest of the parameters
    images: bytes  # digest of the images, of 0 and 1
    words: np.ndarray  # of 32 bits


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
    """Reads images [count, P] back from words; also returns the words that the stack began with.

    Raises ValueError for words that end too early to be of this codec.
    """
    stream = import_coder()
    gaussian, prior, bernoulli = models(stream)
    images = []
    for i in reversed(range(count)):  # a stack: the last image comes first
        stack = stream.stack.AnsCoder(words)
        z = stack.decode(prior, codec.latent_dim)
        image = stack.decode(bernoulli, codec.pixels(z))
        if stack.is_empty():  # below the first image is still what the stack began with
            raise ValueError(f"the words end before the images; {OTHER_BITS}")
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
    images = run.load_split(run_options, config.split).images
    if (config.num_images or 0) > len(images):
        raise ValueError(
            f"--num-images is {config.num_images}, and {run_options.data} has {len(images)} "
            f"{config.split} images; use at most so many"
        )
    images = images[: config.num_images]
    key = jax.random.key(config.seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    x = jax.vmap(losses.binarize)(keys, augment.to_unit_range(jnp.asarray(images)))
    return np.asarray(x > 0, np.uint8)


def digest_of(arrays: Any) -> bytes:
    """Computes the SHA-256 of all numbers of a tree of arrays."""
    leaves = jax.tree.leaves(arrays)
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).digest()


def write(path: Path, compressed: Compressed) -> None:
    """Writes a file: what `Compressed` has, one after the other."""
    header = np.array(compressed.shape, "<u4").tobytes() + compressed.model + compressed.images
    content = files.sealed(header + compressed.words.astype("<u4").tobytes())
    files.write_whole(path, lambda p: p.write_bytes(MAGIC + content))


def read(path: Path) -> Compressed:
    """Reads a file. Raises ValueError for a damaged one, and for another kind of file."""
    data = files.read_bytes(path, MAX_BYTES)
    if not data.startswith(MAGIC):
        raise ValueError(f"{path} is no file of compress.py")
    with files.one_error(path):
        content = files.unsealed(data[len(MAGIC) :])
        numbers = np.frombuffer(content, "<u4").astype(np.uint32)
    return Compressed(tuple(numbers[:4].tolist()), content[16:48], content[48:80], numbers[20:])


def open_blank(run_options: Any, split: str) -> source.Source:
    """Opens black images in the place of a run's own, on whose pixels its model does not depend."""
    path = run.folder(run_options) / "data.json"
    facts = files.read_object(path)
    with files.one_error(path):
        blank = np.broadcast_to(np.uint8(0), (facts["num_examples"], *facts["image_shape"]))
        labels, classes = np.zeros(len(blank), np.int32), tuple(facts["class_names"])
        return source.from_arrays(blank, labels, classes, image_size=None, channels=None)


def negative_bound(
    config: vae_model.Config, examples: Any, params: Any, images: np.ndarray
) -> float:
    """Computes the mean negative ELBO of these images in nats, by the analytic KL and new draws."""
    encode, decode = map(functional.apply, vae_model.networks(config, examples))
    loss = losses.vae_loss(encode, decode, losses.bernoulli)
    test = {"images": 2.0 * images - 1, "labels": np.zeros(len(images), np.int32)}
    return likelihood.mean_terms(loss, params, test, jax.random.key(1))["neg_elbo_nats"][0]


def write_compressed(config: Config, model: vae_model.Config) -> None:
    """Compresses the images of a split; prints their size beside the bound."""
    files.check_new(config.file, "--file")
    files.check_writable(config.file)
    state, _, examples = run.restore(model, vae.build)
    params = experiment.model(state, model.run).params
    codec = codec_of(model, examples, params)
    images = binary_images(config, model.run)
    start = starting_words(config.seed, codec.latent_dim)
    words = compress(codec, images.reshape(len(images), -1).astype(np.int32), start)
    write(config.file, Compressed(images.shape, digest_of(params), digest_of(images), words))

    bits = 32 * (len(words) - len(start))
    bound = negative_bound(model, examples, params, images) * len(images) / math.log(2)
    size = math.prod(images.shape)
    print(
        f"{len(images)} images: {bits / size:.4f} bits a pixel ({bits / 8:.0f} bytes without the "
        f"{4 * len(start)} random ones at the start, {config.file.stat().st_size} in the file); "
        f"negative ELBO {bound / size:.4f} bits a pixel: {100 * (bits / bound - 1):+.2f} %"
    )


def write_restored(config: Config, model: vae_model.Config) -> None:
    """Restores the images in the file and writes them, if each bit is as it was."""
    output = config.output or config.file.with_suffix(".npz")
    files.check_new(output, "--output")
    files.check_writable(output)
    shape, model_digest, images_digest, words = read(config.file)
    state, _, examples = run.restore(model, vae.build, open_blank)
    params = experiment.model(state, model.run).params
    codec = codec_of(model, examples, params)
    if shape[1:] != examples.image_shape:
        raise ValueError(f"{config.file} holds images {shape[1:]}, the run {examples.image_shape}")
    if model_digest != digest_of(params):
        raise ValueError(
            f"{config.file} is of another model than the one in {config.run_dir}; give the run "
            f"that it was compressed with, as it was then"
        )
    with files.one_error(config.file):
        bits, _ = restore(codec, words, shape[0])
        if digest_of(bits) != images_digest:
            raise ValueError(f"other images than were compressed; {OTHER_BITS}")
    content = io.BytesIO()
    np.savez_compressed(content, images=255 * bits.reshape(shape))  # black and white
    files.write_whole(output, lambda p: p.write_bytes(content.getvalue()))
    print(f"{len(bits)} images restored, each bit as it was: {output}")


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    command_line.check_read(config, READ_WITH)
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED)
    plan.check_range(config, 1, "num_images")
    import_coder()
    flags = [f"--run-dir={config.run_dir}", "--action", "evaluate"]
    model = command_line.parse("vae", vae_model.PRESETS, "", flags)
    script.set_up()
    (write_compressed if config.action == "compress" else write_restored)(config, model)


if __name__ == "__main__":
    script.main(main)
