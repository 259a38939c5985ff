# SPDX-License-Identifier: MIT
"""Trains a LoRA of a finished model on captioned pictures, and writes it for PyTorch and others.

Examples:
    python experiments/lora.py --model FOLDER --data pictures --run-dir runs/style
    python experiments/lora.py --run-dir runs/style --resume --steps 2000
    python experiments/lora.py --run-dir runs/style --action export --output style
    python experiments/text_to_image.py --model FOLDER --lora style/kohya.safetensors --prompt "..."

The model is whatever text_to_image.py draws with: Stable Diffusion 1.x, 2.x, XL, or the small one
that comes with jaxgen. The pictures lie in a folder with a metadata.jsonl that gives "file_name"
and the caption as "text". Only the factors are trained, kept and saved; the model stays as it is.
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from jaxgen import files, script
from jaxgen.adapters import lora_file, low_rank
from jaxgen.data import caption_folder, sets
from jaxgen.data.caption_folder import Captioned
from jaxgen.miniature import captioned, tuning
from jaxgen.pictures import images
from jaxgen.runs import command_line, experiment, plan, run
from jaxgen.runs.command_line import RunOptions, may_change
from jaxgen.runs.experiment import Build, Examples, OpenSplit, System
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.train import step
from jaxgen.types import Key, Params
from jaxgen.weights import hub
from jaxgen.weights.diffusers import Checkpoint

NAME, KOHYA = "lora", "kohya.safetensors"
SHOWN = 4  # captions that are drawn where --prompts names none


@dataclass(frozen=True)
class Config:
    """Options of the LoRA."""

    action: Literal["train", "export"] = may_change("train")  # export: write the files
    model: str = hub.EMBEDDED  # a diffusers folder, a .safetensors file or a Hub id
    # for single files: a folder or Hub id with a CLIP tokenizer; the public one by default
    tokenizer: str | None = may_change(None)
    # what the UNet returns, if not what the model says
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    rank: int = 8  # columns of the factors
    alpha: float | None = None  # the change weighs alpha / rank; None is the rank
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # ends of the UNet's layers
    # ends of the text encoders' layers, such as q_proj k_proj v_proj out_proj; none leaves them
    text_targets: tuple[str, ...] = ()
    caption_dropout: float = 0.1  # share of examples without caption, for guidance
    # gradient checkpointing: compute activations twice instead of keeping them
    remat: bool = False
    prompts: tuple[str, ...] = may_change(())  # to draw while training; none takes captions
    num_steps: int = may_change(20)  # of the sampler, for these pictures
    guidance: float = may_change(5.0)  # and how closely they follow the prompts
    output: str = may_change("lora")  # export: the folder to write
    half: bool = may_change(True)  # export: in float16, else in float32
    # its flags are made by command_line.py
    run: tyro.conf.Fixed[RunOptions] = field(default_factory=RunOptions)


PRESETS = {
    "pictures": Config(
        run=RunOptions(
            data="", batch_size=4, learning_rate=1e-4, steps=1000, clip_norm=1.0, draw_every=250,
            checkpoint_every=250,
        )
    )
}  # fmt: skip


READ_WITH = {
    ("action", "train"): ("prompts", "num_steps", "guidance"),
    ("action", "export"): ("output", "half"),
}


class Parts(NamedTuple):
    """The things that a run is built from, beside its options."""

    checkpoint: Checkpoint
    networks: Networks
    base: dict[str, Params]  # by component, in the type of the arithmetic
    image_size: int  # pixels
    pictures: Captioned
    kernels: dict[str, dict[low_rank.Path, tuple[int, ...]]]  # of the layers that get factors
    encode: captioned.Encode


def prepare(config: Config) -> Parts:
    """Opens the model and the pictures; what does not fit is found before weights are read."""
    plan.check_range(config, 1, "rank", "num_steps")
    plan.check_range(config, 0, "caption_dropout", high=0.99)
    if config.alpha is not None:
        plan.check_range(config, 1e-6, "alpha")
    if config.run.augment != "none":
        raise ValueError("--augment changes pictures that are encoded once; leave it out")
    if not config.run.data:
        raise ValueError("which pictures? Give --data a folder with a metadata.jsonl")
    checkpoint = hub.open_checkpoint(
        config.model, tokenizer=config.tokenizer, prediction_type=config.prediction_type
    )
    networks = loading.networks(checkpoint, experiment.network_dtype(config.run))
    networks = networks._replace(unet=networks.unet.clone(remat=config.remat))
    tuning.check_trainable(networks)
    tuning.training_schedule(checkpoint)  # for its errors, before weights are read
    kernels = layers(config, networks)
    size = image_size(config, networks)
    pictures = caption_folder.open_split(
        Path(config.run.data), "train", image_size=size, channels=3, holds_out=False
    )
    if len(pictures.captions) < 2:
        raise ValueError(f"{config.run.data} has one picture; a LoRA needs two or more")
    base, encode = loading.load(checkpoint, networks), partial(tuning.encode_pictures, networks.vae)
    return Parts(checkpoint, networks, base, size, pictures, kernels, encode)


def layers(config: Config, networks: Networks) -> dict[str, Any]:
    """Finds the layers of each component that get factors."""
    if not config.targets and not config.text_targets:
        raise ValueError("nothing to train; give --targets or --text-targets ends of layers' names")
    modules: dict[str, Any] = {}
    if config.targets:
        modules["unet"] = (networks.unet, config.targets)
    if config.text_targets:
        modules |= {name: (own, config.text_targets) for name, own in networks.encoders.items()}
    return {
        name: low_rank.layers(loading.shapes(module), targets, name)
        for name, (module, targets) in modules.items()
    }


def image_size(config: Config, networks: Networks) -> int:
    """Chooses the side of the pictures in pixels: --image-size, or the model's own."""
    size = config.run.image_size or min(networks.default_size or (0,))
    if not size:
        raise ValueError(f"{config.model} does not say its size; give --image-size")
    halvings = len(networks.unet.block_out_channels) - 1
    multiple = networks.vae.factor * 2**halvings
    if size % multiple:
        raise ValueError(f"--image-size is {size}; use a multiple of {multiple} for this model")
    return size


