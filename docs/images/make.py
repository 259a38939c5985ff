# SPDX-License-Identifier: MIT
"""Makes the pictures of README and docs, from seeds; some minutes on two CPU cores.

Needs the extra `notebooks`, for its digits.

Examples:
    python docs/images/make.py                # all of them
    python docs/images/make.py shapes         # one
    python docs/images/make.py --check        # is each picture made here, and shown somewhere?
"""

import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]

import autoencoder  # noqa: E402
import demo  # noqa: E402
import gan_study  # noqa: E402
import vae  # noqa: E402
from jaxgen import script  # noqa: E402
from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS  # noqa: E402
from jaxgen.pictures import images  # noqa: E402
from jaxgen.runs import run  # noqa: E402
from jaxgen.stable_diffusion import loading  # noqa: E402
from jaxgen.stable_diffusion.pipeline import StableDiffusion  # noqa: E402
from jaxgen.weights import autoencoder as autoencoder_file  # noqa: E402
from jaxgen.weights import hub  # noqa: E402
from parts import vae_model  # noqa: E402
from studies import rate_distortion  # noqa: E402

SIDE = 360  # pixels of a panel
SEED = 1
PREVIEWED = (1, 3, 5, 8, 12, 20)  # steps
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TAUGHT = (
    "a large purple square ring on cream",
    "a large green square ring on a black background",
    "a large orange square above a small blue ring",
)


@dataclass(frozen=True)
class Config:
    """Which pictures, and what to do about them."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()  # all, if none is named
    check: bool = False  # make nothing; name pictures that nothing shows, or that are missing


def systems() -> Image.Image:
    """Draws a panel of each system.

    Two are trained on 5,000 digits of MNIST; then samples of the GAN's preset, and prompts.
    """
    with tempfile.TemporaryDirectory() as folder:
        panels = {
            "Autoencoder: input above reconstruction": square(
                trained("autoencoder", autoencoder, autoencoder.Config(), Path(folder), 3000)
            ),
            "VAE: a plane of two numbers": square(
                trained("vae", vae, vae_model.Config(latent_dim=2), Path(folder), 3000),
                first=4,
                cells=12,
            ),
        }
    panels["GAN: digits that nobody wrote"] = square(images.read(FOLDER / "gan_mnist_samples.png"))
    panels["Stable Diffusion: prompts drawn"] = square(
        images.grid(drawn(demo.PROMPTS[:4]), columns=2)
    )
    return images.side_by_side([images.labelled(panel, text) for text, panel in panels.items()])


# the picture of each run that shows best what it has learned
SHOWN = {"autoencoder": "reconstructions", "vae": "manifold"}


def trained(name: str, system, config, folder: Path, steps: int) -> Image.Image:
    """Draws a picture of a run on digits of 28x28 pixels."""
    options = replace(
        config.run, data="mnist5k", steps=steps, draw_every=0, seed=SEED,
        run_dir=str(folder / name),
    )  # fmt: skip
    run.train(name, replace(config, run=options), system.build)
    return images.read(folder / name / f"{SHOWN[name]}.png")


def drawn(prompts):
    """Draws prompts by the embedded model, uint8 [N, 64, 64, 3]."""
    pipe = StableDiffusion.from_pretrained("shapes")
    return pipe(list(prompts), num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE, seed=SEED)


def shapes() -> Image.Image:
    """Draws the prompts of the demo, each below its picture."""
    return images.captioned(drawn(demo.PROMPTS), demo.PROMPTS, columns=3)


def strengths() -> Image.Image:
    """Draws two prompts of a shape that a LoRA taught, at rising strengths, and an old word."""
    pipe, columns = StableDiffusion.from_pretrained("shapes"), []
    for strength in STRENGTHS:
        pipe.set_adapters([(ROOT / "docs" / "square_ring.safetensors", strength)])
        rows = pipe(TAUGHT, num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE, seed=SEED)
        enlarged = rows.repeat(2, axis=1).repeat(2, axis=2)
        columns.append(images.labelled(images.grid(enlarged, columns=1), f"strength {strength:g}"))
    return images.side_by_side(columns, gap=images.GAP)


def previews() -> Image.Image:
    """Draws estimates of one picture as it goes, by the tiny autoencoder above the model's own."""
    pipe, estimates = StableDiffusion.from_pretrained("shapes"), []
    tiny = loading.previewer(
        autoencoder_file.read(hub.resolve_vae(hub.EMBEDDED_TINY)), pipe.networks
    )
    pipe(
        demo.PROMPTS[0], num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE, seed=SEED,
        on_step=lambda done, total, latents, estimate: estimates.append(estimate),
    )  # fmt: skip
    shown = np.concatenate([estimates[step - 1] for step in PREVIEWED])
    rows = np.concatenate([tiny(shown), pipe.decode(shown)])
    return images.grid(rows.repeat(2, axis=1).repeat(2, axis=2), columns=len(PREVIEWED))


