# SPDX-License-Identifier: MIT
"""Draws images from text: with a small model of jaxgen's own, or Stable Diffusion 1.x, 2.x, XL.

python experiments/text_to_image.py --prompt "a large red star above a small blue ring"
python experiments/text_to_image.py --model FOLDER --prompt "a lighthouse at dusk"
python experiments/text_to_image.py --model FOLDER --prompt "a cat" "a dog" --batch-size 4
python experiments/text_to_image.py --model FOLDER --prompt "in oil" --image a.png --strength 0.6
python experiments/text_to_image.py --model FOLDER --prompt "a boat" --image a.png --mask white.png
python experiments/text_to_image.py --model FOLDER --prompt "a cat" --lora style.safetensors:0.8

The model is a folder in diffusers' layout, a single .safetensors file, or a Hub id; without one it
is "shapes", which comes with jaxgen and draws coloured shapes in 64 x 64 pixels. Every picture is a
PNG file that carries its prompt and settings; its number follows the largest in the output folder.
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

import jaxgen
from jaxgen import files, script
from jaxgen.adapters import controlnet_file, embedding_file, spec, unet_file
from jaxgen.cpu import tune
from jaxgen.diffusion import guidance, names
from jaxgen.miniature import model
from jaxgen.pictures import images
from jaxgen.stable_diffusion import hires, loading, picture_files, placement
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.hires import Hires
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.programs import OnStep
from jaxgen.stable_diffusion.request import Request
from jaxgen.types import Array
from jaxgen.warm import saved_pipeline
from jaxgen.weights import autoencoder, hub
from jaxgen.weights.diffusers import Component
from parts.text_to_image_options import Config, FromImage

OPTIONS = ("spacing", "levels", "eta", "guidance_rescale", "clip_skip")  # noted in the PNG file
OWN = "own"  # a value of --preview


def main() -> None:
    # one paragraph for each example, or the help runs them together
    config = tyro.cli(Config, description=str(__doc__).replace("\npython", "\n\npython"))
    script.compilation_cache()
    tune.tune_cpu()
    request = request_of(config)
    preview = preview_of(config)
    with script.stopwatch() as loading_time:
        pipe = load_model(config, request)
    # flush: a pipe would show it with the pictures only
    device = f"{pipe.mesh.size if pipe.mesh else 1} x {jax.devices()[0].device_kind}"
    print(f"load {loading_time.seconds:.1f} s: {pipe.dtype.name} on {device}", flush=True)

    with (
        script.stop_requests() as signal,
        script.stopwatch() as time_spent,
        script.steps_bar(signal) as on_step,
    ):
        pictures = pipe.draw(request, previewing(config, preview, pipe, on_step))
    count, height, width, _ = pictures.shape
    print(
        f"compile {time_spent.compiling:.1f} s\n"
        f"run {time_spent.seconds:.1f} s: {count} image{'s' * (count > 1)} of {width} x {height}, "
        f"{time_spent.seconds / count:.2f} s each"
    )
    for path in save(config, pipe, pictures):
        print(path)
    pipe.store.keep()


def steps_and_guidance(config: Config) -> tuple[int | None, float | None]:
    """Returns number of steps and guidance scale, of the command line or as they suit "shapes"."""
    of_shapes = (model.NUM_STEPS, model.GUIDANCE_SCALE)
    steps, scale = of_shapes if config.model == hub.EMBEDDED else (None, None)
    if config.sampling.times is not None:
        steps = len(config.sampling.times)
    return (
        steps if config.steps is None else config.steps,
        scale if config.guidance is None else config.guidance,
    )


def request_of(config: Config) -> Request:
    """Builds the request; image files are read here, before the model is loaded."""
    if not config.prompt:
        raise ValueError('what should the image show? Give --prompt "..."')
    if config.batch_size < 1:
        raise ValueError(f"--batch-size is {config.batch_size}; it must be at least 1")
    if config.output.exists() and not config.output.is_dir():
        raise ValueError(f"--output {config.output} is a file; give a folder")
    files.check_writable(config.output / "0.png")
    image, mask, hints = read_pictures(config)
    steps, scale = steps_and_guidance(config)
    of_rows: Any = scale
    if interval := config.sampling.guidance_interval:  # which is no field of Request
        if scale is None or scale <= 1:  # 1 and less is none, as it is outside of the interval
            raise ValueError(
                "--guidance-interval needs --guidance, the scale between its two shares, above 1"
            )
        of_rows = guidance.interval(scale, *interval)
    if config.sampling.pag_layers != ("mid",) and not config.sampling.pag_scale:
        raise ValueError("--pag-layers needs --pag-scale, how strongly they guide")
    sampling: dict[str, Any] = asdict(config.sampling)
    del sampling["guidance_interval"]
    if not config.sampling.pag_scale:
        del sampling["pag_layers"]
    return Request(
        prompt=[prompt for prompt in config.prompt for _ in range(config.batch_size)],
        negative_prompt=config.negative, num_steps=steps, seed=config.seed,
        guidance_scale=of_rows,
        height=config.height, width=config.width, image=image, mask=mask,
        strength=config.from_image.strength, **sampling,
        hires=hires_of(config),
        control_image=hints, control_scale=config.from_image.control_scale,
    )  # fmt: skip


def hires_of(config: Config) -> Hires | None:
    """Returns how the second pass begins, if there is one."""
    own = config.from_image
    given = own.hires_strength, own.hires_upscale
    if own.hires is None and given != (FromImage.hires_strength, FromImage.hires_upscale):
        raise ValueError("--hires-strength and --hires-upscale need --hires, how much is enlarged")
    if own.hires is None:
        return None
    return Hires(own.hires, own.hires_strength, own.hires_upscale)


def read_pictures(config: Config) -> tuple[Image.Image | None, Image.Image | None, Any]:
    """Reads image, mask and what ControlNets follow, all in the size of the picture to be made."""
    own, width, height = config.from_image, config.width, config.height
    image = mask = hints = None
    if own.image is not None:
        image, mask = picture_files.image_and_mask(own.image, own.mask, width, height)
        width, height = image.size
    elif own.mask is not None:
        raise ValueError("--mask says which part of --image to make anew; give both")
    if own.control_image:
        hints = picture_files.hints(own.control_image, width, height, own.control_edges)
        hints = hints[0] if len(hints) == 1 else hints
    elif own.control_edges:
        raise ValueError("--control-edges are of --control-image; give both")
    return image, mask, hints


def load_model(config: Config, request: Request) -> StableDiffusion:
    """Loads the pipeline; the request is checked before any weight is read."""
    weights, dtype = config.weights, config.weights.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    lora_rows = weights.lora_rows and spec.rows_from_text(
        weights.lora_rows, len(config.prompt), len(weights.lora)
    )
    mesh = placement.mesh_of(**asdict(config.devices))
    checkpoint = hub.open_checkpoint(
        config.model, weights.variant, weights.tokenizer, weights.prediction_type, weights.vae
    )
    if weights.unet is not None:
        checkpoint = unet_file.with_unet(checkpoint, weights.unet, weights.variant)
    nets = [controlnet_file.open_controlnet(path) for path in config.from_image.controlnet]
    networks = loading.networks(checkpoint, controlnets=nets)
    if request.hires is None:
        arguments.batch(request, networks, checkpoint.scheduler)
    else:
        hires.passes(request, networks, checkpoint.scheduler)
    programs = saved_pipeline.programs_of(config.model)
    if programs is None and (cache := script.cache_folder()) is not None:
        programs = cache / "programs"
    pipe = StableDiffusion(
        checkpoint,
        jnp.dtype(dtype),
        mesh,
        controlnets=nets,
        programs_folder=programs,
        quantize=weights.quantize,
    )
    rows = np.repeat(lora_rows, config.batch_size, axis=0) if lora_rows else None
    pipe.set_adapters([spec.from_text(text) for text in weights.lora], rows)
    pipe.set_embeddings([embedding_file.from_text(text) for text in weights.embedding])
    return pipe


def preview_of(config: Config) -> Component | None:
    """Opens the autoencoder of the previews, if it is another than the model's own."""
    if config.preview in (None, OWN):
        return None
    if config.preview == hub.EMBEDDED_TINY and config.model != hub.EMBEDDED:
        raise ValueError(
            f"--preview {hub.EMBEDDED_TINY} draws latents of {hub.EMBEDDED} alone; give the tiny "
            f"autoencoder of {config.model}, or {OWN}"
        )
    return autoencoder.read(hub.resolve_vae(config.preview))


