# SPDX-License-Identifier: MIT
"""States what one step of LoRA training costs a published model: arithmetic and memory.

    python -m benchmarks.lora_step --models sd15 --batch-sizes 1 4          # extra: tpu

The step is compiled for a TPU that need not be there, and not run, with and without gradient
checkpointing (`experiments/lora.py --remat`). Factors and Adam are float32.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no TPU is needed to compile for one
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud that knows the machine
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compiling needs no TPU for itself

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import sd_models, tpu
from jaxgen import script
from jaxgen.adapters import low_rank
from jaxgen.diffusion import schedule
from jaxgen.measure import environment, products
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
    batch_sizes: tuple[int, ...] = (1, 4)  # pictures of a step
    topology: str = "v5e:2x4"  # of whose chips one is compiled for
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
    """The costs of steps with and without gradient checkpointing."""
    chip, devices = tpu.topology(config.topology)
    alone = NamedSharding(Mesh(devices[:1], ("data",)), P())
    for batch_size in config.batch_sizes:
        for remat in (False, True):
            with tpu.as_on_tpu():
                one, shapes = train_step(name, config.rank, batch_size, config.dtype, remat)
                count = products.flops(one, *shapes)
            inputs = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone), shapes
            )
            title = f"{name}, LoRA step{', checkpointing' if remat else ''}, batch {batch_size}"
            program = tpu.Program(title, jax.jit(one, donate_argnums=0), inputs, {}, batch_size)
            trained = sum(x.size for x in jax.tree.leaves(shapes[0].params))
            row = tpu.estimate(program, chip, 1)
            yield row | {"remat": remat, "trained_parameters": trained, "product_flops": count}


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
