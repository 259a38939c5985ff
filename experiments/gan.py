# SPDX-License-Identifier: MIT
"""Trains a generative adversarial network; draws samples; has a classifier judge them.

Examples:
    python experiments/gan.py                                    # handwritten digits, a minute
    python experiments/gan.py --objective minimax                # Goodfellow 2014, eq. 1
    python experiments/gan.py --objective wasserstein --gradient-penalty 10 --discriminator-steps 5
    python experiments/gan.py --preset mnist                     # a column for each digit
    python experiments/gan.py --run-dir runs/gan-digits --action evaluate
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

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
from jaxgen.data.source import Dataset
from jaxgen.evaluate import classes, features, judge, quality
from jaxgen.nn import functional, gan
from jaxgen.pictures import images, latent_space
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import adversarial, augment, step
from jaxgen.types import AnyArray, Array, Key, LossFn, Params

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


def build(config: Config, examples: Examples) -> System:
    """Builds the System of the GAN: its first state, a step of both players, its pictures."""
    plan.check_range(
        config, 1, "latent_dim", "hidden", "width", "num_samples", "discriminator_steps",
        "discriminator_width",
    )  # fmt: skip
    plan.check_range(config, 0, "gradient_penalty", "r1", "r2", "slope")
    if config.slope != 1 and not config.spectral:
        raise ValueError("--slope needs --spectral, which bounds the discriminator's slope")
    plan.check_range(config, 0, "b1", "ema_decay", high=0.99999)
    if config.conditioning == "auxiliary" and not config.conditional:
        raise ValueError("--conditioning auxiliary needs --conditional")
    generator, discriminator = players(config, examples)
    d_loss, g_loss = losses_of(config, functional.apply(generator), functional.apply(discriminator))
    options, k = config.run, config.discriminator_steps
    num_steps = experiment.num_steps(options, examples, options.batch_size * k)
    d_tx, g_tx = optimizers(config, num_steps)

    def init(key: Key) -> step.GanState:
        g_key, d_key = jax.random.split(key)
        label = jnp.int32(0)
        g = functional.init(generator, g_key, jnp.zeros(config.latent_dim), label)
        d = functional.init(discriminator, d_key, jnp.zeros(examples.image_shape), label)
        average = jax.tree.map(jnp.array, g)
        return step.GanState(step.init_state(g, g_tx), step.init_state(d, d_tx), average)

    return System(
        init=init,
        step=step.gan_step(
            d_loss, g_loss, d_tx, g_tx, k, config.ema_decay,
            options.accumulate,
        ),
        draw=partial(draw, config, generator, jax.jit(generator.apply)),
        images_per_step=options.batch_size * k,
        progress_metrics=("d_loss", "g_loss", "d_real", "d_fake"),
        convolutional=config.network == "conv",
    )  # fmt: skip


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


def draw(
    config: Config, generator: Any, apply: Any, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Draws samples of the moving average for fixed z, and interpolations.

    A conditional GAN's samples have a column for each class.
    """
    z_key, ends_key, statistics_key = jax.random.split(key, 3)
    generate = sampler(config, generator, apply, state.ema, statistics_key)
    columns = len(examples.class_names) if config.conditional else 10

    def show(z: AnyArray) -> Array:
        return generate(z, np.arange(len(z), dtype=np.int32) % columns)

    def show_first_class(z: AnyArray) -> Array:
        return generate(z, np.zeros(len(z), np.int32))

    ends = latent_space.normal(ends_key, 16, config.latent_dim)
    return {
        "samples": latent_space.samples(
            show, latent_space.normal(z_key, 100, config.latent_dim), columns
        ),
        "interpolation": latent_space.interpolation(show_first_class, ends[:8], ends[8:]),
    }


class Trained(NamedTuple):
    """A run that is read from its folder once, with its generator compiled once for all models."""

    state: Any
    done: int  # steps
    examples: Examples
    generator: Any
    apply: Any


def trained(config: Config) -> Trained:
    """Reads the newest state of the run in --run-dir."""
    state, done, examples = run.restore(config, build)
    generator, _ = players(config, examples)
    return Trained(state, done, examples, generator, jax.jit(generator.apply))


def draws(config: Config, source: Trained, count: int, model: int = 0) -> Any:
    """Draws samples uint8 [count, H, W, C] of one of the run's models, and labels [count]."""
    z_key, statistics_key = jax.random.split(experiment.sample_key(config.run))
    ema = experiment.model(source.state, config.run, model).ema
    generate = sampler(config, source.generator, source.apply, ema, statistics_key)
    z = latent_space.normal(z_key, count, config.latent_dim)
    labels = np.arange(count, dtype=np.int32) % max(len(source.examples.class_names), 1)
    parts = [generate(z[i : i + 500], labels[i : i + 500]) for i in range(0, count, 500)]
    return images.to_uint8(np.concatenate(parts)), labels


def sample(config: Config) -> None:
    """Draws from the moving average and writes one grid."""
    source = trained(config)
    pictures, labels = draws(config, source, config.num_samples)
    path = Path(config.output or run.folder(config.run) / "samples-drawn.png")
    columns = int(labels.max()) + 1 if config.conditional else None
    images.save(path, images.grid(pictures, columns))
    print(f"{config.num_samples} samples after step {source.done}: {path}")


def evaluate(config: Config) -> None:
    """Trains a classifier on the real images and prints its figures for 10,000 samples."""
    source = trained(config)
    train_set = run.load_split(config.run, "train")
    test = run.load_split(config.run, "test")
    if config.classification_score and not config.conditional:
        raise ValueError("--classification-score needs labels of samples: a --conditional run")
    train_judge = cache(lambda: judge.train(train_set, test))
    extract, real = features.by_name(config.features, train_judge), train_judge()
    print(f"classifier: {real.accuracy:.4f} of the real test images right")
    for i in range(config.run.num_models):
        pictures, labels = draws(config, source, 10_000, i)
        probabilities = real.classify(pictures)
        print(f"model {i}, step {source.done}, 10000 samples:")
        print(*classes.lines(classes.report(probabilities), train_set.class_names), sep="\n")
        if config.conditional:
            print(f"  as asked         {classes.agreement(probabilities, labels):.4f}")
        print(*quality.report(pictures, train_set.images, test.images, extract), sep="\n")
        if config.classification_score:
            generated = Dataset(pictures, labels, train_set.class_names)
            score = judge.train(generated, test).accuracy
            print(
                f"  classification   {score:.4f} of the real test images, by a classifier that "
                f"generated images trained; {real.accuracy:.4f} by real ones"
            )


def main() -> None:
    config = command_line.parse("gan", PRESETS, __doc__)
    script.set_up(config.run.distributed)
    match config.action:
        case "train":
            run.train("gan", config, build)
        case "sample":
            sample(config)
        case "evaluate":
            evaluate(config)


if __name__ == "__main__":
    script.main(main)
