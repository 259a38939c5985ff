# SPDX-License-Identifier: MIT
"""The GAN of `gan.py`: its options, its players, their losses and optimisers."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import tyro

from jaxgen.nn import gan
from jaxgen.pictures import latent_space
from jaxgen.runs import experiment
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.runs.experiment import Examples
from jaxgen.train import adversarial, augment
from jaxgen.types import Key, LossFn, Params

Objective = Literal[
    "minimax", "non_saturating", "least_squares", "wasserstein", "hinge", "relativistic"
]


@dataclass(frozen=True)
class Config:
    """Options of the GAN."""

    action: Literal["train", "sample", "evaluate"] = may_change("train")  # what to do with a run
    preset: Literal["digits", "mnist", "cifar10"] = "digits"  # defaults for this data set
    network: Literal["dense", "conv"] = "dense"  # kind of generator and discriminator
    latent_dim: int = 64  # entries of z
    hidden: tuple[int, ...] = (512, 512)  # dense: units of the generator's layers
    width: int = 64  # conv: features at the image's own size
    discriminator_width: int | None = None  # conv: of the discriminator, if it is another
    norm: Literal["none", "group", "layer", "batch"] = "group"  # conv: in the generator
    spectral: bool = False  # spectral normalisation of the discriminator
    slope: float = 1.0  # spectral: the largest slope of the discriminator; 8 for 8x8 pixels
    conditional: bool = False  # condition both players on the class label
    # conditional: a projection of the label in the discriminator, or an auxiliary classifier
    conditioning: Literal["projection", "auxiliary"] = "projection"
    objective: Objective = "non_saturating"  # the losses of generator and discriminator
    discriminator_steps: int = 1  # per generator step, each on a batch of its own
    gradient_penalty: float = 0.0  # weight of (|grad D| - 1)^2 between real and fake (usually 10)
    r1: float = 0.0  # weight of |grad D|^2 / 2 at real images
    r2: float = 0.0  # weight of |grad D|^2 / 2 at generated images
    diff_augment: bool = False  # differentiable augmentation of all that the discriminator sees
    discriminator_rate: float | None = None  # its learning rate; the generator's by default
    b1: float = 0.5  # Adam's momentum
    ema_decay: float = 0.999  # of the generator's moving average, which samples are drawn with
    features: str = may_change("random")  # evaluate: random, judge or inception:FILE[:SHA256]
    # evaluate: also train a classifier on samples of a conditional run, and test it on real images
    classification_score: bool = may_change(False)
    num_samples: int = may_change(64)  # sample: how many images
    # sample: the PNG to write; in the run's folder by default
    output: str | None = may_change(None)
    # its flags are made by command_line.py
    run: tyro.conf.Fixed[RunOptions] = field(default_factory=RunOptions)


PRESETS = {
    "digits": Config(
        r1=0.1, run=RunOptions(steps=6000, learning_rate=1e-3, batch_size=64, draw_every=600)
    ),
    "mnist": Config(
        preset="mnist", network="conv", width=16, discriminator_width=48, conditional=True,
        objective="relativistic", r1=0.1, r2=0.1, b1=0.0,
        run=RunOptions(
            data="mnist", steps=4000, batch_size=64, learning_rate=1e-3, schedule="linear",
            draw_every=500,
        ),
    ),
    "cifar10": Config(
        preset="cifar10", network="conv", latent_dim=128, objective="hinge", spectral=True,
        discriminator_steps=5, b1=0.0,
        run=RunOptions(
            data="cifar10", steps=100_000, batch_size=64, learning_rate=2e-4, augment="flip",
            schedule="linear", draw_every=2000, checkpoint_every=5000,
        ),
    ),
}  # fmt: skip
READ_WITH = {
    ("network", "dense"): ("hidden",),
    ("network", "conv"): ("width", "discriminator_width", "norm"),
    ("spectral", True): ("slope",),
    ("conditional", True): ("conditioning", "classification_score"),
    ("action", "sample"): ("num_samples", "output"),
    ("action", "evaluate"): ("features", "classification_score"),
}


def players(config: Config, examples: Examples) -> tuple[Any, Any]:
    """Builds generator [D] -> [H, W, C] and discriminator [H, W, C] -> logit, as linen modules."""
    common = {
        "num_classes": experiment.num_classes(examples, config.conditional),
        "dtype": experiment.network_dtype(config.run),
    }
    judging: dict[str, Any] = {"spectral": config.spectral, "auxiliary": is_auxiliary(config)}
    judging |= common
    if config.network == "dense":
        return (
            gan.DenseGenerator(examples.image_shape, config.hidden, **common),
            gan.DenseDiscriminator(**judging),
        )
    return (
        gan.ConvGenerator(examples.image_shape, config.width, config.norm, **common),
        gan.ConvDiscriminator(config.discriminator_width or config.width, **judging),
    )


def losses_of(config: Config, generate: Any, discriminate: Any) -> tuple[LossFn, LossFn]:
    """Builds the losses of discriminator and generator."""
    game = adversarial.objective(config.objective)
    penalties = adversarial.Penalties(config.gradient_penalty, config.r1, config.r2)
    transform = augment.differentiable if config.diff_augment else adversarial.identity
    change, classify = augment.by_name(config.run.augment), None
    if config.slope != 1:
        bounded = discriminate
        discriminate = lambda *inputs: config.slope * bounded(*inputs)  # noqa: E731
    if is_auxiliary(config):
        outputs = discriminate
        discriminate = lambda params, x, label: outputs(params, x)[0]  # noqa: E731
        classify = lambda params, x: outputs(params, x)[1:]  # noqa: E731
    common = (generate, discriminate, game, config.latent_dim)
    d_loss = adversarial.discriminator_loss(*common, penalties, transform, classify)
    g_loss = adversarial.generator_loss(*common, transform, classify)
    if game.relative is not None:  # the generator sees real images too
        g_loss = augment.on_uint8(g_loss, change)
    return augment.on_uint8(d_loss, change), g_loss


def is_auxiliary(config: Config) -> bool:
    """Says whether the discriminator classifies images instead of being told their label."""
    return config.conditional and config.conditioning == "auxiliary"


def optimizers(config: Config, num_steps: int) -> tuple[Any, Any]:
    """Builds Adam for discriminator and generator, over `num_steps` steps of the generator."""
    options, k, rate = config.run, config.discriminator_steps, config.discriminator_rate
    d_options = replace(
        options,
        learning_rate=options.learning_rate if rate is None else rate,
        warmup_steps=options.warmup_steps * k,
    )
    return (
        experiment.optimizer_of(d_options, num_steps * k, config.b1),
        experiment.optimizer_of(options, num_steps, config.b1),
    )


def sampler(config: Config, generator: Any, apply: Any, params: Params, key: Key) -> Any:
    """Builds a function (z [N, D], labels [N]) -> images [N, H, W, C].

    apply: generator.apply, compiled. Batch normalisation gets statistics of 1,000 draws first, so
    that every image is then a function of its own z alone.
    """
    variables = {"params": params}
    if config.norm == "batch" and config.network == "conv":
        z = latent_space.normal(key, 1000, config.latent_dim)
        labels = jnp.arange(1000) % max(generator.num_classes, 1)
        _, statistics = generator.apply(variables, z, labels, mutable="batch_stats")
        variables = variables | statistics
    return partial(apply, variables)
