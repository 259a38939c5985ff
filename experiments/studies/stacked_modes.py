# SPDX-License-Identifier: MIT
"""Counts the modes of a GAN that draws stacked images: three random ones, a channel for each.

Ten classes make 1,000 modes (Metz et al. 2017, arXiv:1611.02163, section 3.3). A classifier that is
trained on the single images names each channel; as many stacked test images are counted beside.

Examples:
    python experiments/studies/stacked_modes.py --data mnist --output outputs/stacked.npz
    python experiments/gan.py --network conv --data outputs/stacked.npz --run-dir runs/stacked
    python experiments/studies/stacked_modes.py --action count --data mnist --run-dir runs/stacked
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

# Python looks in the folder of the script alone
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import gan
from jaxgen import files, script
from jaxgen.data import sets
from jaxgen.evaluate import judge, modes
from jaxgen.runs import command_line, plan
from parts import gan_model


@dataclass(frozen=True)
class Config:
    """Options of stacked images."""

    action: Literal["stack", "count"] = "stack"  # write a data set, or count what a run draws
    data: str = "mnist"  # the single images: grey, with classes; named as in the other scripts
    num_images: int = 25_600  # of each split that is stacked; draws that are counted
    seed: int = 0  # which images share a picture
    output: Path = Path("outputs/stacked.npz")  # action stack: the data set
    run_dir: str | None = None  # action count: the run of gan.py on that data set


READ_WITH = {("action", "stack"): ("output",), ("action", "count"): ("run_dir",)}


def stack(config: Config) -> None:
    """Writes stacked images of both splits; a split's own images alone are in them.

    Raises ValueError where another file is in the place.
    """
    files.check_writable(config.output)
    train, test = (
        modes.stack(sets.load(config.data, split).images, config.num_images, seed)
        for split, seed in (("train", config.seed), ("test", config.seed + 1))
    )

    content = io.BytesIO()
    np.savez(content, x_train=train, x_test=test)
    if not (config.output.is_file() and config.output.read_bytes() == content.getbuffer()):
        files.check_new(config.output, "--output")
        files.write_whole(config.output, lambda path: path.write_bytes(content.getbuffer()))
    print(f"{config.num_images} stacked images of each split: {config.output}")


def count(config: Config) -> None:
    """Prints the modes of a run's draws and, as their floor, of as many stacked test images."""
    if config.run_dir is None:
        raise ValueError("say which run of gan.py with --run-dir")
    run_config = command_line.read(gan_model.Config, config.run_dir, "gan")
    source = gan.trained(run_config)
    train, test = sets.load(config.data, "train"), sets.load(config.data, "test")
    shape, stacked = source.examples.image_shape, (*test.images.shape[1:3], 3)
    if shape != stacked:
        raise ValueError(
            f"the run in {config.run_dir} draws images {shape}, not {stacked}; "
            f"train it on what --action stack writes for --data {config.data}"
        )
    classifier = judge.train(train, test)
    print(f"classifier: {classifier.accuracy:.4f} of the single test images right")

    real = modes.stack(test.images, config.num_images, config.seed + 1)
    named = {"real": real}
    for model in range(run_config.run.num_models):
        drawn, _ = gan.draws(run_config, source, config.num_images, model)
        named[f"model {model}, step {source.done}"] = drawn
    for name, images in named.items():
        print(f"{name}: {line(classifier, images, len(train.class_names))}")


def line(classifier: judge.Judge, images: np.ndarray, num_classes: int) -> str:
    """Says what modes stacked images have."""
    channels = [classifier.classify(images[..., c : c + 1]).argmax(axis=1) for c in range(3)]
    counts = modes.count_stacked(np.stack(channels, axis=1), num_classes)
    return (
        f"{counts.modes} of {counts.of} modes in {len(images)} images, "
        f"reverse KL {counts.reverse_kl:.4f} nats"
    )


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    command_line.check_read(config, READ_WITH)
    plan.check_range(config, 1, "num_images")
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED - 1)
    if config.action == "stack":
        stack(config)
        return
    script.set_up()
    count(config)


if __name__ == "__main__":
    script.main(main)
