# SPDX-License-Identifier: MIT
"""States what one step of LoRA training costs a published model: arithmetic and memory.

    python -m benchmarks.lora_step --models sd15 --output runs/lora_step.json

The step is compiled and not run, for the device that JAX finds. With and without gradient
checkpointing (`experiments/lora.py --remat`). The base has the type of the arithmetic, factors and
Adam are float32.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks import sd_models
from jaxgen import script
from jaxgen.adapters import low_rank
from jaxgen.diffusion import schedule
from jaxgen.measure import cost, environment, products
from jaxgen.miniature import tuning
from jaxgen.stable_diffusion import loading
from jaxgen.train import step

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Config:
    """Options of the estimate."""

    models: tuple[str, ...] = ("sd15",)  # of benchmarks/sd_models.py
    rank: int = 8  # of the factors
    batch_size: int = 1  # pictures of a step
    dtype: str = "bfloat16"  # of the base and of the arithmetic
    output: str = "runs/lora_step.json"  # results go to this file


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    rows = []
    for name in config.models:
        for row in _rows(config, name):
            rows.append(row)
            print(row, flush=True)
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"environment": environment.record(), "config": asdict(config), "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")


def _rows(config: Config, name: str) -> Iterator[dict[str, Any]]:
    """The costs of a step with and without gradient checkpointing."""
    for remat in (False, True):
        one, inputs = train_step(name, config.rank, config.batch_size, config.dtype, remat)
        lowered = jax.jit(one, donate_argnums=0).lower(*inputs)
        counted = cost.cost(lowered, lowered.compile())
        yield {
            "model": name,
            "remat": remat,
            "batch_size": config.batch_size,
            "trained_parameters": sum(x.size for x in jax.tree.leaves(inputs[0].params)),
            "product_flops": products.flops(one, *inputs),
            "argument_bytes": counted.argument_bytes,
            "temporary_bytes": counted.temporary_bytes,
            "peak_bytes": counted.peak_bytes,
        }


def train_step(name: str, rank: int, batch_size: int, dtype: str, remat: bool) -> tuple[Any, Any]:
    """The step of a model's LoRA, and the shapes of (state, batch, key) that it takes."""
    networks = sd_models.networks(name, jnp.dtype(dtype))
    networks = networks._replace(unet=networks.unet.clone(remat=remat))
    resolution = sd_models.RESOLUTIONS[name]
    tokens = min(encoder.max_position_embeddings for encoder in networks.encoders.values())
    ids = np.zeros((len(networks.encoders), tokens), np.int32)
    loss = tuning.low_rank_loss(networks, schedule.noise_schedule(), ids, resolution, 1.0, 0.1)
    tx = optax.adam(LEARNING_RATE)
    kernels = low_rank.layers(loading.shapes(networks.unet), TARGETS, "unet")

    def init(key: jax.Array) -> Any:
        return step.init_state({"unet": low_rank.init(key, kernels, rank)}, tx)

    modules = {"unet": networks.unet, **networks.encoders}
    base = {
        part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, networks.unet.dtype), loading.shapes(module)
        )
        for part, module in modules.items()
    }
    side = resolution // networks.vae.factor
    latents = (batch_size, side, side, 2 * networks.vae.latent_channels)
    batch = {
        "posterior": jax.ShapeDtypeStruct(latents, jnp.float16),
        "ids": jax.ShapeDtypeStruct((batch_size, *ids.shape), jnp.int32),
        tuning.BASE: base,
    }
    key = jax.eval_shape(jax.random.key, 0)
    one = step.gradient_step(loss, tx, shared=(tuning.BASE,))
    return one, (jax.eval_shape(init, key), batch, key)


if __name__ == "__main__":
    script.main(main)
