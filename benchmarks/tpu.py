# SPDX-License-Identifier: MIT
"""Estimates for TPUs: programs compiled for a TPU that is not there, and their costs."""

import importlib.util
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import sd_models, sd_programs, training
from jaxgen.measure import cost
from jaxgen.runs import experiment, plan
from jaxgen.stable_diffusion import loading, placement, programs, text_encoding
from jaxgen.train import parallel, step
from jaxgen.types import DATA_AXIS

Row = dict[str, Any]
SCANNED_STEPS = 50
RATES = ("arithmetic_s", "memory_s", "network_s")


class Chip(NamedTuple):
    """The data sheet of one chip: cloud.google.com/tpu/docs/v5e and /v6e."""

    hbm_bytes: float
    flops_per_second: float  # bfloat16
    bytes_per_second: float  # HBM
    link_bytes_per_second: float  # between chips, all links together


CHIPS = {
    "v5e": Chip(16e9, 197e12, 819e9, 200e9),
    "v6e": Chip(32e9, 918e12, 1640e9, 448e9),
}


class Program(NamedTuple):
    """A program to compile by fn.lower(*args, **static)."""

    name: str
    fn: Any
    args: tuple
    static: dict[str, Any]
    images: int | None  # of one step, over all devices; None for a part of a step
    rounds: int = 1  # calls, or rounds of its loop, that whole images take


def topology(name: str) -> tuple[Chip, list[Any]]:
    """The chip and the devices of a topology such as v5e:2x4.

    Raises ValueError for a topology that is unknown, here or to the compiler, ImportError without
    the compiler.
    """
    kind = name.split(":")[0]
    if kind not in CHIPS:
        raise ValueError(f"unknown topology {name!r}; use one of {', '.join(CHIPS)}, as v5e:2x4")
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError('the TPU compiler is not installed; pip install -e ".[tpu]"')
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (RuntimeError, ValueError) as error:  # which of them depends on libtpu's version
        reason = str(error).splitlines()[0]
        raise ValueError(f"the TPU compiler does not know the topology {name}: {reason}") from None
    return CHIPS[kind], list(description.devices)


@contextmanager
def as_on_tpu() -> Iterator[None]:
    """Makes networks choose as on a TPU: they ask for the backend, and here that is the CPU."""
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        yield


def estimate(program: Program, chip: Chip, num_devices: int) -> Row:
    """The row of one program; its "error" is set if the program does not compile or fit."""
    row: Row = {"kind": "tpu", "program": program.name, "num_devices": num_devices, "error": None}
    row |= {"images_per_step": program.images, "rounds": program.rounds}
    row |= {"hbm_bytes": chip.hbm_bytes}
    began = time.perf_counter()
    try:
        with as_on_tpu():
            lowered = program.fn.lower(*program.args, **program.static)
            costs = cost.cost(lowered, lowered.compile())
    except Exception as error:  # whatever the compiler may raise is this row's result
        return row | {"error": str(error).strip().splitlines()[0][:300]}
    row |= {"compile_s": time.perf_counter() - began, "memory_bytes": costs.peak_bytes}
    row |= {"flops": costs.flops, "bytes": costs.bytes_accessed}
    row |= {"collectives": costs.collectives, "collective_bytes": costs.collective_bytes}
    row |= roofline(costs, chip)
    if costs.peak_bytes > chip.hbm_bytes:
        row["error"] = f"needs {costs.peak_bytes / 1e9:.1f} GB of {chip.hbm_bytes / 1e9:.0f} GB"
    return row


def whole_images(parts: Sequence[Row], images: int) -> Row | None:
    """The row of whole images, the sum of those of `diffusion_programs`; None if one failed.

    The UNet's program works before its loop too, 1 % of a step, which is counted at every step.
    """
    if any(row["error"] for row in parts):
        return None
    name = parts[0]["program"].rsplit(":", 1)[0]
    row = parts[0] | {"program": f"{name}: images, from the sum", "images_per_step": images}
    for field in ("flops", "bytes", "collective_bytes", "seconds_estimated", *RATES):
        row[field] = sum(part["rounds"] * part[field] for part in parts)
    row["memory_bytes"] = max(part["memory_bytes"] for part in parts)
    row["compile_s"] = sum(part["compile_s"] for part in parts)
    kinds: Counter[str] = Counter()
    for part in parts:
        kinds.update({kind: part["rounds"] * count for kind, count in part["collectives"].items()})
    return row | {"collectives": dict(kinds), "rounds": 1}


def roofline(costs: cost.Cost, chip: Chip) -> Row:
    """The seconds of arithmetic, memory traffic and communication at the data sheet's rates.

    The longest is the estimate. It is no bound: real rates are lower, but part of what the
    compiler counts as traffic may never leave the chip.
    """
    times = {
        "arithmetic_s": costs.flops / chip.flops_per_second,
        "memory_s": costs.bytes_accessed / chip.bytes_per_second,
        "network_s": costs.collective_bytes / chip.link_bytes_per_second,
    }
    return times | {"seconds_estimated": max(times.values())}