def scale_of(config: Config) -> float:
    """Computes alpha / rank, by which the change is multiplied."""
    return 1.0 if config.alpha is None else config.alpha / config.rank


def _for_run(config: Config, parts: Parts) -> tuple[Build, OpenSplit]:
    """Returns how `run` builds the System, and where it finds the data."""
    return partial(build, parts), partial(open_split, parts)


def open_split(parts: Parts, options: RunOptions, split: str) -> sets.Source:
    """Opens posteriors of the pictures, with token ids as labels; both splits hold all pictures."""
    source = parts.pictures.source
    ids = tuning.token_ids(parts.checkpoint, parts.networks, parts.pictures.captions)

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return source.read(indices)[0], ids[indices]

    tokenized = source._replace(read=read, label_shape=ids.shape[1:])
    return captioned.encoded(tokenized, parts.encode, parts.base["vae"], 1.0)


def build(parts: Parts, config: Config, examples: Examples) -> System:
    """Builds the System of the factors: their first state, a step, pictures."""
    options, networks = config.run, parts.networks
    num_steps = experiment.num_steps(options, examples, options.batch_size)
    tx = experiment.optimizer_of(options, num_steps)
    loss = tuning.low_rank_loss(
        networks,
        tuning.training_schedule(parts.checkpoint),
        tuning.token_ids(parts.checkpoint, networks, [""])[0],
        parts.image_size,
        scale_of(config),
        config.caption_dropout,
    )

    def init(key: Key) -> Any:
        keys = jax.random.split(key, len(parts.kernels))
        factors = {
            name: low_rank.init(own, kernels, config.rank)
            for own, (name, kernels) in zip(keys, parts.kernels.items(), strict=True)
        }
        return step.init_state(factors, tx)

    return System(
        init=init,
        step=step.gradient_step(loss, tx, options.accumulate, shared=(tuning.BASE,)),
        draw=painter(config, parts),
        images_per_step=options.batch_size,
        progress_metrics=("loss", "grad_norm"),
        convolutional=True,
        shared={tuning.BASE: {n: own for n, own in parts.base.items() if n != "vae"}},
    )


def painter(config: Config, parts: Parts) -> Any:
    """Builds a function that draws prompts with the factors merged; its first call compiles."""
    prompts = list(config.prompts) or parts.pictures.captions[:SHOWN]
    pipe: StableDiffusion | None = None

    def draw(state: Any, examples: Examples, key: Key) -> dict[str, Image.Image]:
        nonlocal pipe
        params = tuning.with_factors(parts.base, state.params, scale_of(config))
        if pipe is None:
            pipe = StableDiffusion(parts.checkpoint, experiment.network_dtype(config.run))
        pipe = pipe.with_params(params)  # which frees the parameters that it loaded
        pictures = pipe(
            prompts, num_steps=config.num_steps, guidance_scale=config.guidance,
            height=parts.image_size, width=parts.image_size,
        )  # fmt: skip
        return {"samples": images.grid(pictures, min(len(pictures), 8))}

    return draw


def export(config: Config, parts: Parts) -> None:
    """Writes the factors as PEFT's file and as kohya's."""
    state, done, _ = run.restore(config, *_for_run(config, parts))
    factors = jax.device_get(experiment.model(state, config.run).params)
    alpha = float(config.rank if config.alpha is None else config.alpha)
    dtype = jnp.float16 if config.half else jnp.float32
    components, base = parts.checkpoint.components, Path(config.model).name

    def write(folder: Path) -> None:
        folder.mkdir()
        lora_file.write_peft(folder / lora_file.PEFT, components, factors, alpha, dtype)
        lora_file.write_kohya(folder / KOHYA, components, factors, alpha, dtype, base)

    folder = Path(config.output)
    files.write_whole(folder, write)
    for path in (folder / lora_file.PEFT, folder / KOHYA):
        print(f"{path}: {path.stat().st_size / 1e3:,.1f} kB after {done:,} steps")


def main() -> None:
    config = command_line.parse(NAME, PRESETS, __doc__, read_with=READ_WITH)
    if config.action == "export":
        files.check_new(Path(config.output))
    script.set_up(config.run.distributed)
    parts = prepare(config)
    if config.action == "export":
        export(config, parts)
    else:
        run.train(NAME, config, *_for_run(config, parts))


if __name__ == "__main__":
    script.main(main)
