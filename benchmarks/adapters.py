# SPDX-License-Identifier: MIT
"""Times a UNet step with adapters against one without: merged, chosen by each image, ControlNet;
and the mean step with DeepCache.

    python -m benchmarks.adapters --output benchmarks/results/cpu_adapters.json

The candidates take turns on the model that comes with jaxgen; for Stable Diffusion 1.5 the products
of a step are counted. Adapters and ControlNet have random weights: speed does not depend on them.
"""

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import diffusion, result_file
from benchmarks.sd import deep_cache, sd_models, sd_programs
from jaxgen import files, script
from jaxgen.adapters import lora_file, low_rank
from jaxgen.adapters.beside import Beside
from jaxgen.cpu import tune
from jaxgen.measure import environment, products, turns
from jaxgen.nn.stable_diffusion.controlnet import ControlNetModel
from jaxgen.stable_diffusion import loading, programs
from jaxgen.stable_diffusion.control import Control
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.weights import diffusers, hub
from jaxgen.weights.diffusers import Component

PLAIN, MERGED, BESIDE, CONTROL = "no adapter", "LoRA, merged", "LoRA of each image", "ControlNet"
INTERVAL = 3
CACHED = f"DeepCache, every {INTERVAL}rd step whole"
TARGETS, RANK = ("to_q", "to_k", "to_v", "to_out.0"), 8
NUM_STEPS = 20
UNET_ONLY = ("_class_name", "sample_size", "up_block_types", "out_channels")


@dataclass(frozen=True)
class Config:
    """Options of the race."""

    batch_size: int = 8  # images, each with a LoRA of its own
    turns: int = 9  # of every candidate
    seconds: float = 2.0  # of a turn
    output: str = "runs/adapters.json"  # results go to this file


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    files.check_writable(Path(config.output))
    tune.tune_cpu()
    record = environment.record()
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: step_of(pipe, config) for name, pipe in pipelines(config, Path(folder))}
        plain = StableDiffusion(hub.open_checkpoint(hub.EMBEDDED), loop="host")
        steps[CACHED] = step_of(plain, config, INTERVAL)
        times = turns.take_turns(steps, config.turns, config.seconds)
    flops = counted("sd15", config.batch_size)
    rows = [
        {
            "kind": "adapters", "candidate": name, "batch_size": config.batch_size, "rank": RANK,
            "seconds": seconds, "sd15_product_flops": flops[name],
        }
        for name, seconds in times.items()
    ]  # fmt: skip
    result_file.write(Path(config.output), {"environment": record, "rows": rows})
    for row in rows:
        factor = turns.ratio(row["seconds"], times[PLAIN]).median
        print(f"{row['candidate']}: {factor:.2f} x the time of a step without")


def pipelines(config: Config, folder: Path) -> Iterator[tuple[str, StableDiffusion]]:
    """The pipelines of all candidates."""
    checkpoint = hub.open_checkpoint(hub.EMBEDDED)
    pipe = StableDiffusion(checkpoint, loop="host")
    yield PLAIN, pipe
    kernels = low_rank.layers(pipe.base["unet"], TARGETS, "unet")
    files = []
    for k in range(config.batch_size):
        factors = low_rank.init(jax.random.key(k), kernels, RANK)
        factors = jax.tree.map(lambda x: x + 0.01, factors)
        files.append(folder / f"{k}.safetensors")
        lora_file.write_peft(files[-1], checkpoint.components, {"unet": factors}, RANK)
    for name, adapters, per_image in (
        (MERGED, files[:1], None),
        (BESIDE, files, np.eye(config.batch_size)),
    ):
        other = copy.copy(pipe)
        other.set_adapters(adapters, per_image)
        yield name, other
    yield CONTROL, StableDiffusion(checkpoint, loop="host", controlnets=[control(checkpoint)])


