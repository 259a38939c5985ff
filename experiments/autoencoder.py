# SPDX-License-Identifier: MIT
"""Trains an autoencoder; draws its reconstructions; measures their error.

Examples:
    python experiments/autoencoder.py                            # handwritten digits, a minute
    python experiments/autoencoder.py --latent-dim 2             # with a map of its latent space
    python experiments/autoencoder.py --noise 0.5                # denoising
    python experiments/autoencoder.py --mmd 10                   # Wasserstein: codes like N(0, I)
    python experiments/autoencoder.py --latent-dim 64 --sparse 8
    python experiments/autoencoder.py --preset mnist --network conv
    python experiments/autoencoder.py --run-dir runs/autoencoder-digits --action evaluate
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from jaxgen import script
from jaxgen.evaluate import features, judge, latents, likelihood
from jaxgen.nn import autoencoder, functional
from jaxgen.pictures import images, latent_space
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import augment, losses, penalties, step
from jaxgen.train.losses import Apply
from jaxgen.types import AnyArray, Array, Key, LossFn, Params


@dataclass(frozen=True)
class Config:
    """Options of the autoencoder."""

    action: Literal["train", "sample", "evaluate"] = may_change("train")  # what to do with a run
    preset: Literal["digits", "mnist", "cifar10"] = "digits"  # defaults for this data set
    network: Literal["dense", "conv"] = "dense"  # kind of encoder and decoder
    latent_dim: int = 16  # entries of the latent vector
    hidden: tuple[int, ...] = (500,)  # dense: units of the encoder's layers; the decoder mirrors it
    width: int = 32  # conv: features of the first stage; they double with every stage
    norm: Literal["none", "group", "layer"] = "none"  # conv: normalisation
    # what is minimised; bernoulli: the cross-entropy of pixels, which of grey ones is no likelihood
    reconstruction: Literal["mse", "bernoulli"] = "mse"
    noise: float = 0.0  # standard deviation added to the encoder's input (images span -1 to 1)
    sparse: int = 0  # entries of a code that are kept, the largest; 0 keeps all
    contractive: float = 0.0  # weight of the squared norm of the code's Jacobian
    mmd: float = 0.0  # weight of the distance of the batch's codes from N(0, I) (WAE)
    # sample: where latents come from: N(0, I), or a Gaussian or ten of them fitted to the codes
    codes: Literal["normal", "gaussian", "mixture"] = may_change("gaussian")
    features: str = may_change("random")  # evaluate: random, judge or inception:FILE[:SHA256]
    num_samples: int = may_change(64)  # sample: how many images
    # sample: the PNG to write; in the run's folder by default
    output: str | None = may_change(None)
    # its flags are made by command_line.py
    run: tyro.conf.Fixed[RunOptions] = field(default_factory=RunOptions)


PRESETS = {
    "digits": Config(run=RunOptions(steps=3000, draw_every=300)),
    "mnist": Config(
        preset="mnist", latent_dim=32,
        run=RunOptions(data="mnist", epochs=20, draw_every=1000, checkpoint_every=2000),
    ),
    "cifar10": Config(
        preset="cifar10", network="conv", latent_dim=256, width=64,
        run=RunOptions(
            data="cifar10", epochs=50, augment="flip", draw_every=2000, checkpoint_every=2000
        ),
    ),
}  # fmt: skip
READ_WITH = {
    ("network", "dense"): ("hidden",),
    ("network", "conv"): ("width", "norm"),
    ("action", "sample"): ("codes", "num_samples", "output"),
    ("action", "evaluate"): ("features",),
}


def networks(config: Config, examples: Examples) -> tuple[Any, Any]:
    """Builds encoder [H, W, C] -> [D] and decoder [D] -> [H, W, C], as linen modules."""
    return autoencoder.encoder_and_decoder(
        config.network,
        config.latent_dim,
        examples.image_shape,
        hidden=config.hidden,
        width=config.width,
        norm=config.norm,
        dtype=experiment.network_dtype(config.run),
    )


def build(config: Config, examples: Examples) -> System:
    """Builds the System of the autoencoder: its first state, its step, its pictures."""
    plan.check_range(config, 1, "latent_dim", "hidden", "width", "num_samples")
    plan.check_range(config, 0, "noise", "sparse", "contractive", "mmd")
    plan.check_range(config, 0, "sparse", high=config.latent_dim)
    if config.mmd and config.run.accumulate > 1:
        raise ValueError("--mmd looks at the whole batch; use --accumulate 1")
    if config.mmd and config.run.batch_size < 2:
        raise ValueError("--mmd compares the codes of a batch; use a --batch-size of 2 or more")
    encoder, decoder = networks(config, examples)
    encode, decode = encode_of(config, encoder), functional.apply(decoder)
    loss = loss_of(config, encode, decode)
    options = config.run
    num_steps = experiment.num_steps(options, examples, options.batch_size)
    tx = experiment.optimizer_of(options, num_steps)

    def init(key: Key) -> Any:
        encoder_key, decoder_key = jax.random.split(key)
        params = {
            "encoder": functional.init(encoder, encoder_key, jnp.zeros(examples.image_shape)),
            "decoder": functional.init(decoder, decoder_key, jnp.zeros(config.latent_dim)),
        }
        return step.init_state(params, tx)

    return System(
        init=init,
        step=step.gradient_step(
            augment.on_uint8(loss, augment.by_name(options.augment)), tx, options.accumulate
        ),
        draw=partial(
            draw,
            config,
            jax.jit(partial(noisy_codes, config, encode)),
            jax.jit(partial(picture_of, config, decode)),
        ),
        images_per_step=options.batch_size,
        progress_metrics=("loss", "mse"),
        convolutional=config.network == "conv",
    )


def encode_of(config: Config, encoder: Any) -> Apply:
    """Turns the encoder into a function (params, x) -> z; with --sparse, of sparse codes."""
    encode = functional.apply(encoder)
    return penalties.sparse(encode, config.sparse) if config.sparse else encode


def loss_of(config: Config, encode: Apply, decode: Apply) -> LossFn:
    """Builds the reconstruction error with the penalties that are asked for."""
    loss = losses.autoencoder_loss(encode, decode, config.reconstruction, config.noise)
    if config.contractive:
        contraction = penalties.contraction(encode)
        loss = penalties.with_penalty(loss, "contraction", contraction, config.contractive)
    if config.mmd:
        loss = penalties.with_penalty(loss, "mmd", penalties.mmd(encode), config.mmd)
    return loss


def shown_as(config: Config, output: Array) -> Array:
    """Converts the decoder's output to an image in [-1, 1]."""
    return losses.bernoulli_mean(output) if config.reconstruction == "bernoulli" else output


