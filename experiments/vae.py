# SPDX-License-Identifier: MIT
"""Trains a variational autoencoder; draws samples from it; measures its likelihood.

Examples:
    python experiments/vae.py                                    # handwritten digits, a minute
    python experiments/vae.py --preset mnist --network conv      # MNIST through TFDS
    python experiments/vae.py --data path/to/images --image-size 32 --likelihood logistic
    python experiments/vae.py --run-dir runs/vae-digits --resume --steps 8000
    python experiments/vae.py --run-dir runs/vae-digits --action evaluate
    python experiments/vae.py --run-dir runs/vae-digits --action sample --num-samples 100
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import math
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from PIL import Image

from jaxgen import script
from jaxgen.evaluate import likelihood
from jaxgen.nn import autoencoder, functional
from jaxgen.pictures import images, latent_space
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import augment, losses, step
from jaxgen.types import Array, Key, Params


@dataclass(frozen=True)
class Config:
    """Options of the VAE."""

    action: Literal["train", "sample", "evaluate"] = may_change("train")  # what to do with a run
    preset: Literal["digits", "mnist", "cifar10"] = "digits"  # defaults for this data set
    network: Literal["dense", "conv"] = "dense"  # kind of encoder and decoder
    latent_dim: int = 20  # entries of z
    hidden: tuple[int, ...] = (500,)  # dense: units of the encoder's layers; the decoder mirrors it
    width: int = 32  # conv: features of the first stage; they double with every stage
    norm: Literal["none", "group", "layer"] = "none"  # conv: normalisation
    conditional: bool = False  # condition both networks on the class label
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = "bernoulli"  # of pixels, given z
    binarize: bool = True  # bernoulli: draw every pixel as 0 or 1 anew each time it is seen
    beta: float = 1.0  # weight of the KL term at the end of its warm-up
    kl_warmup_steps: int = 0  # steps over which that weight rises from 0
    # evaluate: importance samples per image for log p(x); 0 leaves it out
    nll_samples: int = may_change(0)
    num_samples: int = may_change(64)  # sample: how many images
    # sample: the PNG to write; in the run's folder by default
    output: str | None = may_change(None)
    # its flags are made by command_line.py
    run: tyro.conf.Fixed[RunOptions] = field(default_factory=RunOptions)


PRESETS = {
    "digits": Config(run=RunOptions(steps=3000, draw_every=300)),
    "mnist": Config(
        preset="mnist",
        run=RunOptions(data="mnist", epochs=20, draw_every=1000, checkpoint_every=2000),
    ),
    "cifar10": Config(
        preset="cifar10", network="conv", latent_dim=128, width=64, likelihood="logistic",
        binarize=False, kl_warmup_steps=2000,
        run=RunOptions(
            data="cifar10", epochs=50, augment="flip", clip_norm=100.0, draw_every=2000,
            checkpoint_every=2000,
        ),
    ),
}  # fmt: skip


def networks(config: Config, examples: Examples) -> tuple[Any, Any]:
    """Encoder [H, W, C] -> [2 D] and decoder [D] -> [H, W, C], as linen modules."""
    return autoencoder.encoder_and_decoder(
        config.network,
        2 * config.latent_dim,
        examples.image_shape,
        hidden=config.hidden,
        width=config.width,
        norm=config.norm,
        num_classes=experiment.num_classes(examples, config.conditional),
        dtype=experiment.network_dtype(config.run),
    )


def build(config: Config, examples: Examples) -> System:
    """The System of the VAE: its first state, its step, its pictures."""
    plan.check_range(config, 1, "latent_dim", "hidden", "width", "num_samples")
    plan.check_range(config, 0, "beta", "kl_warmup_steps")
    if binary(config) and examples.image_shape[-1] == 3:
        warnings.warn(
            "pixels of colour images are drawn as 0 or 1, which leaves static; for photographs use "
            "--likelihood gaussian or logistic, or --no-binarize",
            stacklevel=2,
        )
    encoder, decoder = networks(config, examples)
    encode, decode = functional.apply(encoder), functional.apply(decoder)

    loss = losses.vae_loss(
        encode,
        decode,
        losses.LIKELIHOODS[config.likelihood].log_likelihood,
        losses.linear_warmup(config.kl_warmup_steps, config.beta),
        binary(config),
    )
    options = config.run
    num_steps = experiment.num_steps(options, examples, options.batch_size)
    tx = experiment.optimizer_of(options, num_steps)

    def init(key: Key) -> Any:
        encoder_key, decoder_key = jax.random.split(key)
        label = jnp.int32(0)
        params = {
            "encoder": functional.init(
                encoder, encoder_key, jnp.zeros(examples.image_shape), label
            ),
            "decoder": functional.init(decoder, decoder_key, jnp.zeros(config.latent_dim), label),
        }
        if losses.LIKELIHOODS[config.likelihood].learns_scale:
            params["log_scale"] = jnp.full((examples.image_shape[-1],), -1.0)
        return step.init_state(params, tx)

    return System(
        init=init,
        step=step.gradient_step(
            augment.on_uint8(loss, augment.by_name(options.augment)), tx, options.accumulate
        ),
        draw=partial(draw, config, encode, decode),
        images_per_step=options.batch_size,
        progress_metrics=("neg_elbo_nats", "recon_nats", "kl_nats"),
        convolutional=config.network == "conv",
    )


def binary(config: Config) -> bool:
    """Says whether images are binarized before the networks see them."""
    return losses.LIKELIHOODS[config.likelihood].is_binary and config.binarize


def draw(
    config: Config, encode: Any, decode: Any, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Reconstructions, samples, interpolation, traversal and, for two latents, the manifold."""
    sample_key, binarize_key = jax.random.split(key)
    x, label = augment.to_unit_range(jnp.asarray(examples.images)), jnp.asarray(examples.labels)
    if binary(config):
        x = losses.binarize(binarize_key, x)
    mean = jnp.split(jax.jit(encode)(state.params["encoder"], x, label), 2, axis=-1)[0]

    def show(labels: Array, z: Array) -> Array:
        labels = jnp.resize(labels, z.shape[:1])
        output = jax.jit(decode)(state.params["decoder"], z, labels)
        return losses.LIKELIHOODS[config.likelihood].mean(output)

    classes = jnp.arange(len(examples.class_names) if config.conditional else 1)
    rows = min(8, len(mean) // 2)
    starts = jnp.repeat(
        label[:rows], latent_space.POINTS
    )  # each row keeps the class that it starts in
    pictures = {
        "reconstructions": images.beside(images.to_uint8(x), images.to_uint8(show(label, mean))),
        "samples": latent_space.samples(
            partial(show, classes),
            latent_space.normal(sample_key, 100, config.latent_dim),
            len(classes) if config.conditional else 10,
        ),
        "interpolation": latent_space.interpolation(
            partial(show, starts), mean[:rows], mean[rows : 2 * rows]
        ),
        "traversal": latent_space.traversal(
            partial(show, label[:1]), mean[0], jnp.std(mean, axis=0)
        ),
    }
    if config.latent_dim == 2:
        pictures["manifold"] = latent_space.manifold(
            partial(show, classes[:1]), jnp.zeros(2), jnp.ones(2)
        )
    return pictures


def sample(config: Config) -> None:
    """Draws from the prior and writes one grid."""
    state, done, examples = run.restore(config, build)
    _, decoder = networks(config, examples)
    params = experiment.model(state, config.run).params["decoder"]
    z = latent_space.normal(
        experiment.sample_key(config.run), config.num_samples, config.latent_dim
    )
    labels = jnp.arange(config.num_samples, dtype=jnp.int32) % max(len(examples.class_names), 1)
    output = jax.jit(functional.apply(decoder))(params, z, labels)
    means = losses.LIKELIHOODS[config.likelihood].mean(output)

    path = Path(config.output or run.folder(config.run) / "samples-drawn.png")
    images.save(path, images.grid(images.to_uint8(means)))
    print(f"{config.num_samples} samples after step {done}: {path}")


def evaluate(config: Config) -> None:
    """Prints the terms of the bound on the test set, in nats per image, with standard errors."""
    plan.check_range(config, 0, "nll_samples")
    if config.nll_samples > likelihood.CHUNK and config.nll_samples % likelihood.CHUNK:
        raise ValueError(
            f"--nll-samples is {config.nll_samples}; above {likelihood.CHUNK} use a multiple of it"
        )
    state, done, examples = run.restore(config, build)
    encode, decode = (functional.apply(module) for module in networks(config, examples))
    pixels = losses.LIKELIHOODS[config.likelihood]
    # one function of each kind for all models, which compiles once
    loss = augment.on_uint8(
        losses.vae_loss(encode, decode, pixels.log_likelihood, dynamic_binarization=binary(config))
    )
    log_weight = partial(
        log_weight_of, config, losses.log_weight(encode, decode, pixels.log_likelihood)
    )
    test = run.load_split(config.run, "test")
    bound_key, weight_key = jax.random.split(experiment.sample_key(config.run))
    size = math.prod(examples.image_shape)

    for i in range(config.run.num_models):
        params = experiment.model(state, config.run, i).params
        terms = likelihood.mean_terms(loss, params, test._asdict(), bound_key)
        print(f"model {i}, step {done}, {len(test.images)} test images:")
        for name in ("neg_elbo_nats", "recon_nats", "kl_nats"):
            mean, error = terms[name]
            print(f"  {name:16s} {mean:9.3f} +- {error:.3f}")
        if pixels.is_of_bytes:
            print(f"  bits per dim     {terms['neg_elbo_nats'][0] / size / math.log(2):9.4f}")
        if config.nll_samples:
            mean, error = likelihood.importance_nll(
                log_weight, params, test._asdict(), weight_key, config.nll_samples
            )
            print(f"  nll_nats         {mean:9.3f} +- {error:.3f}  (k = {config.nll_samples})")


def log_weight_of(
    config: Config, log_weight: Any, params: Params, example: Any, key: Key, weight_key: Key
) -> Array:
    """The log importance weight of one uint8 image; `key` binarizes it, `weight_key` draws z."""
    x = augment.to_unit_range(example["image"])
    x = losses.binarize(key, x) if binary(config) else x
    return log_weight(params, x, example["label"], weight_key)


def main() -> None:
    config = command_line.parse("vae", PRESETS, __doc__)
    script.set_up(config.run.distributed)
    match config.action:
        case "train":
            run.train("vae", config, build)
        case "sample":
            sample(config)
        case "evaluate":
            evaluate(config)


if __name__ == "__main__":
    script.main(main)
