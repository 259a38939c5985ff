# SPDX-License-Identifier: MIT
"""States what one step of LoRA training costs a published model: arithmetic and memory.

    python -m benchmarks.lora_step --models sd15 sdxl

Nothing runs and nothing is compiled: both are counted from the step's own equations, with and
without gradient checkpointing (`experiments/lora.py --remat`). Kept are the arrays that the
forward pass leaves for the backward pass beside the parameters themselves; a compiler may compute
some of them once more, and needs room for what is in work. Factors and Adam are float32.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.extend import core

from benchmarks import result_file
from benchmarks.sd import sd_models
from jaxgen import files, script
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

    models: tuple[str, ...] = ("sd15",)  # of benchmarks/sd/sd_models.py
    rank: int = 8  # of the factors
    batch_sizes: tuple[int, ...] = (1, 4)  # pictures of a step
    dtype: str = "bfloat16"  # of the base and of the arithmetic
    output: str = "runs/lora_step.json"  # results go to this file


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    files.check_writable(Path(config.output))
    record, rows = environment.record(), []
    for name in config.models:
        for row in _rows(config, name):
            rows.append(row)
            print(row, flush=True)
    content = {"environment": record, "config": asdict(config), "rows": rows}
    result_file.write(Path(config.output), content)


def _rows(config: Config, name: str) -> Iterator[dict[str, Any]]:
    """The costs of steps with and without gradient checkpointing."""
    for batch_size in config.batch_sizes:
        for remat in (False, True):
            loss, one, inputs = train_step(name, config.rank, batch_size, config.dtype, remat)
            state, batch, key = inputs
            yield {
                "model": name,
                "batch_size": batch_size,
                "remat": remat,
                "trained_parameters": sum(x.size for x in jax.tree.leaves(state.params)),
                "state_bytes": _bytes(jax.tree.leaves(state)),
                "base_bytes": _bytes(jax.tree.leaves(batch[tuning.BASE])),
                "product_flops": products.flops(one, *inputs),
                "kept_bytes": kept_bytes(loss, state.params, batch, key),
            }


def kept_bytes(loss: Any, params: Any, batch: Any, key: Any) -> int:
    """The bytes that the forward pass of the mean loss keeps for its gradient, inputs left out."""

    def forward(params: Any, batch: Any, key: jax.Array) -> list[Any]:
        base = batch[tuning.BASE]
        examples = {name: x for name, x in batch.items() if name != tuning.BASE}
        keys = jax.random.split(key, len(examples["ids"]))

        def mean(params: Any) -> jax.Array:
            one = jax.vmap(lambda e, k: loss(params, {**e, tuning.BASE: base}, k)[0])
            return jnp.mean(one(examples, keys))

        return jax.tree.leaves(jax.vjp(mean, params)[1])

    jaxpr = jax.make_jaxpr(forward)(params, batch, key).jaxpr
    kept = {id(v): v for v in jaxpr.outvars if isinstance(v, core.Var)}
    for given in (*jaxpr.invars, *jaxpr.constvars):
        kept.pop(id(given), None)
    return _bytes([v.aval for v in kept.values()])


def _bytes(arrays: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in arrays)


def train_step(
    name: str, rank: int, batch_size: int, dtype: str, remat: bool
) -> tuple[Any, Any, Any]:
    """The loss of a model's LoRA, its step, and the shapes of (state, batch, key) for it."""
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
    return loss, one, (jax.eval_shape(init, key), batch, key)


if __name__ == "__main__":
    script.main(main)
