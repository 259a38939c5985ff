# SPDX-License-Identifier: MIT
"""Trains a small Stable Diffusion from nothing, measures it, and writes it for diffusers.

python experiments/latent_diffusion.py --stage autoencoder --run-dir runs/1
python experiments/latent_diffusion.py --stage diffusion --autoencoder runs/1 --run-dir runs/2
python experiments/latent_diffusion.py --stage diffusion --run-dir runs/2 --action export
python experiments/latent_diffusion.py --stage autoencoder --data path/to/folder --image-size 64

The data is a rendered world of coloured shapes, or a folder of images with a metadata.jsonl that
gives "file_name" and "text".
"""

from functools import partial
from pathlib import Path

import jax.numpy as jnp
import latent_autoencoder as autoencoder
from diffusing import diffusion
from diffusing.options import NAME, STAGES, Config

from jaxgen import script
from jaxgen.miniature import captioned, following, model_card
from jaxgen.runs import command_line, experiment, run
from jaxgen.runs.experiment import Build, OpenSplit
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers


def main() -> None:
    config = command_line.parse(NAME, STAGES, __doc__, choice="stage")
    script.set_up(config.run.distributed)
    if config.stage == "autoencoder":
        if config.action == "export":
            raise ValueError("a model has both stages; export the run of --stage diffusion")
        run.train(NAME, config, autoencoder.build, partial(autoencoder.open_split, config))
        return
    second = diffusion.prepare(config, config.run.resume or config.action == "export")
    if config.action == "export":
        export(config, second)
        return
    run.train(NAME, config, *parts_of(config, second))


def parts_of(config: Config, second: diffusion.Second) -> tuple[Build, OpenSplit]:
    """How the second stage is built and where its data comes from."""
    return partial(diffusion.build, second), partial(diffusion.open_split, config, second)


def export(config: Config, second: diffusion.Second) -> None:
    """Writes the whole model in diffusers' layout, measures it there, and adds its model card."""
    state, done, _ = run.restore(config, *parts_of(config, second))
    if config.decoder:
        second = second._replace(first=autoencoder.with_decoder(second.first, config.decoder))
    folder = Path(config.output)
    made = diffusion.trained(second, experiment.model(state, config.run))
    diffusers.write(folder, made, jnp.float16)

    is_world = config.run.data == captioned.WORLD
    settings, accuracy = following.Settings(), None
    if is_world and config.num_prompts:
        pipe = StableDiffusion.from_pretrained(folder)
        accuracy = following.table(following.measure(pipe, config.num_prompts, settings))
    title = "shapes: a small Stable Diffusion" if is_world else folder.name
    data = "on jaxgen's rendered world of coloured shapes" if is_world else "on captioned pictures"
    prompt = "a large red star above a small blue ring" if is_world else second.prompts[0]
    stages = [("autoencoder", *each) for each in second.first.runs]
    stages += [("diffusion", *each) for each in (*second.runs, (config, done))]
    card = model_card.write(title, data, prompt, made, stages, settings, accuracy)
    (folder / "README.md").write_text(card)
    print(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*.*')) / 1e6:.1f} MB")


if __name__ == "__main__":
    script.main(main)