def draw(
    config: Config, codes: Any, picture: Any, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Draws reconstructions beside inputs, interpolation, traversal, and a map of two latents.

    codes, picture: `noisy_codes` and `picture_of` but for their first two inputs, compiled.
    """
    noisy, z = map(np.asarray, codes(state.params, examples.images, key))

    def show(z: AnyArray, labels: AnyArray) -> Array:
        return picture(state.params, z)

    centre = (np.mean(z, axis=0), np.std(z, axis=0))
    outputs = images.to_uint8(show(z, examples.labels))
    return {
        "reconstructions": images.beside(images.to_uint8(noisy), outputs),
        **latent_space.views(show, z, examples.labels, centre, straight=True),
    }


def noisy_codes(
    config: Config, encode: Any, params: Params, x: Array, key: Key
) -> tuple[Array, Array]:
    """Adds noise to the images and encodes them; returns both."""
    noisy = augment.to_unit_range(x) + config.noise * jax.random.normal(key, x.shape)
    return noisy, encode(params["encoder"], noisy)


def picture_of(config: Config, decode: Any, params: Params, z: Array) -> Array:
    """Decodes codes [N, D] to images in [-1, 1]."""
    return shown_as(config, decode(params["decoder"], z))


def sample(config: Config) -> None:
    """Decodes draws from --codes, fitted to the training images' codes: it has no prior itself."""
    path = run.samples_file(config.run, config.output)
    state, done, examples = run.restore(config, build)
    encode, decode = on_pictures(config, examples, experiment.model(state, config.run).params)
    codes = encode(run.load_split(config.run, "train").images)
    z = latents.draw(config.codes, codes, config.num_samples, config.run.seed)

    images.save(path, images.grid(decode(z)))
    print(f"{config.num_samples} samples of {latents.SOURCES[config.codes]}, step {done}: {path}")


def on_pictures(
    config: Config, examples: Examples, params: Params
) -> tuple[latents.Encode, latents.Decode]:
    """Builds encoder and decoder between uint8 images and codes, on the host."""
    encoder, decoder = networks(config, examples)
    encode = jax.jit(encode_of(config, encoder))
    decode = jax.jit(functional.apply(decoder))
    return latents.on_host(
        lambda x, start: encode(params["encoder"], x),
        lambda z, start: shown_as(config, decode(params["decoder"], z)),
    )


def evaluate(config: Config) -> None:
    """Prints the error of clean reconstructions on the test set, with its standard error."""
    state, done, examples = run.restore(config, build)
    encoder, decoder = networks(config, examples)
    loss = augment.on_uint8(
        losses.autoencoder_loss(
            encode_of(config, encoder), functional.apply(decoder), config.reconstruction
        )
    )
    train, test = (run.load_split(config.run, split) for split in ("train", "test"))
    extract = features.by_name(config.features, lambda: judge.train(train, test))
    for i in range(config.run.num_models):
        params: Params = experiment.model(state, config.run, i).params
        terms = likelihood.mean_terms(
            loss, params, test._asdict(), experiment.sample_key(config.run)
        )
        mse, error = terms["mse"]
        # pixels span 2 in [-1, 1]: a quarter of the error on the scale of [0, 1]
        print(
            f"model {i}, step {done}, {len(test.images)} test images: mse {mse:.5f} +- {error:.5f} "
            f"on [-1, 1], {mse / 4:.5f} on [0, 1], PSNR {-10 * np.log10(mse / 4):.2f} dB"
        )
        functions = on_pictures(config, examples, params)
        print(*latents.report(*functions, train.images, test.images, extract), sep="\n")


def main() -> None:
    config = command_line.parse("autoencoder", PRESETS, __doc__, read_with=READ_WITH)
    script.set_up(config.run.distributed)
    match config.action:
        case "train":
            run.train("autoencoder", config, build)
        case "sample":
            sample(config)
        case "evaluate":
            evaluate(config)


if __name__ == "__main__":
    script.main(main)
