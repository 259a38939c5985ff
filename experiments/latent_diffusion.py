# SPDX-License-Identifier: MIT
"""Trains a small Stable Diffusion on the latents of an autoencoder, and writes it for diffusers.

Examples:
    python experiments/latent_diffusion.py --autoencoder runs/first --run-dir runs/second
    python experiments/latent_diffusion.py --run-dir runs/second --resume
    python experiments/latent_diffusion.py --run-dir runs/second --action export --output shapes

It is the second of two stages; runs/first is a run of latent_autoencoder.py. The data is a rendered
world of coloured shapes, or a folder of pictures with a metadata.jsonl that gives "file_name" and
the caption as "text". The export of a model of the world says how well it follows prompts.
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from PIL import Image

import latent_autoencoder
from jaxgen import files, script
from jaxgen.data import sets
from jaxgen.miniature import captioned, following, model, model_card
from jaxgen.miniature.captioned import Captioned
from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS
from jaxgen.pictures import images
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.command_line import RunOptions
from jaxgen.runs.experiment import Build, Examples, OpenSplit, System
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.train import step
from jaxgen.types import Key, Params
from jaxgen.weights import diffusers, tokenizer
from jaxgen.weights.diffusers import Checkpoint
from jaxgen.weights.tokenizer import Tokenizer
from latent_autoencoder import Trained
from parts import denoiser
from parts.denoiser import READ_WITH, WORLD, Config

NAME = "latent_diffusion"
TOKENIZER = "tokenizer"  # in the run folder


class Parts(NamedTuple):
    """The things that a run is built from, beside its options."""

    first: Trained
    checkpoint: Checkpoint  # without weights
    prompts: list[str]  # of the test split
    earlier: Params | None  # what UNet and text encoder begin with; None begins at random
    runs: tuple[tuple[Config, int], ...]  # options and steps of the runs behind `earlier`


def prepare(config: Config, has_folder: bool = False) -> Parts:
    """Gathers the trained autoencoder, the networks of this stage, and captions to draw.

    has_folder: the run folder exists, and its vocabulary is the one that was trained with.
    """
    plan.check_options(config.run)
    plan.check_range(
        config, 1, "num_scenes", "unet_channels", "unet_heads", "text_width", "text_layers"
    )
    plan.check_range(config, 0, "ema_decay", high=0.99999)
    plan.check_range(config, 3, "max_tokens")
    plan.check_range(config, 0, "caption_dropout", high=0.99)
    plan.check_multiple("unet_channels", config.unet_channels, config.unet_heads, "unet_heads")
    plan.check_multiple("text_width", (config.text_width,), 32, "a head's features")
    if config.run.augment != "none":
        raise ValueError("--augment changes pictures that are encoded once; leave it out")
    if not config.autoencoder:
        raise ValueError("which autoencoder? Give --autoencoder a run of latent_autoencoder.py")
    first = latent_autoencoder.trained(config.autoencoder)
    denoiser.check(config, first.image_size, first.config.norm_groups)
    earlier = trained(config.begin_with) if config.begin_with else None
    train, test = (captions_of(config, first, config.run, split) for split in ("train", "test"))
    if has_folder:
        tokens = tokenizer.read(run.folder(config.run) / TOKENIZER)
    else:
        tokens = tokenizer.train(train.captions, config.max_tokens)
    scale = captioned.scale_of_latents(train.source, first.encode, first.params)
    sizes = denoiser.sizes_of(
        config, first.image_size, first.config.vae_channels, first.config.norm_groups
    )
    checkpoint = model.checkpoint(sizes, tokens, scale)
    if earlier is None:
        return Parts(first, checkpoint, test.captions, None, ())
    return Parts(first, checkpoint, test.captions, _for_words(earlier, tokens), earlier.runs)


def captions_of(config: Config, first: Trained, options: RunOptions, split: str) -> Captioned:
    """Opens the captioned pictures of "train" or "test", in the autoencoder's size."""
    return captioned.open_split(options.data, split, first.image_size, config.num_scenes)


def _for_words(parts: Parts, tokens: Tokenizer) -> Params:
    """Fits the parameters that an earlier run has come to, to this run's vocabulary."""
    params, old = parts.earlier or {}, parts.checkpoint.tokenizers["tokenizer"]
    return {**params, "text_encoder": model.with_vocabulary(params["text_encoder"], old, tokens)}


def trained(run_dir: str) -> Parts:
    """Reads the parts of a run for one that goes on with it; its parameters are `earlier`."""
    config = command_line.read(Config, run_dir, NAME)
    parts = prepare(config, has_folder=True)
    state, done, _ = run.restore(config, *_for_run(config, parts))
    ema = experiment.model(state, config.run).ema
    return parts._replace(earlier=ema, runs=(*parts.runs, (config, done)))


def _for_run(config: Config, parts: Parts) -> tuple[Build, OpenSplit]:
    """Returns how `run` builds the System, and where it finds the data."""
    return partial(build, parts), partial(open_split, config, parts)


