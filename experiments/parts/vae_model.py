# SPDX-License-Identifier: MIT
"""The VAE of `vae.py`: its options, its networks and what they minimise."""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from jaxgen.data.source import Source
from jaxgen.evaluate import likelihood
from jaxgen.nn import autoencoder, functional
from jaxgen.runs import experiment, plan
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.runs.experiment import Examples
from jaxgen.train import latent_models, losses, objectives
from jaxgen.train.latent_models import LatentModel
from jaxgen.types import Key, LossFn

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
    # sample: where z comes from: the prior, or a Gaussian or ten of them fitted to the means of z
    codes: Literal["prior", "gaussian", "mixture"] = may_change("prior")
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
READ_WITH = {
    ("network", "dense"): ("hidden",),
    ("network", "conv"): ("width", "norm"),
    ("likelihood", "bernoulli"): ("binarize",),
    ("objective", "free_bits"): ("free_bits",),
    ("objective", *objectives.BOUNDS): ("bound_samples",),
    ("action", "sample"): ("codes", "num_samples", "output"),
    ("action", "evaluate"): ("nll_samples", "features"),
}


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


def check(config: Config, examples: Examples) -> None:
    """Raises ValueError for options out of range, or that do not go together."""
    plan.check_range(config, 1, "latent_dim", "hidden", "width", "num_samples", "bound_samples")
    plan.check_range(config, 0, "beta", "free_bits", "nll_samples")
    plan.check_range(config, 0, "kl_warmup_steps", high=experiment.MOST_STEPS)
    plan.check_range(config, 0, "top_dim", "pseudo_inputs")
    name = config.objective
    for option in ("top_dim", "pseudo_inputs"):
        if getattr(config, option):
            objectives.check_prior(name, f"--{option.replace('_', '-')}")
    if config.top_dim and config.pseudo_inputs:
        raise ValueError("--top-dim and --pseudo-inputs are two priors; give one of them")
    if config.pseudo_inputs and config.conditional:
        raise ValueError("--pseudo-inputs have no labels; leave out --conditional")
    if name in objectives.OF_WHOLE_BATCH and config.run.accumulate > 1:
        raise ValueError(f"objective {name} looks at the whole batch; use --accumulate 1")
    # a run that was trained so can still be looked at
    if name in ("iwae", "dreg") and config.bound_samples == 1 and config.action == "train":
        raise ValueError(f"{name} with one draw is the ELBO; give --bound-samples 2 or more")
    if is_binarized(config) and examples.image_shape[-1] == 3:
        warnings.warn(
            "pixels of colour images are drawn as 0 or 1, which leaves static; for photographs use "
            "--likelihood gaussian or logistic",
            stacklevel=3,
        )


def open_split(config: Config, options: RunOptions, split: str) -> Source:
    """Opens a split. Raises ValueError for grey pixels where a Bernoulli likelihood draws none."""
    source = plan.open_split(options, split)
    if losses.LIKELIHOODS[config.likelihood].is_binary and not config.binarize:
        for start in range(0, source.num_examples, 1000):
            rows = range(start, min(start + 1000, source.num_examples))
            likelihood.check_binary(source.read(list(rows))[0])
    return source


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
        is_binarized(config),
    )
    return objectives.vae_objective(config.objective, parts, config.bound_samples, config.free_bits)


def is_binarized(config: Config) -> bool:
    """Says whether images are binarized before the networks see them."""
    return losses.LIKELIHOODS[config.likelihood].is_binary and config.binarize
