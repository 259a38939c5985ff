# SPDX-License-Identifier: MIT
"""Trains a variational autoencoder; draws samples from it; measures its likelihood.

Examples:
    python experiments/vae.py                                    # handwritten digits, a minute
    python experiments/vae.py --preset mnist --network conv      # MNIST through TFDS
    python experiments/vae.py --data path/to/images --image-size 32 --likelihood logistic
    python experiments/vae.py --objective iwae --bound-samples 5 --top-dim 10
    python experiments/vae.py --objective dreg --bound-samples 8 --pseudo-inputs 100
    python experiments/vae.py --objective beta_tc --beta 4
    python experiments/vae.py --run-dir runs/vae-digits --resume --steps 8000
    python experiments/vae.py --run-dir runs/vae-digits --action evaluate
    python experiments/vae.py --run-dir runs/vae-digits --action sample --num-samples 100
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import math
import warnings
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from jaxgen import script
from jaxgen.evaluate import collapse, features, judge, latents, likelihood
from jaxgen.nn import autoencoder, functional
from jaxgen.pictures import images, latent_space
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import augment, latent_models, losses, objectives, step
from jaxgen.train.latent_models import LatentModel
from jaxgen.types import Array, Key, LossFn, Params

FEW_STEPS = 500  # after fewer a model that will use its z may not do so yet
Objective = Literal["elbo", "free_bits", "beta_tc", "k_sample", "iwae", "dreg"]


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
    objective: Objective = "elbo"  # what is minimised; docs/objectives.md has the equations
    bound_samples: int = 1  # k_sample, iwae, dreg: draws of z per image
    free_bits: float = 0.1  # free_bits: nats of each entry of z that cost nothing more
    top_dim: int = 0  # entries of a second stochastic layer above z; 0 leaves it out
    pseudo_inputs: int = 0  # images whose posteriors are the prior (VAMP); 0: the prior is N(0, I)
    beta: float = 1.0  # weight of the KL term at the end of its warm-up
    kl_warmup_steps: int = 0  # steps over which that weight rises from 0
    # evaluate: importance samples per image for log p(x); 0 leaves it out
    nll_samples: int = may_change(0)
    features: str = may_change("random")  # evaluate: random, judge or inception:FILE[:SHA256]
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
    """Builds encoder [H, W, C] -> [2 D] and decoder [D] -> [H, W, C], as linen modules."""
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


def top_networks(config: Config) -> tuple[Any, Any]:
    """Builds the networks between z and the layer above: h1 -> moments of h2, and h2 -> of h1."""
    hidden = (5 * config.top_dim,) * 2
    return (
        autoencoder.GaussianLayer(config.top_dim, hidden),
        autoencoder.GaussianLayer(config.latent_dim, hidden),
    )


def build(config: Config, examples: Examples) -> System:
    """Builds the System of the VAE: its first state, its step, its pictures."""
    check(config, examples)
    encoder, decoder = networks(config, examples)
    options = config.run
    num_steps = experiment.num_steps(options, examples, options.batch_size)
    tx = experiment.optimizer_of(options, num_steps)
    loss = loss_of(config, examples)
    functions = functions_of(config, examples)

    def init(key: Key) -> Any:
        encoder_key, decoder_key, extra_key = jax.random.split(key, 3)
        label = jnp.int32(0)
        params = {
            "encoder": functional.init(
                encoder, encoder_key, jnp.zeros(examples.image_shape), label
            ),
            "decoder": functional.init(decoder, decoder_key, jnp.zeros(config.latent_dim), label),
        }
        if losses.LIKELIHOODS[config.likelihood].learns_scale:
            params["log_scale"] = jnp.full((examples.image_shape[-1],), -1.0)
        return step.init_state(params | extra_parameters(config, examples, extra_key), tx)

    return System(
        init=init,
        step=step.gradient_step(
            augment.on_uint8(loss, augment.by_name(options.augment)), tx, options.accumulate
        ),
        draw=partial(draw, config, functions),
        images_per_step=options.batch_size,
        progress_metrics=("neg_elbo_nats", "recon_nats", "kl_nats"),
        convolutional=config.network == "conv",
        remark=partial(remark, config, functions.posterior),
    )


def check(config: Config, examples: Examples) -> None:
    """Raises ValueError for options out of range, or that do not go together."""
    plan.check_range(config, 1, "latent_dim", "hidden", "width", "num_samples", "bound_samples")
    plan.check_range(config, 0, "beta", "kl_warmup_steps", "free_bits", "top_dim", "pseudo_inputs")
    name = config.objective
    for option in ("top_dim", "pseudo_inputs"):
        if getattr(config, option):
            objectives.check_prior(name, f"--{option.replace('_', '-')}")
    if name not in objectives.BOUNDS and config.bound_samples > 1:
        raise ValueError(
            f"objective {name} draws z once; --bound-samples {config.bound_samples} is for "
            f"{', '.join(objectives.BOUNDS)}"
        )
    if config.top_dim and config.pseudo_inputs:
        raise ValueError("--top-dim and --pseudo-inputs are two priors; give one of them")
    if config.pseudo_inputs and config.conditional:
        raise ValueError("--pseudo-inputs have no labels; leave out --conditional")
    if name in objectives.OF_WHOLE_BATCH and config.run.accumulate > 1:
        raise ValueError(f"objective {name} looks at the whole batch; use --accumulate 1")
    if binary(config) and examples.image_shape[-1] == 3:
        warnings.warn(
            "pixels of colour images are drawn as 0 or 1, which leaves static; for photographs use "
            "--likelihood gaussian or logistic, or --no-binarize",
            stacklevel=3,
        )


def extra_parameters(config: Config, examples: Examples, key: Key) -> dict[str, Any]:
    """Makes the parameters of a second stochastic layer, or the first pseudo-inputs."""
    if config.top_dim:
        up_key, down_key = jax.random.split(key)
        up, down = top_networks(config)
        return {
            "encoder_top": functional.init(up, up_key, jnp.zeros(config.latent_dim)),
            "decoder_top": functional.init(down, down_key, jnp.zeros(config.top_dim)),
        }
    if config.pseudo_inputs:
        shape = (config.pseudo_inputs, *examples.image_shape)
        # Tomczak & Welling's, 0.05 +- 0.01 on the scale of [0, 1]
        return {"pseudo_inputs": -0.9 + 0.02 * jax.random.normal(key, shape)}
    return {}


def model_of(config: Config, examples: Examples) -> LatentModel:
    """Builds the densities of the model and its posterior."""
    encode, decode = map(functional.apply, networks(config, examples))
    log_likelihood = losses.LIKELIHOODS[config.likelihood].log_likelihood
    if config.top_dim:
        up, down = map(functional.apply, top_networks(config))
        top = latent_models.normal_prior(config.top_dim)
        return latent_models.two_layers(encode, up, down, decode, log_likelihood, top)
    prior = (
        latent_models.vamp_prior(encode)
        if config.pseudo_inputs
        else latent_models.normal_prior(config.latent_dim)
    )
    return latent_models.one_layer(encode, decode, log_likelihood, prior)


def loss_of(config: Config, examples: Examples) -> LossFn:
    """Builds the loss that --objective names, of one image in [-1, 1]."""
    encode, decode = map(functional.apply, networks(config, examples))
    parts = objectives.VaeParts(
        encode,
        decode,
        losses.LIKELIHOODS[config.likelihood].log_likelihood,
        model_of(config, examples),
        examples.num_examples,
        losses.linear_warmup(config.kl_warmup_steps, config.beta),
        binary(config),
    )
    return objectives.vae_objective(config.objective, parts, config.bound_samples, config.free_bits)


def binary(config: Config) -> bool:
    """Says whether images are binarized before the networks see them."""
    return losses.LIKELIHOODS[config.likelihood].is_binary and config.binarize


class Functions(NamedTuple):
    """Holds what pictures are made with, compiled once for all states."""

    posterior: Any  # (params, images, labels, key) -> images as seen, means, log-variances of z
    picture: Any  # (params, z, labels) -> mean images in [-1, 1]
    prior: Any  # (params, key, count) -> draws of z


def functions_of(config: Config, examples: Examples) -> Functions:
    """Compiles the functions of the networks."""
    encode, decode = map(functional.apply, networks(config, examples))
    prior = partial(prior_draws, config, examples)
    return Functions(
        jax.jit(partial(posterior, config, encode)),
        jax.jit(partial(picture, config, decode)),
        jax.jit(prior, static_argnums=2),
    )


def draw(
    config: Config, functions: Functions, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Draws reconstructions, samples, interpolation, traversal; of two latents, the manifold."""
    sample_key, binarize_key = jax.random.split(key)
    label, show = examples.labels, partial(functions.picture, state.params)
    x, mean, _ = functions.posterior(state.params, examples.images, label, binarize_key)

    num_classes = len(examples.class_names) if config.conditional else 1
    classes = np.arange(100, dtype=np.int32) % num_classes
    z = functions.prior(state.params, sample_key, 100)
    prior = (np.zeros(config.latent_dim, np.float32), np.ones(config.latent_dim, np.float32))
    return {
        "reconstructions": images.beside(images.to_uint8(x), images.to_uint8(show(mean, label))),
        "samples": images.grid(
            images.to_uint8(show(z, classes)), num_classes if config.conditional else 10
        ),
        **latent_space.views(show, mean, label, prior),
    }