def previewing(
    config: Config, preview: Component | None, pipe: StableDiffusion, on_step: OnStep
) -> OnStep:
    """Returns on_step, and before it a picture of the present estimate where one is asked for."""
    if config.preview is None:
        return on_step
    decode = pipe.decode if preview is None else loading.previewer(preview, pipe.networks)

    def with_preview(done: int, total: int, latents: Array, estimate: Array) -> None:
        images.save(config.output / "preview.png", images.grid(decode(estimate)))
        on_step(done, total, latents, estimate)

    return with_preview


def save(config: Config, pipe: StableDiffusion, pictures: np.ndarray) -> Iterator[Path]:
    """Writes each picture with its prompt and settings, and a grid of several; yields the paths."""
    pairs = zip(steps_and_guidance(config), pipe.defaults, strict=True)
    steps, scale = (own if own is not None else default for own, default in pairs)
    sampling, from_image = config.sampling, config.from_image
    own = hires_of(config)
    interval, parallel = sampling.guidance_interval, sampling.guidance_parallel
    settings = {
        "negative_prompt": config.negative,
        "steps": steps,
        "sampler": (sampling.sampler and names.one(sampling.sampler, sampling.levels))
        or pipe.scheduler.get("_class_name"),
        **{name: getattr(sampling, name) for name in OPTIONS},
        "times": sampling.times and " ".join(map(str, sampling.times)),
        "guidance_scale": scale,
        "guidance_interval": interval and " to ".join(map(str, interval)),
        "guidance_parallel": None if parallel == 1 else parallel,
        "guidance_limit": sampling.guidance_limit,
        "guidance_momentum": sampling.guidance_momentum or None,
        "pag_scale": sampling.pag_scale or None,
        "pag_layers": ", ".join(sampling.pag_layers) if sampling.pag_scale else None,
        "width": pictures.shape[2],
        "height": pictures.shape[1],
        "image": from_image.image,
        "strength": from_image.strength if from_image.image else None,
        "mask": from_image.mask,
        "hires": own and f"{own.scale:g}, strength {own.strength:g}, {own.upscale}",
        "controlnet": ", ".join(from_image.controlnet) or None,
        "control_image": ", ".join(map(str, from_image.control_image)) or None,
        "control_edges": from_image.control_edges or None,
        "control_scale": from_image.control_scale if from_image.controlnet else None,
        "model": config.model,
        "vae": config.weights.vae,
        "unet": config.weights.unet,
        "lora": ", ".join(config.weights.lora) or None,
        "lora_rows": " ".join(config.weights.lora_rows) or None,
        "embedding": ", ".join(config.weights.embedding) or None,
        "cache_interval": None if sampling.cache_interval == 1 else sampling.cache_interval,
        "dtype": pipe.dtype.name,
        "quantize": pipe.quantize,
        "software": f"jaxgen {jaxgen.__version__}",
    }
    return picture_files.save(config.output, pictures, config.prompt, config.seed, settings)


if __name__ == "__main__":
    script.main(main)
