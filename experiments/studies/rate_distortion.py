# SPDX-License-Identifier: MIT
"""Draws the rate-distortion curve of a VAE: what an image's latents tell, and what they leave out.

A model for each beta, the weight of the KL, all trained side by side from the same start on the
same batches; `jaxgen/evaluate/rate_distortion.py` says what a point is.

Examples:
    python experiments/studies/rate_distortion.py                        # digits, some minutes
    python experiments/studies/rate_distortion.py --data mnist5k --steps 5000 --betas 0.5 1 2
    python experiments/studies/rate_distortion.py --action table --output docs/rate_distortion.json
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from PIL import Image

# Python looks in the folder of the script alone
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from jaxgen import files, script
from jaxgen.data import sets
from jaxgen.evaluate import rate_distortion
from jaxgen.evaluate.rate_distortion import Point
from jaxgen.nn import autoencoder, functional
from jaxgen.pictures import images, plots
from jaxgen.runs import command_line, plan
from jaxgen.train import augment, losses, optimizer
from jaxgen.types import Array, LossFn
from parts import raw_results


@dataclass(frozen=True)
class Config:
    """Options of the curve."""

    action: Literal["run", "table"] = "run"  # train and measure, or show the results of --output
    data: str = "digits"  # as in the other scripts: digits, mnist5k, a TFDS name, a folder, a file
    betas: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # weights of the KL
    steps: int = 3000  # of each model; the learning rate falls to 0 over them
    batch_size: int = 128
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (500,)  # units of the encoder's layers; the decoder mirrors it
    latent_dim: int = 20
    seed: int = 0
    output: Path = Path("outputs/rate_distortion.json")  # raw results
    figure: Path = Path("outputs/rate_distortion.png")


READ_WITH = {
    ("action", "run"): (
        "data", "betas", "steps", "batch_size", "learning_rate", "hidden", "latent_dim", "seed",
    )
}  # fmt: skip


def curve(config: Config) -> list[Point]:
    """Trains the models; measures their points on the test set with binarized pixels."""
    train, test = (sets.load(config.data, split) for split in ("train", "test"))
    shape = train.images.shape[1:]
    parts = autoencoder.encoder_and_decoder(
        "dense", 2 * config.latent_dim, shape, hidden=config.hidden
    )
    encode, decode = map(functional.apply, parts)

    def loss_of(beta: Array) -> LossFn:
        loss = losses.vae_loss(encode, decode, losses.bernoulli, lambda step: beta, True)
        return augment.on_uint8(loss)

    names = ("encoder", "decoder", "train", "test")
    keys = dict(zip(names, jax.random.split(jax.random.key(config.seed), 4), strict=True))
    params = {
        "encoder": functional.init(parts[0], keys["encoder"], jnp.zeros(shape)),
        "decoder": functional.init(parts[1], keys["decoder"], jnp.zeros(config.latent_dim)),
    }
    tx = optimizer.adam(optimizer.schedule(config.learning_rate, config.steps, "cosine"))
    trained = rate_distortion.train(
        loss_of, params, tx, config.betas, {"image": train.images}, config.steps,
        config.batch_size, keys["train"],
    )  # fmt: skip
    return rate_distortion.points(
        loss_of(jnp.float32(1)), trained, config.betas, test._asdict(), keys["test"]
    )


def table(points: list[Point]) -> str:
    """Writes the points as Markdown, with standard errors over the test images."""
    rows = [
        f"| {p.beta:g} | {p.rate:.2f} +- {p.rate_error:.2f} "
        f"| {p.distortion:.2f} +- {p.distortion_error:.2f} | {p.rate + p.distortion:.2f} |"
        for p in points
    ]
    head = "| beta | rate, nats | distortion, nats | sum: the negative bound |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def figure(points: list[Point]) -> Image.Image:
    """Draws the curve."""
    places = [plots.Place(f"{point.beta:g}", *point[1:]) for point in points]
    names = ("rate: KL, nats per image", "distortion: -log p(x | z), nats per image")
    return plots.plane(places, names, "negative bound")


def read(path: Path) -> list[Point]:
    """Reads the points in a file of raw results. Raises ValueError for another file."""
    record = files.read_object(path)
    try:
        return [Point(*(float(row[name]) for name in Point._fields)) for row in record["points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no curve; give a file that --action run wrote") from error


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    command_line.check_read(config, READ_WITH)
    plan.check_range(config, 1, "steps", "batch_size", "hidden", "latent_dim")
    plan.check_range(config, 0, "learning_rate", "betas")
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED)
    if len(set(config.betas)) < len(config.betas):
        raise ValueError(f"--betas are {' '.join(map(str, config.betas))}; give each once")
    images.check_file(config.figure, "--figure")
    if config.action == "run":
        raw_results.check_file(config.output)
        script.set_up()
        points = curve(config)
        raw_results.write(config.output, config, {"points": [p._asdict() for p in points]})
    else:
        points = read(config.output)
    print(table(points))
    images.save(config.figure, figure(points))
    print(config.figure)


if __name__ == "__main__":
    script.main(main)