def study() -> Image.Image:
    """Plots the runs of `gan_study.py` whose raw results are in docs/."""
    paths = [ROOT / "docs" / f"gan_study_{target}.json" for target in ("ring", "grid", "mnist")]
    return gan_study.figure([gan_study.read(path) for path in paths])


def curve() -> Image.Image:
    """Plots the curve of `studies/rate_distortion.py` whose raw results are in docs/."""
    return rate_distortion.figure(rate_distortion.read(ROOT / "docs" / "rate_distortion.json"))


def square(picture: Image.Image, first: int = 0, cells: int = 6) -> Image.Image:
    """Cuts so many rows and columns of a grid, `SIDE` pixels wide; a smaller picture is whole."""
    cell = images.TILE + images.GAP
    start, side = first * cell, min(*picture.size, cells * cell + images.GAP)
    cut = picture.convert("RGB").crop((start, start, start + side, start + side))
    return cut.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "systems": systems,
    "shapes": shapes,
    "strengths": strengths,
    "previews": previews,
    "gan_study": study,
    "rate_distortion": curve,
}

# of runs that take many minutes or hours: copied from their folders
OF_LONG_RUNS = {
    "gan_mnist_samples.png": "gan.py --preset mnist: samples.png",
    # docs/cifar10_vae.json and cifar10_gan.json say of how many steps
    "cifar10_vae.png": "vae.py --preset cifar10, cut short: reconstructions.png and samples.png",
    "cifar10_autoencoder.png": "autoencoder.py --preset cifar10: of reconstructions.png",
    "cifar10_vq_vae.png": "vq_vae.py --preset cifar10: of reconstructions.png and samples.png",
    "cifar10_gan.png": "gan.py --preset cifar10, cut short: of samples.png",
    "latent_progress.gif": "latent_diffusion.py, the run of jaxgen/models/shapes: progress.gif",
}


def faults() -> list[str]:
    """Lists what is wrong between the pictures of this folder, this script, and the documents."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.py")]
    text = "\n".join(page.read_text() for page in pages)
    shown = set(re.findall(r"images/([\w-]+\.(?:png|gif))", text))
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".png", ".gif")}
    made = {f"{name}.png" for name in PICTURES} | OF_LONG_RUNS.keys()
    return [
        *(f"{name} is missing; run docs/images/make.py" for name in sorted((shown | made) - files)),
        *(f"{name} is shown nowhere; delete it" for name in sorted(files - shown)),
        *(f"{name} is not made by docs/images/make.py" for name in sorted(files - made)),
    ]


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if config.check:
        if wrong := faults():
            raise ValueError("; ".join(wrong))
        return
    if unknown := set(config.names) - set(PICTURES):
        raise ValueError(f"no picture {', '.join(unknown)}; known: {', '.join(PICTURES)}")
    script.set_up()
    for name in config.names or PICTURES:
        images.save(FOLDER / f"{name}.png", PICTURES[name]())


if __name__ == "__main__":
    script.main(main)
