# SPDX-License-Identifier: MIT
"""Measures what DeepCache saves and what it costs.

    python -m benchmarks.sd.deep_cache --output docs/deep_cache.json

On the model that comes with jaxgen: seconds of whole calls, by turns, and how far their pictures
lie from those without a cache. At Stable Diffusion 1.5's shapes, with random weights: seconds and
products of a whole row and of one that takes deep features again.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import diffusion, result_file
from benchmarks.sd import sd_models, sd_programs
from jaxgen import files, script
from jaxgen.cpu import tune
from jaxgen.measure import environment, products, turns
from jaxgen.stable_diffusion import placement, programs
from jaxgen.stable_diffusion.inputs import Inputs
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request
from jaxgen.stable_diffusion.text_encoding import Text

INTERVALS = (1, 2, 3, 5)
PROMPTS = [
    "a large red star above a small blue ring", "a small green square", "a large yellow heart",
    "a small purple circle left of a large orange triangle", "a large blue ring",
    "a small red heart below a large green star", "a large cyan square", "a small pink triangle",
]  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Options of the measurement."""

    steps: tuple[int, ...] = (20, 50)  # of the pictures
    turns: int = 5  # of every candidate
    seconds: float = 4.0  # of a turn
    sd15: bool = True  # measure steps at Stable Diffusion 1.5's shapes, too: it needs 5 GB
    output: str = "runs/deep_cache.json"  # results go to this file


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    files.check_writable(Path(config.output))
    tune.tune_cpu()
    record = environment.record()
    pipe = StableDiffusion.from_pretrained("shapes")
    rows = [row for steps in config.steps for row in shapes_rows(pipe, steps, config)]
    if config.sd15:
        rows += list(sd15_rows())
    result_file.write(Path(config.output), {"environment": record, "rows": rows})
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if key != "seconds"}))


def shapes_rows(pipe: StableDiffusion, steps: int, config: Config) -> Iterator[dict[str, Any]]:
    """A row for each interval: pictures of so many steps against those without a cache."""
    requests = {
        interval: Request(PROMPTS, num_steps=steps, guidance_scale=3.0, cache_interval=interval)
        for interval in INTERVALS
    }
    pictures = {interval: pipe.draw(request) for interval, request in requests.items()}
    calls = {str(k): diffusion.calls(partial(pipe.draw, r)) for k, r in requests.items()}
    times = turns.take_turns(calls, config.turns, config.seconds)
    for interval, own in pictures.items():
        seconds = times[str(interval)]
        yield {
            "kind": "deep cache", "model": "shapes", "pictures": len(PROMPTS), "steps": steps,
            "interval": interval, "psnr_db": psnr(own, pictures[1]),
            "speed": round(turns.ratio(times["1"], seconds).median, 3), "seconds": seconds,
        }  # fmt: skip


def psnr(a: np.ndarray, b: np.ndarray) -> list[float] | None:
    """The smallest, median and largest ratio of peak to noise of pictures uint8, in dB."""
    error = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    if not error.any():
        return None
    values = 10 * np.log10(255**2 / np.maximum(error, 1e-9))
    return [round(float(f(values)), 1) for f in (np.min, np.median, np.max)]


def sd15_rows() -> Iterator[dict[str, Any]]:
    """A row for a whole evaluation and one for a cached one, of one guided picture."""
    model = sd_models.random("sd15", jnp.float32)
    size = sd_programs.Size(1, sd_models.RESOLUTIONS["sd15"], 20)
    width = model.networks.unet.cross_attention_dim
    rng = np.random.default_rng(0)
    text = Text(rng.normal(size=(1, 2, sd_programs.TOKENS, width)).astype(np.float32))
    plain = sd_programs.inputs(model.networks, size, text)
    full = np.arange(len(plain.table.t)) == 0
    run, unet = programs.build(model.networks), model.params["unet"]
    for name, inputs, rows in (
        ("no cache", plain, (1, 2)),
        ("cache", plain._replace(full=full), (0, 1, 2)),
    ):
        inputs = placement.place_inputs(None, inputs)
        seconds = _row_seconds(run, unet, inputs, rows)
        prepared, state = jax.eval_shape(run.begin, unet, inputs)
        yield {
            "kind": "deep cache", "model": "sd15", "pictures": 1, "program": name,
            "row_seconds": seconds,
            "product_flops": products.flops(run.step, unet, inputs, prepared, np.int32(0), state),
            "shallow_product_flops": shallow_flops(model.networks, unet, inputs),
        }  # fmt: skip


def shallow_flops(networks: Networks, params: Any, inputs: Inputs) -> int:
    """The products of a row that takes deep features again, with two texts for each picture."""
    unet = networks.unet
    prepared, state = jax.eval_shape(programs.build(networks).begin, params, inputs)
    shape = (2 * state.latents.shape[1], *state.latents.shape[2:4])
    rows = jax.ShapeDtypeStruct((*shape, unet.in_channels), jnp.float32)
    emb = jax.ShapeDtypeStruct((shape[0], prepared.times.shape[-1]), jnp.float32)
    deep = jax.eval_shape(lambda: unet.no_deep(shape, has_residuals=False))
    shallow = partial(unet.apply, method="shallow")
    return products.flops(shallow, {"params": params}, rows, emb, prepared.text, deep)


def _row_seconds(run: Any, unet: Any, inputs: Any, rows: Sequence[int]) -> list[float]:
    """Seconds of rows of a run, after one that compiles."""
    prepared, state = run.begin(unet, inputs)
    state, _ = jax.block_until_ready(run.step(unet, inputs, prepared, np.int32(0), state))
    seconds = []
    for i in rows:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(run.step(unet, inputs, prepared, np.int32(i), state))
        seconds.append(round(time.perf_counter() - began, 3))
    return seconds


if __name__ == "__main__":
    script.main(main)