# --- training ----------------------------------------------------------------------------------


def training_programs(
    models: tuple[str, ...], devices: list[Any], batch_size: int, dtype: str
) -> Iterator[Program]:
    """The scanned steps of every model and network in every mode; batch_size is per device."""
    mesh = Mesh(np.array(devices), (DATA_AXIS,))
    for model in models:
        for network in training.NETWORKS:
            case = training.Case(model, network, batch_size * len(devices), dtype)
            for how in parallel.MODES:
                yield _training_program(case, how, mesh)


def _training_program(case: training.Case, how: str, mesh: Mesh) -> Program:
    config = training.config_of(case)
    with as_on_tpu():
        system = plan.checked_system(
            config, training.SCRIPTS[case.model].build, training.examples()
        )
    run = parallel.parallelize(step.scan_steps(system.step), mesh, how, parallel.SCANNED)
    state = jax.eval_shape(system.init, experiment.init_keys(config.run))
    data = jax.ShapeDtypeStruct((training.NUM_IMAGES, *training.SHAPE), jnp.uint8)
    indices = jax.ShapeDtypeStruct((SCANNED_STEPS, case.batch_size), jnp.int32)
    everywhere = NamedSharding(mesh, P())
    args = (
        _placed(state, everywhere),
        (
            {"image": _placed(data, everywhere)},
            _placed(indices, NamedSharding(mesh, P(None, DATA_AXIS))),
        ),
        _placed(jax.eval_shape(lambda: experiment.train_keys(config.run)), everywhere),
    )
    name = f"{case.model} {case.network}, batch {case.batch_size}, {case.dtype}, scan {how}"
    return Program(name, jax.jit(run, donate_argnums=0), args, {}, case.batch_size)


# --- Stable Diffusion --------------------------------------------------------------------------


def diffusion_programs(
    model: str, devices: list[Any], axis: str, batch_size: int, num_steps: int, dtype: Any
) -> Iterator[Program]:
    """The programs of the pipeline: text encoders, all steps of the UNet in a loop, decoder.

    axis: "data" divides the images, "model" the parameters; batch_size is per device for "data",
    the whole one for "model".
    """
    mesh = Mesh(np.array(devices), (axis,))
    total = batch_size * (len(devices) if axis == "data" else 1)
    size = sd_programs.Size(total, sd_models.RESOLUTIONS[model], num_steps)
    networks = sd_models.networks(model, dtype)
    params = {
        name: _parameters(module, dtype, mesh)
        for name, module in {
            "unet": networks.unet, "vae": networks.vae, **networks.encoders
        }.items()
    }  # fmt: skip
    run: Any = programs.build(networks, mesh)
    title = f"{model}, batch {total}, {axis} over {len(devices)}"
    encoders = {name: params[name] for name in networks.encoders}
    texts = _placed(_shapes(sd_programs.chunks(networks, size)), placement.rows(mesh))
    yield Program(f"{title}: text encoder", run.embed, (encoders, texts), {"clip_skip": 0}, None, 2)

    inputs = _inputs(networks, size, run, encoders, texts, mesh)
    no_noise = jax.ShapeDtypeStruct((0,), jnp.float32)  # it is an argument of its own
    rest = inputs._replace(noise=_placed(no_noise, NamedSharding(mesh, P())))
    name = f"{title}: UNet, {num_steps} steps (one counted)"
    yield Program(name, run.latents, (params["unet"], rest, inputs.noise), {}, None, num_steps)

    cut = sd_programs.decoder_cut(networks, size, placement.num_groups(mesh))
    yield Program(
        f"{title}: VAE decode", run.decode, (params["vae"], inputs.noise), {"cut": cut}, None,
        len(cut.origins),
    )  # fmt: skip


def _parameters(module: Any, dtype: Any, mesh: Mesh) -> Any:
    """The shapes of a module's parameters, sharded as in the pipeline."""
    sharding_of: Any = placement.of_parameters(mesh)

    def one(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        names = tuple(part.key for part in path)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding_of(names, leaf.shape))

    return jax.tree.map_with_path(one, loading.shapes(module))


def _inputs(
    networks: Any, size: sd_programs.Size, run: Any, encoders: Any, texts: Any, mesh: Mesh
) -> Any:
    """The shapes of the UNet's inputs, with guidance, sharded as in the pipeline."""
    text = jax.eval_shape(lambda p, c: run.embed(p, c, clip_skip=0), encoders, texts)
    pair = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0], 2, *x.shape[1:]), x.dtype), text
    )
    inputs = sd_programs.inputs(networks, size, text_encoding.Text(*pair))
    everywhere, divided = NamedSharding(mesh, P()), placement.rows(mesh)
    fields = {
        name: _placed(_shapes(value), everywhere if name in ("table", "from_image") else divided)
        for name, value in inputs._asdict().items()
        if value is not None
    }
    return inputs._replace(**fields)


def _shapes(tree: Any) -> Any:
    """The shapes and types of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _placed(tree: Any, sharding: Any) -> Any:
    """The shapes with this sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
