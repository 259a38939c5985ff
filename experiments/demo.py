# SPDX-License-Identifier: MIT
"""Trains an autoencoder, a VAE and a GAN on digits, and draws prompts; offline, in 1 to 3 minutes.

Examples:
    python experiments/demo.py
    python experiments/demo.py --quick     # a look in seconds

Leaves one folder per system under runs/demo: pictures, curves, an animation, checkpoints. The
pictures of prompts come from "shapes", a small Stable Diffusion that is part of jaxgen.
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import tyro

import autoencoder
import gan
import vae
from jaxgen import script
from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS
from jaxgen.pictures import images
from jaxgen.runs import run, run_folder
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import hub

PROMPTS = (
    "a large red star above a small blue ring",
    "a small yellow heart left of a large green square on black",
    "a large purple diamond on cream",
    "a small pink triangle below a large cyan circle",
    "a big orange cross on a gray background",
    "a large blue heart to the right of a small red circle on white",
)


@dataclass(frozen=True)
class Config:
    """Options of the demonstration."""

    run_dir: str | None = None  # where the three runs go; runs/demo, runs/demo-2, ... by default
    quick: bool = False  # a tenth of the steps: a look at what happens, not at good pictures
    seed: int = 0  # of everything random


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    root = Path(config.run_dir) if config.run_dir else run_folder.choose("demo")
    run_folder.check_free(root, overwrite=False)
    began = time.monotonic()
    script.set_up()
    for name, system in (("autoencoder", autoencoder), ("vae", vae), ("gan", gan)):
        train_one(config, name, system, root / name)
    draw_prompts(config, root / "text_to_image.png")

    overview(root)
    print(f"\n{time.monotonic() - began:.0f} s. Look at {root / 'overview.png'}, and in {root}/*:")
    print("  samples.png reconstructions.png interpolation.png curves.png progress.gif")


def train_one(config: Config, name: str, system: ModuleType, folder: Path) -> None:
    """Trains one system with its preset for digits."""
    preset = system.PRESETS["digits"]
    steps = preset.run.steps // 10 if config.quick else preset.run.steps
    options = dataclasses.replace(
        preset.run, steps=steps, draw_every=max(steps // 10, 1), seed=config.seed,
        run_dir=str(folder),
    )  # fmt: skip
    run.train(name, dataclasses.replace(preset, run=options), system.build)


def draw_prompts(config: Config, path: Path) -> None:
    """Draws `PROMPTS`, each picture above its words."""
    pipe = StableDiffusion.from_pretrained(hub.EMBEDDED)
    seed = config.seed + 1  # the star of seed 0 has a broken ring
    pictures = pipe(PROMPTS, num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE, seed=seed)
    images.save(path, images.captioned(pictures, PROMPTS, columns=6))


def overview(root: Path) -> None:
    """Puts the first reconstructions and samples of all systems, and prompts, in one picture."""
    parts = [
        ("autoencoder: digits, reconstructions below", "autoencoder/reconstructions"),
        ("VAE: binary digits, reconstructions below", "vae/reconstructions"),
        ("VAE: samples", "vae/samples"),
        ("GAN: samples", "gan/samples"),
    ]
    side = 6 * (images.TILE + images.GAP) + images.GAP  # of six images
    corners = [
        images.labelled(images.read(root / f"{path}.png").crop((0, 0, side, side)), text)
        for text, path in parts
    ]
    prompts = images.labelled(
        images.read(root / "text_to_image.png"), "Stable Diffusion in miniature: prompts"
    )
    images.save(root / "overview.png", images.stacked([images.side_by_side(corners), prompts]))


if __name__ == "__main__":
    script.main(main)
