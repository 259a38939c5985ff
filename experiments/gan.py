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

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxgen import script
from jaxgen.data.source import Dataset
from jaxgen.evaluate import classes, features, judge, quality
from jaxgen.nn import functional
from jaxgen.pictures import images, latent_space
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import step
from jaxgen.types import AnyArray, Array, Key
from parts import gan_model
from parts.gan_model import PRESETS, READ_WITH, Config

NUM_SAMPLES = 10_000  # that are evaluated


def build(config: Config, examples: Examples) -> System:
    """Builds the System of the GAN: its first state, a step of both players, its pictures."""
    plan.check_range(
        config, 1, "latent_dim", "hidden", "width", "num_samples", "discriminator_steps",
        "discriminator_width",
    )  # fmt: skip
    plan.check_range(config, 0, "gradient_penalty", "r1", "r2", "slope")
    plan.check_range(config, 0, "b1", "ema_decay", high=0.99999)
    if not config.slope:
        raise ValueError("--slope 0 makes the discriminator constant; use a positive slope")
    generator, discriminator = gan_model.players(config, examples)
    d_loss, g_loss = gan_model.losses_of(
        config, functional.apply(generator), functional.apply(discriminator)
    )
    options, k = config.run, config.discriminator_steps
    num_steps = experiment.num_steps(options, examples, options.batch_size * k)
    d_tx, g_tx = gan_model.optimizers(config, num_steps)

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


def draw(
    config: Config, generator: Any, apply: Any, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Draws samples of the moving average for fixed z, and interpolations.

    A conditional GAN's samples have a column for each class.
    """
    z_key, ends_key, statistics_key = jax.random.split(key, 3)
    generate = gan_model.sampler(config, generator, apply, state.ema, statistics_key)
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
    generator, _ = gan_model.players(config, examples)
    return Trained(state, done, examples, generator, jax.jit(generator.apply))


def draws(config: Config, source: Trained, count: int, model: int = 0) -> Any:
    """Draws samples uint8 [count, H, W, C] of one of the run's models, and labels [count]."""
    z_key, statistics_key = jax.random.split(experiment.sample_key(config.run))
    ema = experiment.model(source.state, config.run, model).ema
    generate = gan_model.sampler(config, source.generator, source.apply, ema, statistics_key)
    z = latent_space.normal(z_key, count, config.latent_dim)
    labels = np.arange(count, dtype=np.int32) % max(len(source.examples.class_names), 1)
    parts = [generate(z[i : i + 500], labels[i : i + 500]) for i in range(0, count, 500)]
    return images.measurable(np.concatenate(parts)), labels


def sample(config: Config) -> None:
    """Draws from the moving average and writes one grid."""
    path = run.samples_file(config.run, config.output)
    source = trained(config)
    pictures, labels = draws(config, source, config.num_samples)
    columns = int(labels.max()) + 1 if config.conditional else None
    images.save(path, images.grid(pictures, columns))
    print(f"{config.num_samples} samples after step {source.done}: {path}")


def evaluate(config: Config) -> None:
    """Prints the distances of 10,000 samples, and what a classifier of real images says of them.

    Data without classes has no classifier, and only the distances.
    """
    source = trained(config)
    train_set = run.load_split(config.run, "train")
    test = run.load_split(config.run, "test")
    train_judge = cache(lambda: judge.train(train_set, test))
    extract = features.by_name(config.features, train_judge)
    count = min(NUM_SAMPLES, len(train_set.images))
    train_floor = cache(lambda: judge.train(some(train_set, count), test).accuracy)
    of_real = cache(lambda: classes.report(train_judge().classify(test.images)))
    has_classes = len(train_set.class_names) > 1
    if has_classes:
        print(f"classifier: {train_judge().accuracy:.4f} of the real test images right")
    else:
        print("the data has no classes: the figures by class are left out")
    for i in range(config.run.num_models):
        pictures, labels = draws(config, source, NUM_SAMPLES, i)
        generated = Dataset(pictures, labels, train_set.class_names)
        print(
            f"model {i} of seed {config.run.seed}, step {source.done}, {NUM_SAMPLES} samples of "
            f"the moving average, against the test split:"
        )
        if has_classes:
            print(*class_lines(config, train_judge(), generated, of_real()), sep="\n")
        print(*quality.report(generated.images, train_set.images, test.images, extract), sep="\n")
        if config.classification_score:
            score = judge.train(some(generated, count), test).accuracy
            print(
                f"  classification   {score:.4f} of the real test images, by a classifier that "
                f"{count} generated images trained; {train_floor():.4f} by as many real ones"
            )


def class_lines(
    config: Config,
    real: judge.Judge,
    generated: Dataset,
    of_real: classes.ClassReport,
) -> list[str]:
    """Writes the classifier's figures of samples, beside those of the real test images."""
    probabilities = real.classify(generated.images)
    text = classes.lines(classes.report(probabilities), of_real, generated.class_names)
    if config.conditional:
        asked = classes.agreement(probabilities, generated.labels)
        text.append(f"  as asked         {asked:.4f}   real {real.accuracy:.4f}")
    return text


def some(dataset: Dataset, count: int) -> Dataset:
    """Takes so many images at random."""
    rows = np.random.default_rng(0).permutation(len(dataset.images))[:count]
    return Dataset(dataset.images[rows], dataset.labels[rows], dataset.class_names)


def main() -> None:
    config = command_line.parse("gan", PRESETS, __doc__, read_with=READ_WITH)
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