def control(checkpoint: diffusers.Checkpoint) -> Component:
    """A ControlNet of random weights for the UNet of a checkpoint."""
    config = checkpoint.components["unet"].config
    config = {key: value for key, value in config.items() if key not in UNET_ONLY}
    halvings = len(checkpoint.components["vae"].config["block_out_channels"])
    config["conditioning_embedding_out_channels"] = [16, 32, 96, 256][:halvings]
    empty = Component("ControlNetModel", config, {})
    shapes = loading.shapes(ControlNetModel(**diffusers.fields(empty)))
    weights = jax.tree.map(lambda x: jnp.full(x.shape, 0.01), shapes)
    return diffusers.with_params(empty, weights)


def step_of(pipe: StableDiffusion, config: Config, interval: int = 1) -> turns.Candidate:
    """A step of this pipeline as a candidate; interval: of whole steps."""
    height, width = pipe.networks.default_size or (64, 64)
    pictures = np.zeros((height, width, 3), np.uint8) if pipe.networks.controlnets else None
    request = Request(
        ["a red star"] * config.batch_size, num_steps=NUM_STEPS, control_image=pictures,
        cache_interval=interval,
    )  # fmt: skip
    inputs = pipe.inputs(request)
    prepared, state = pipe.programs.begin(pipe.params["unet"], inputs)
    one = partial(pipe.programs.step, pipe.params["unet"], inputs, prepared)
    return diffusion.chain(one, state, NUM_STEPS)


def counted(name: str, batch_size: int) -> dict[str, int]:
    """The products of one step of a published model, for each candidate; nothing is computed."""
    networks = sd_models.networks(name, jnp.float32)
    size = sd_programs.Size(batch_size, sd_models.RESOLUTIONS[name], NUM_STEPS)
    width = sum(encoder.hidden_size for encoder in networks.encoders.values())
    text = Text(np.zeros((batch_size, 2, sd_programs.TOKENS, width), np.float32))
    plain = sd_programs.inputs(networks, size, text)
    unet = loading.shapes(networks.unet)
    config = {k: v for k, v in sd_models.MODELS[name]["unet"].items() if k not in UNET_ONLY}
    net = ControlNetModel(**diffusers.fields(Component("ControlNetModel", config, {})))
    whole = _flops(networks, unet, plain)
    shallow = deep_cache.shallow_flops(networks, unet, plain)
    return {
        CACHED: (whole + (INTERVAL - 1) * shallow) // INTERVAL,
        PLAIN: whole,
        MERGED: whole,
        BESIDE: _flops(networks, unet, plain._replace(adapters=_beside(unet, batch_size))),
        CONTROL: _flops(
            networks._replace(controlnets=(net,)),
            unet,
            plain._replace(controls=(_control(net, size),)),
        ),
    }


def _flops(networks: Networks, unet: Any, inputs: Any) -> int:
    run = programs.build(networks)
    prepared, state = jax.eval_shape(run.begin, unet, inputs)
    return products.flops(run.step, unet, inputs, prepared, np.int32(0), state)


def _beside(unet: Any, count: int) -> Beside:
    """The shapes of `count` adapters side by side."""
    kernels = low_rank.layers(unet, TARGETS, "unet")
    factors = jax.eval_shape(lambda: low_rank.init(jax.random.key(0), kernels, RANK * count))
    return Beside(factors, np.zeros((count, RANK * count), np.float32))


def _control(net: ControlNetModel, size: sd_programs.Size) -> Control:
    images = np.zeros((size.batch_size, size.resolution, size.resolution, 3), np.float32)
    layers = net.layers_per_block
    assert isinstance(layers, int)
    skips = len(net.block_out_channels) * (layers + 1)
    return Control(
        loading.shapes(net), images, np.ones(NUM_STEPS, np.float32),
        np.ones(skips + 1, np.float32), np.ones((), np.float32),
    )  # fmt: skip


if __name__ == "__main__":
    script.main(main)