def picture(config: Config, decode: Any, params: Params, z: Array, labels: Array) -> Array:
    """Decodes each z to its mean image under the likelihood, in [-1, 1]."""
    return losses.LIKELIHOODS[config.likelihood].mean(decode(params["decoder"], z, labels))


def posterior(
    config: Config, encode: Any, params: Params, x: Array, labels: Array, key: Key
) -> tuple[Array, Array, Array]:
    """Returns the images as the networks see them, with means and log-variances of their z."""
    x = augment.to_unit_range(x)
    x = losses.binarize(key, x) if binary(config) else x
    mean, logvar = jnp.split(encode(params["encoder"], x, labels), 2, axis=-1)
    return x, mean, logvar


def remark(config: Config, posterior_of: Any, state: Any, examples: Examples, key: Key) -> str:
    """Returns what `collapse` says of the model; empty for one that uses its z."""
    _, binarize_key = jax.random.split(key)
    _, mean, logvar = posterior_of(state.params, examples.images, examples.labels, binarize_key)
    has_own_prior = bool(config.top_dim or config.pseudo_inputs)
    alike = "samples of a class look alike" if config.conditional else "samples look alike"
    return collapse.remark(mean, logvar, alike, cure(config, examples), has_own_prior)


def cure(config: Config, examples: Examples) -> str:
    """Says what helps: more steps alone, where there were few and the KL weighs no more than 1."""
    num_steps = experiment.num_steps(config.run, examples, config.run.batch_size)
    if num_steps < FEW_STEPS and config.beta <= 1:
        return f"{num_steps} steps are few, train for more"
    has_own_prior = bool(config.top_dim or config.pseudo_inputs)
    cures = [f"a --beta below {config.beta:g}"] * (config.beta > 1)
    cures += ["--kl-warmup-steps"] * (config.kl_warmup_steps == 0)
    cures += ["--objective free_bits"] * (config.objective != "free_bits" and not has_own_prior)
    return f"train again with {' or '.join([*cures, 'more steps'])}"


