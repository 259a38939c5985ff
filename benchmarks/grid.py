# SPDX-License-Identifier: MIT
"""The cases that are raced and the ways in which jaxgen runs them, if the command line is silent.

Not all combinations: there are two points, batch 128 in float32 (the base point) and a large batch,
on accelerators in bfloat16. Each is run step by step and scanned; at the base point of the dense
networks the parallel mode and the number of models vary one by one.
"""

from typing import Any, NamedTuple

import jax

from benchmarks.options import Config
from benchmarks.sd.sd_models import MODELS, RESOLUTIONS
from benchmarks.sd.sd_programs import Size
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


def cases(config: Config) -> list[Case]:
    """The cases of training. Raises ValueError for names that do not exist."""
    _check("model", config.models, (*SCRIPTS, *MODELS))
    _check("network", config.networks, NETWORKS)
    _check("dtype", config.dtypes, DTYPES)
    points = _points(config)
    return [
        Case(model, network, *point)
        for point in points  # the outer loop: if time runs out, every model has its base point
        for model in config.models
        if model in SCRIPTS
        for network in config.networks
    ]


def ways(config: Config, case: Case) -> list[Way]:
    """The ways in which jaxgen trains a case. Raises ValueError for names that do not exist."""
    options = config.training
    _check("dispatch", options.dispatch, DISPATCHES)
    _check("parallel", options.parallel, parallel.MODES)
    dispatches = options.dispatch or DISPATCHES
    modes, seeds = options.parallel or ("jit",), options.num_models or (1,)
    ways = [Way(d, m, s) for d in dispatches for m in modes for s in seeds]

    # one point is enough: the others scale alike, and convolutions take long to compile
    varied = (case.batch_size, case.dtype, case.network) == (*BASE, "dense")
    if varied and (not config.quick or case.model == "vae"):
        if options.parallel is None:
            ways += [Way(dispatches[-1], mode, 1) for mode in ("pmap", "shard_map")]
        if options.num_models is None:
            many = 8 if jax.default_backend() == "cpu" else 64
            ways += [Way(dispatches[-1], "jit", many)]
    return ways


def scan_steps(config: Config, case: Case) -> int:
    """The steps per dispatch of scan: 50, but few where 50 would take long."""
    if config.training.scan_steps is not None:
        return config.training.scan_steps
    return 10 if case.network == "conv" and jax.default_backend() == "cpu" else 50


def diffusion_cases(config: Config) -> list[Diffusion]:
    """The cases of Stable Diffusion; on CPU, by default, small pictures and few steps."""
    on_cpu, options = jax.default_backend() == "cpu", config.stable_diffusion
    sizes = config.batch_sizes or ((1,) if on_cpu or config.quick else (1, 16))
    cases = []
    for model in [name for name in config.models if name in MODELS]:
        own = RESOLUTIONS[model]
        for dtype in config.dtypes or (("float32",) if on_cpu else ("bfloat16",)):
            for resolution in options.resolutions or ((min(own, 128),) if on_cpu else (own,)):
                default = 4 if on_cpu else NUM_STEPS[model]
                steps = default if options.num_steps is None else options.num_steps
                cases += [Diffusion(model, dtype, Size(b, resolution, steps)) for b in sizes]
    return cases


def _points(config: Config) -> list[tuple[int, str]]:
    """The batch sizes and dtypes to measure."""
    on_cpu = jax.default_backend() == "cpu"
    # a CPU has no faster arithmetic for bfloat16
    default = [BASE, (512, "float32") if on_cpu else (4096, "bfloat16")]
    default = default[:1] if config.quick else default
    if config.batch_sizes is None and config.dtypes is None:
        return default
    sizes, dtypes = config.batch_sizes or (BASE[0],), config.dtypes or (BASE[1],)
    return [(size, dtype) for size in sizes for dtype in dtypes]


def _check(what: str, names: Any, known: Any) -> None:
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; use {', '.join(known)}")
