# SPDX-License-Identifier: MIT
"""The programs that are compiled for devices that are not there."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from benchmarks import training
from benchmarks.sd import sd_models, sd_programs
from jaxgen.nn import attention, quantized
from jaxgen.runs import experiment, plan
from jaxgen.stable_diffusion import loading, placement, programs, text_encoding
from jaxgen.train import parallel, step
from jaxgen.types import DATA_AXIS

Row = dict[str, Any]
SCANNED_STEPS = 50


class Program(NamedTuple):
    """A program to compile by fn.lower(*args, **static)."""

    name: str
    fn: Any
    args: tuple
    static: dict[str, Any]
    images: int | None  # of one step, over all devices; None for a part of a step
    rounds: int = 1  # calls, or rounds of its loop, that whole images take
    loops: bool = False  # whether a round of its main loop is counted, a step; else all of it


def whole_images(parts: Sequence[Row], images: int, summed: Sequence[str]) -> Row | None:
    """The row of whole images, the sum of those of `diffusion_programs`; None if one failed.

    summed: the fields to add up, each as often as the part has rounds. The UNet's program works
    before its loop too, which is counted at every step if it is in these fields.
    """
    if any(row["error"] for row in parts):
        return None
    name = parts[0]["program"].rsplit(":", 1)[0]
    row = parts[0] | {"program": f"{name}: images, from the sum", "images_per_step": images}
    for field in summed:
        row[field] = sum(part["rounds"] * part[field] for part in parts)
    row["memory_bytes"] = max(part["memory_bytes"] for part in parts)
    row["compile_s"] = sum(part["compile_s"] for part in parts)
    kinds: Counter[str] = Counter()
    for part in parts:
        kinds.update({kind: part["rounds"] * count for kind, count in part["collectives"].items()})
    return row | {"collectives": dict(kinds), "rounds": 1}


# --- training ----------------------------------------------------------------------------------


def training_programs(
    models: Sequence[str],
    devices: list[Any],
    batch_size: int,
    dtype: str,
    dispatch: str = "scan",
) -> Iterator[Program]:
    """The steps of every model and network in every mode; batch_size is per device.

    dispatch: "step" is one step a call, "scan" are `SCANNED_STEPS`.
    """
    mesh = Mesh(np.array(devices), (DATA_AXIS,))
    for model in models:
        for network in training.NETWORKS:
            case = training.Case(model, network, batch_size * len(devices), dtype)
            for how in parallel.MODES:
                yield _training_program(case, how, mesh, dispatch)


def _training_program(case: training.Case, how: str, mesh: Mesh, dispatch: str) -> Program:
    config = training.config_of(case)
    system = plan.checked_system(config, training.SCRIPTS[case.model].build, training.examples())
    run = parallel.parallelize(step.scan_steps(system.step), mesh, how, parallel.SCANNED)
    state = jax.eval_shape(system.init, experiment.init_keys(config.run))
    data = jax.ShapeDtypeStruct((training.NUM_IMAGES, *training.SHAPE), jnp.uint8)
    steps = SCANNED_STEPS if dispatch == "scan" else 1
    indices = jax.ShapeDtypeStruct((steps, case.batch_size), jnp.int32)
    everywhere = NamedSharding(mesh, P())
    args = (
        _placed(state, everywhere),
        (
            {"image": _placed(data, everywhere)},
            _placed(indices, NamedSharding(mesh, P(None, DATA_AXIS))),
        ),
        _placed(jax.eval_shape(lambda: experiment.train_keys(config.run)), everywhere),
    )
    name = f"{case.model} {case.network}, batch {case.batch_size}, {case.dtype}, {dispatch} {how}"
    fn = jax.jit(run, donate_argnums=0)
    return Program(name, fn, args, {}, case.batch_size, loops=dispatch == "scan")


# --- attention ---------------------------------------------------------------------------------

# images and texts, queries, keys, heads, and features of a head: of SD 1.5, SD 2.1, XL, the decoder
ATTENTION = (
    (2, 4096, 4096, 8, 40), (2, 1024, 1024, 8, 80), (2, 256, 256, 8, 160), (2, 4096, 77, 8, 40),
    (2, 9216, 9216, 5, 64), (2, 2304, 2304, 10, 64), (2, 576, 576, 20, 64),
    (2, 4096, 4096, 10, 64), (2, 1024, 1024, 20, 64), (2, 1024, 77, 20, 64),
    (1, 4096, 4096, 1, 512),
)  # fmt: skip


def attention_programs(device: Any) -> Iterator[Program]:
    """Attention by XLA, with all scores in memory, and by the kernel for TPUs; in bfloat16."""
    where = SingleDeviceSharding(device)
    for b, t, s, heads, d in ATTENTION:
        q, keys = (
            jax.ShapeDtypeStruct((b, n, heads, d), jnp.bfloat16, sharding=where) for n in (t, s)
        )
        for name in ("xla", "pallas"):
            fn = jax.jit(partial(attention.attention, implementation=name))
            title = f"attention [{b}, {t}, {heads}, {d}] to {s} keys, {name}"
            yield Program(title, fn, (q, keys, keys), {}, None)


# --- Stable Diffusion --------------------------------------------------------------------------


def diffusion_programs(
    model: str,
    devices: list[Any],
    axis: str,
    batch_size: int,
    num_steps: int,
    dtype: Any,
    kernel_layout: str | None = None,
    quantize: str | None = None,
) -> Iterator[Program]:
    """The programs of the pipeline: text encoders, all steps of the UNet in a loop, decoder.

    axis: "data" divides the images, "model" the parameters; batch_size is per device for "data",
    the whole one for "model". kernel_layout and quantize: as in `StableDiffusion`.
    """
    mesh = Mesh(np.array(devices), (axis,))
    total = batch_size * (len(devices) if axis == "data" else 1)
    size = sd_programs.Size(total, sd_models.RESOLUTIONS[model], num_steps)
    networks = sd_models.networks(model, dtype)
    params = {
        name: _parameters(name, module, dtype, mesh, kernel_layout, quantize)
        for name, module in {
            "unet": networks.unet, "vae": networks.vae, **networks.encoders
        }.items()
    }  # fmt: skip
    run: Any = programs.build(networks, mesh)
    named = f"{model} in {quantize}" if quantize else model
    title = f"{named}, batch {total}, {axis} over {len(devices)}"
    encoders = {name: params[name] for name in networks.encoders}
    texts = _placed(_shapes(sd_programs.chunks(networks, size)), placement.rows(mesh))
    yield Program(f"{title}: text encoder", run.embed, (encoders, texts), {"clip_skip": 0}, None, 2)

    inputs = _inputs(networks, size, run, encoders, texts, mesh)
    no_noise = jax.ShapeDtypeStruct((0,), jnp.float32)  # it is an argument of its own
    rest = inputs._replace(noise=_placed(no_noise, NamedSharding(mesh, P())))
    name = f"{title}: UNet, {num_steps} steps (one counted)"
    args = (params["unet"], rest, inputs.noise)
    yield Program(name, run.latents, args, {}, None, num_steps, loops=num_steps > 1)

    cut = sd_programs.decoder_cut(networks, size, placement.num_groups(mesh))
    yield Program(
        f"{title}: VAE decode", run.decode, (params["vae"], inputs.noise), {"cut": cut}, None,
        len(cut.origins),
    )  # fmt: skip


def _parameters(
    component: str,
    module: Any,
    dtype: Any,
    mesh: Mesh,
    kernel_layout: str | None,
    quantize: str | None,
) -> Any:
    """The shapes of a module's parameters, which lie as in the pipeline."""
    heads = loading.attention_heads(module)
    sharding_of: Any = placement.of_parameters(mesh, heads, kernel_layout)
    kind = None if component == "vae" else quantize

    def placed(path: tuple[str, ...], shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding_of(path, shape))

    leaves: dict[tuple[str, ...], Any] = {}
    shapes: dict[tuple[str, ...], Any] = flatten_dict(loading.shapes(module))
    for path, leaf in shapes.items():
        scale = kind and loading.name_of_scale(component, kind, path, leaf.shape)
        stored = quantized.KINDS[quantized.stored_kind(kind)].dtype if kind and scale else dtype
        leaves[path] = placed(path, leaf.shape, stored)
        if scale:
            scale_path = (*path[:-1], scale)
            leaves[scale_path] = placed(scale_path, leaf.shape[-1:], jnp.float32)
    return unflatten_dict(leaves)


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