def prior_draws(config: Config, examples: Examples, params: Params, key: Key, count: int) -> Array:
    """Draws [count, D] of the prior of z; with a layer above it, by way of that."""
    if not (config.top_dim or config.pseudo_inputs):
        return latent_space.normal(key, count, config.latent_dim)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    generate = model_of(config, examples).generate
    return jax.vmap(generate, (None, 0))(params, keys)


def sample(config: Config) -> None:
    """Draws from the prior and writes one grid."""
    state, done, examples = run.restore(config, build)
    functions, params = functions_of(config, examples), experiment.model(state, config.run).params
    z = functions.prior(params, experiment.sample_key(config.run), config.num_samples)
    labels = np.arange(config.num_samples, dtype=np.int32) % max(len(examples.class_names), 1)
    means = functions.picture(params, z, labels)

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
    if config.conditional and config.features != "random":
        raise ValueError("samples of a --conditional run are not compared; leave --features out")
    state, done, examples = run.restore(config, build)
    # one function of each kind for all models, which compiles once
    kind = "elbo" if config.objective not in objectives.BOUNDS else "k_sample"
    plain = replace(config, objective=kind, bound_samples=1, beta=1.0, kl_warmup_steps=0)
    loss = augment.on_uint8(loss_of(plain, examples))
    log_weight = latent_models.weight_of_images(model_of(config, examples), binary(config))
    encode = jax.jit(functional.apply(networks(config, examples)[0]))
    test = run.load_split(config.run, "test")
    train = cache(lambda: run.load_split(config.run, "train"))  # conditional runs need none
    extract = features.by_name(config.features, lambda: judge.train(train(), test))
    if config.nll_samples and losses.LIKELIHOODS[config.likelihood].is_binary != binary(config):
        likelihood.check_binary(test.images)
    bound_key, weight_key, pictures_key = jax.random.split(experiment.sample_key(config.run), 3)
    is_of_bytes = losses.LIKELIHOODS[config.likelihood].is_of_bytes
    num_bytes = math.prod(examples.image_shape) if is_of_bytes else 0

    for i in range(config.run.num_models):
        params = experiment.model(state, config.run, i).params
        terms = likelihood.mean_terms(loss, params, test._asdict(), bound_key)
        print(f"model {i}, step {done}, {len(test.images)} test images:")
        print(*likelihood.lines(terms, num_bytes), sep="\n")
        if k := config.nll_samples:
            nll = likelihood.importance_estimates(
                log_weight, params, test._asdict(), weight_key, [k]
            )
            print(nll[k].line(k))
        print(f"  active units     {active_units(config, encode, params, test)}")
        if not config.conditional:
            functions = on_pictures(config, examples, params, jax.random.clone(pictures_key))
            print(*latents.report(*functions, train().images, test.images, extract), sep="\n")


def on_pictures(
    config: Config, examples: Examples, params: Params, key: Key
) -> tuple[latents.Encode, latents.Decode]:
    """Builds functions on the host: images -> means of z, and z -> mean pictures."""
    encode, decode = (jax.jit(functional.apply(part)) for part in networks(config, examples))

    def mean(x: Array, start: int) -> Array:
        x = losses.binarize(jax.random.fold_in(key, start), x) if binary(config) else x
        return jnp.split(encode(params["encoder"], x), 2, axis=-1)[0]

    mean_picture = losses.LIKELIHOODS[config.likelihood].mean
    return latents.on_host(mean, lambda z: mean_picture(decode(params["decoder"], z)))


def active_units(config: Config, encode: Any, params: Params, test: Any) -> str:
    """Counts the entries of z that 500 images move, out of all."""
    x = augment.to_unit_range(jnp.asarray(test.images[:500]))
    labels = jnp.asarray(test.labels[:500])
    mean = jnp.split(encode(params["encoder"], x, labels), 2, axis=-1)[0]
    return f"{likelihood.active_units(np.asarray(mean)).sum()} of {config.latent_dim}"


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
