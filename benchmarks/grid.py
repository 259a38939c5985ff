# SPDX-License-Identifier: MIT
"""Which cases are raced and in which ways, unless the command line says.

Not the product of everything: the base point is batch 128 in float32, the other one a large batch,
on accelerators in bfloat16. Each has one step per dispatch and scanned ones; from the base point of
the dense networks the parallel modes and the number of models are varied one by one.
"""

from typing import Any, NamedTuple

import jax

from benchmarks.sd_models import MODELS, RESOLUTIONS
from benchmarks.sd_programs import Size
from benchmarks.training import DISPATCHES, NETWORKS, SCRIPTS, Case, Way
from jaxgen.train import parallel

BASE = (128, "float32")
DTYPES = ("float32", "bfloat16")
NUM_STEPS = {"sd15": 50, "sd21": 50, "sdxl": 20, "tiny": 4}


class Diffusion(NamedTuple):
    """A case of Stable Diffusion."""

    model: str
    dtype: str
    size: Size


def cases(config: Any) -> list[Case]:
    """All cases of training. Raises ValueError for names that do not exist."""
    _check("model", config.models, (*SCRIPTS, *MODELS))
    _check("network", config.networks, NETWORKS)
    _check("dtype", config.dtypes, DTYPES)
    points = _points(config)
    return [
        Case(model, network, *point)
        for point in points  # if time runs out, every model has its base point
        for model in config.models
        if model in SCRIPTS
        for network in config.networks
    ]


def ways(config: Any, case: Case) -> list[Way]:
    """The ways in which jaxgen trains a case. Raises ValueError for names that do not exist."""
    _check("dispatch", config.dispatch, DISPATCHES)
    _check("parallel", config.parallel, parallel.MODES)
    dispatches = config.dispatch or DISPATCHES
    modes, seeds = config.parallel or ("jit",), config.num_models or (1,)
    found = [Way(d, m, s) for d in dispatches for m in modes for s in seeds]

    # the others scale alike, and convolutions take long to compile
    varied = (case.batch_size, case.dtype, case.network) == (*BASE, "dense")
    if varied and (not config.quick or case.model == "vae"):
        if config.parallel is None:
            found += [Way(dispatches[-1], mode, 1) for mode in ("pmap", "shard_map")]
        if config.num_models is None:
            many = 8 if jax.default_backend() == "cpu" else 64
            found += [Way(dispatches[-1], "jit", many)]
    return found


def scan_steps(config: Any, case: Case) -> int:
    """Steps per dispatch: many where they are short, few where 50 of them would take long."""
    if config.scan_steps is not None:
        return config.scan_steps
    return 10 if case.network == "conv" and jax.default_backend() == "cpu" else 50


def diffusion_cases(config: Any) -> list[Diffusion]:
    """All cases of Stable Diffusion; on CPU small pictures and few steps by default."""
    on_cpu = jax.default_backend() == "cpu"
    sizes = config.batch_sizes or ((1,) if on_cpu or config.quick else (1, 16))
    found = []
    for model in [name for name in config.models if name in MODELS]:
        own = RESOLUTIONS[model]
        for dtype in config.dtypes or (("float32",) if on_cpu else ("bfloat16",)):
            for resolution in config.resolutions or ((min(own, 128),) if on_cpu else (own,)):
                default = 4 if on_cpu else NUM_STEPS[model]
                steps = default if config.num_steps is None else config.num_steps
                found += [Diffusion(model, dtype, Size(b, resolution, steps)) for b in sizes]
    return found


def _points(config: Any) -> list[tuple[int, str]]:
    """Batch sizes and types."""
    on_cpu = jax.default_backend() == "cpu"
    # a CPU has no faster arithmetic for bfloat16
    default = [BASE, (512, "float32") if on_cpu else (4096, "bfloat16")]
    default = default[:1] if config.quick else default
    if config.batch_sizes is None and config.dtypes is None:
        return default
    sizes, dtypes = config.batch_sizes or (BASE[0],), config.dtypes or (BASE[1],)
    return [(size, dtype) for size in sizes for dtype in dtypes]


def _check(what: str, asked: Any, known: Any) -> None:
    for name in asked or ():
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; use {', '.join(known)}")