def open_split(config: Config, parts: Parts, options: RunOptions, split: str) -> sets.Source:
    """Opens latents of the pictures, with token ids as labels."""
    first, tokens = parts.first, parts.checkpoint.tokenizers["tokenizer"]
    scale = parts.checkpoint.components["vae"].config["scaling_factor"]
    pictures = captioned.tokenized(captions_of(config, first, options, split), tokens)
    return captioned.encoded(pictures, first.encode, first.params, scale)


def build(parts: Parts, config: Config, examples: Examples) -> System:
    """Builds the System of UNet and text encoder: their first state, a step, pictures."""
    networks = loading.networks(parts.checkpoint, experiment.network_dtype(config.run))
    unet, text_encoder = networks.unet, networks.encoders["text_encoder"]
    if parts.earlier is not None:
        for name, module in (("unet", unet), ("text_encoder", text_encoder)):
            model.check_fits(parts.earlier[name], module, config.begin_with)
    loss = denoiser.loss_of(config, unet, text_encoder, parts.checkpoint.tokenizers["tokenizer"])
    options = config.run
    num_steps = experiment.num_steps(options, examples, options.batch_size)
    tx = experiment.optimizer_of(options, num_steps)

    def init(key: Key) -> step.AveragedState:
        unet_key, text_key = jax.random.split(key)
        params = parts.earlier or {
            "unet": model.init(unet_key, unet),
            "text_encoder": model.init(text_key, text_encoder),
        }
        return step.AveragedState(step.init_state(params, tx), jax.tree.map(jnp.copy, params))

    return System(
        init=init,
        step=step.with_moving_average(
            step.gradient_step(loss, tx, options.accumulate), config.ema_decay
        ),
        draw=painter(parts),
        keep=partial(keep_vocabulary, parts.checkpoint.tokenizers["tokenizer"]),
        images_per_step=options.batch_size,
        progress_metrics=("loss", "grad_norm"),
        convolutional=True,
    )


def keep_vocabulary(tokens: Tokenizer, folder: Path) -> None:
    """Writes the vocabulary into the run folder: what the ids mean must outlive the captions."""
    (folder / TOKENIZER).mkdir()
    tokenizer.write(folder / TOKENIZER, tokens)


def params_of(parts: Parts, state: Any) -> dict[str, Params]:
    """Joins the parameters of the whole model by component; those of this stage are averages."""
    return {**state.ema, "vae": parts.first.params}


def painter(parts: Parts) -> Any:
    """Builds a function that draws captions which training has not seen, with the users' pipeline.

    It compiles at its first call; the parameters of later states are data of the same programs.
    """
    pipe: StableDiffusion | None = None

    def draw(state: Any, examples: Examples, key: Key) -> dict[str, Image.Image]:
        nonlocal pipe
        params = params_of(parts, state)
        if pipe is None:
            pipe = StableDiffusion(model.with_params(parts.checkpoint, params))
        pipe = pipe.with_params(params)
        pictures = pipe(parts.prompts[:32], num_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE)
        return {"samples": images.grid(pictures, 8)}

    return draw


def export(config: Config, parts: Parts) -> None:
    """Writes the whole model in diffusers' layout, measures it there, and adds its model card."""
    state, done, _ = run.restore(config, *_for_run(config, parts))
    if config.decoder:
        parts = parts._replace(first=latent_autoencoder.with_decoder(parts.first, config.decoder))
    folder = Path(config.output)
    params = params_of(parts, experiment.model(state, config.run))
    checkpoint = model.with_params(parts.checkpoint, params)
    diffusers.write(folder, checkpoint, jnp.float16)

    is_world, accuracy = config.run.data == captioned.WORLD, None
    if is_world and config.num_prompts:
        pipe = StableDiffusion.from_pretrained(folder)
        accuracy = following.table(following.measure(pipe, config.num_prompts))
    title = "shapes: a small Stable Diffusion" if is_world else folder.name
    data = "on jaxgen's rendered world of coloured shapes" if is_world else "on captioned pictures"
    prompt = "a large red star above a small blue ring" if is_world else parts.prompts[0]
    stages = [(latent_autoencoder.NAME, *each) for each in parts.first.runs]
    stages += [(NAME, *each) for each in (*parts.runs, (config, done))]
    card = model_card.write(title, data, prompt, checkpoint, stages, accuracy)
    (folder / "README.md").write_text(card)
    print(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*.*')) / 1e6:.1f} MB")


def main() -> None:
    config = command_line.parse(NAME, {"world": WORLD}, __doc__, read_with=READ_WITH)
    if config.action == "export":
        files.check_new(Path(config.output))
    script.set_up(config.run.distributed)
    parts = prepare(config, has_folder=config.run.resume or config.action == "export")
    if config.action == "export":
        export(config, parts)
    else:
        run.train(NAME, config, *_for_run(config, parts))


if __name__ == "__main__":
    script.main(main)
