# SPDX-License-Identifier: MIT
"""Makes images from text: with a small model of jaxgen's own, or Stable Diffusion 1.x, 2.x, XL.

python experiments/text_to_image.py --prompt "a large red star above a small blue ring"
python experiments/text_to_image.py --model FOLDER --prompt "a lighthouse at dusk"
python experiments/text_to_image.py --model FOLDER --prompt "a cat" "a dog" --batch-size 4
python experiments/text_to_image.py --model FOLDER --prompt "in oil" --image a.png --strength 0.6
python experiments/text_to_image.py --model FOLDER --prompt "a boat" --image a.png --mask white.png

The model is a folder in diffusers' layout, a single .safetensors file, or a Hub id; without one it
is "shapes", which comes with jaxgen and draws coloured shapes in 64 x 64 pixels. Every picture is a
PNG that carries its prompt and settings; numbers go on where the output folder left off.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh
from PIL import Image, ImageOps
from rich import progress
from rich.console import Console

import jaxgen
from jaxgen import script
from jaxgen.cpu import tune
from jaxgen.miniature import model
from jaxgen.pictures import images
from jaxgen.stable_diffusion import loading, request
from jaxgen.stable_diffusion.pipeline import OnStep, StableDiffusion
from jaxgen.stable_diffusion.request import Request
from jaxgen.types import Array
from jaxgen.weights import hub


@dataclass(frozen=True)
class Config:
    """Options of a call."""

    model: str = hub.EMBEDDED  # a diffusers folder, a .safetensors file, a Hub id, or "shapes"
    prompt: tuple[str, ...] = ()  # one or several; (word:1.3) weighs a word (needed)
    negative: str | None = None  # what the images should not show
    image: Path | None = None  # begin with this picture
    strength: float = 0.8  # how much of --image is made anew: 0 nothing, 1 all
    mask: Path | None = None  # white where --image is made anew
    steps: int | None = None  # of the sampler; 20 with "shapes", else 50
    # how closely to follow the prompt: 3 with "shapes", else 7.5; 1 is no guidance, half the work
    guidance: float | None = None
    guidance_rescale: float = 0.0  # 0 to 1; against the burnt look of strong guidance
    sampler: str | None = None  # euler, dpmpp_2m, unipc, ...; the model's own by default
    eta: float | None = None  # fresh noise of ddim and tcd
    seed: int = 0  # of the first image; the others count up
    batch_size: int = 1  # images of each prompt, all made at once
    width: int | None = None  # pixels; the picture's or the model's own by default
    height: int | None = None  # pixels
    clip_skip: int = 0  # last layers of the text encoder to leave out
    weighting: bool = True  # brackets in prompts are emphasis; --no-weighting: they are text
    # of parameters and arithmetic; auto is float32 on CPU, elsewhere bfloat16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    variant: str | None = None  # of the weight files, as fp16
    tokenizer: str | None = None  # for single files: a folder or Hub id with a CLIP tokenizer
    prediction_type: Literal["epsilon", "v_prediction"] | None = None  # for single files
    data_devices: int = 1  # images are divided over so many devices
    model_devices: int = 1  # and large parameters over so many
    output: Path = Path("outputs")  # folder


def main() -> None:
    # one paragraph for each example, or the help runs them together
    config = tyro.cli(Config, description=str(__doc__).replace("\npython", "\n\npython"))
    script.compilation_cache()
    tune.tune_cpu()
    asked = request_of(config)
    with stopwatch() as load:
        pipe = load_model(config, asked)
    # flush: a pipe would show it with the pictures only
    print(f"load {load.seconds:.1f} s: {pipe.dtype.name} on {devices(pipe)}", flush=True)

    with script.stop_requests() as signal, stopwatch() as call, bar(signal) as on_step:
        latents = pipe.latents(pipe.inputs(asked), on_step)
        pictures = pipe.decode(latents)
    count, height, width, _ = pictures.shape
    print(
        f"compile {call.compiling:.1f} s\n"
        f"run {call.seconds:.1f} s: {count} image{'s' * (count > 1)} of {width} x {height}, "
        f"{call.seconds / count:.2f} s each"
    )
    for path in save(config, pipe, pictures):
        print(path)


def steps_and_guidance(config: Config) -> tuple[int, float]:
    """As given, or what suits the model."""
    own = model.NUM_STEPS, model.GUIDANCE_SCALE
    steps, guidance = own if config.model == hub.EMBEDDED else (50, 7.5)
    return (
        steps if config.steps is None else config.steps,
        guidance if config.guidance is None else config.guidance,
    )


def request_of(config: Config) -> Request:
    """The call as the pipeline takes it; files are opened here, before the model is loaded."""
    if not config.prompt:
        raise ValueError('what should the image show? Give --prompt "..."')
    if config.batch_size < 1:
        raise ValueError(f"--batch-size is {config.batch_size}; it must be at least 1")
    if config.output.exists() and not config.output.is_dir():
        raise ValueError(f"--output {config.output} is a file; give a folder")
    prompts = [prompt for prompt in config.prompt for _ in range(config.batch_size)]
    image, mask = read_pictures(config)
    steps, guidance = steps_and_guidance(config)
    return Request(
        prompts, config.negative, steps, guidance, config.sampler, config.seed,
        config.height, config.width, image, config.strength, mask,
        guidance_rescale=config.guidance_rescale, eta=config.eta, clip_skip=config.clip_skip,
        weighting=config.weighting,
    )  # fmt: skip


def read_pictures(config: Config) -> tuple[Image.Image | None, Image.Image | None]:
    """Image and mask, upright, cut and resized alike to the size asked for or a multiple of 8."""
    if config.image is None:
        if config.mask is not None:
            raise ValueError("--mask says which part of --image to make anew; give both")
        return None, None
    image = ImageOps.exif_transpose(images.read(config.image)).convert("RGB")
    mask = None if config.mask is None else images.read(config.mask).convert("L")
    if mask is not None and mask.size != image.size:
        raise ValueError(
            f"{config.mask} has {mask.width} x {mask.height} pixels and {config.image} "
            f"{image.width} x {image.height}; they must be of one size"
        )
    size = (config.width or image.width // 8 * 8, config.height or image.height // 8 * 8)
    if min(size) < 8:
        raise ValueError(f"{size[0]} x {size[1]} pixels are too few; use 8 at least")
    image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return image, mask and ImageOps.fit(mask, size, Image.Resampling.NEAREST)


def load_model(config: Config, asked: Request) -> StableDiffusion:
    """The pipeline; the request is checked before any weight is read."""
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    mesh = mesh_of(config)
    checkpoint = hub.open_checkpoint(
        config.model, config.variant, config.tokenizer, config.prediction_type
    )
    request.settings(asked, request.model(loading.networks(checkpoint), checkpoint.scheduler))
    return StableDiffusion(checkpoint, jnp.dtype(dtype), mesh)


def mesh_of(config: Config) -> Mesh | None:
    data, model = config.data_devices, config.model_devices
    if data == model == 1:
        return None
    found = jax.device_count()
    if min(data, model) < 1 or data * model > found:
        raise ValueError(
            f"--data-devices {data} and --model-devices {model} need {data * model} devices; there "
            f"are {found}"
        )
    return Mesh(np.array(jax.devices()[: data * model]).reshape(data, model), ("data", "model"))


def devices(pipe: StableDiffusion) -> str:
    count = 1 if pipe.mesh is None else pipe.mesh.size
    return f"{count} x {jax.devices()[0].device_kind}"


class Seconds:
    """Time spent: inside the compiler, and otherwise."""

    compiling = 0.0
    seconds = 0.0


@contextmanager
def stopwatch() -> Iterator[Seconds]:
    """Counts seconds, and those that JAX reports for tracing, lowering and compiling apart."""
    spent = Seconds()

    def count(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            spent.compiling += duration_secs

    jax.monitoring.register_event_duration_secs_listener(count)
    start = time.perf_counter()
    yield spent
    spent.seconds = time.perf_counter() - start - spent.compiling


@contextmanager
def bar(signal: Callable[[], int]) -> Iterator[OnStep]:
    """A bar of steps and steps per second on a terminal; plain lines now and then elsewhere.

    Time counts from the end of the first step, which carries the compilation. Exits after a step
    if there was a signal.
    """
    columns = (
        progress.TextColumn("steps"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
    )
    ends: list[float] = []  # of the steps
    told = [0.0]
    terminal = sys.stderr.isatty()
    with progress.Progress(*columns, console=Console(stderr=True), disable=not terminal) as shown:
        task = shown.add_task("", rate="")

        def on_step(done: int, total: int, latents: Array, estimate: Array) -> None:
            jax.block_until_ready(estimate)
            ends.append(time.monotonic())
            rate = ""
            if len(ends) > 1:
                rate = f"{(len(ends) - 1) / (ends[-1] - ends[0]):.2f} it/s"
            shown.update(task, completed=done, total=total, rate=rate)
            if not terminal and (done == total or ends[-1] - told[0] > 10):
                told[0] = ends[-1]
                print(f"step {done} of {total} {rate}".rstrip(), file=sys.stderr, flush=True)
            if signal():
                print(f"stopped at step {done} of {total}", file=sys.stderr)
                sys.exit(128 + signal())  # as a shell reports it

        yield on_step


def save(config: Config, pipe: StableDiffusion, pictures: np.ndarray) -> Iterator[Path]:
    """Writes each picture with its story, and a grid of several; yields the paths."""
    first = next_number(config.output)
    steps, guidance = steps_and_guidance(config)
    about = {
        "negative_prompt": config.negative,
        "steps": steps,
        "sampler": config.sampler or pipe.model.scheduler.get("_class_name"),
        "guidance_scale": guidance,
        "guidance_rescale": config.guidance_rescale,
        "clip_skip": config.clip_skip,
        "width": pictures.shape[2],
        "height": pictures.shape[1],
        "image": config.image,
        "strength": None if config.image is None else config.strength,
        "mask": config.mask,
        "model": config.model,
        "dtype": pipe.dtype.name,
        "software": f"jaxgen {jaxgen.__version__}",
    }
    about = {name: value for name, value in about.items() if value is not None}
    for j, picture in enumerate(pictures):
        path = config.output / f"{first + j:05d}.png"
        prompt = config.prompt[j // config.batch_size]
        images.save(path, picture, {"prompt": prompt, "seed": config.seed + j, **about})
        yield path
    if len(pictures) > 1:
        path = config.output / f"{first:05d}-grid.png"
        columns = config.batch_size if config.batch_size > 1 else None
        text = {"prompt": "\n".join(config.prompt), "seed": config.seed, **about}
        images.save(path, images.grid(pictures, columns), text)
        yield path


def next_number(folder: Path) -> int:
    """One more than the largest number that a picture in the folder has."""
    taken = [re.match(r"(\d{5,})(-grid)?\.png$", path.name) for path in folder.glob("*.png")]
    return max((int(found[1]) for found in taken if found), default=0) + 1


if __name__ == "__main__":
    script.main(main)
