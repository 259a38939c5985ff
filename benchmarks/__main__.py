# SPDX-License-Identifier: MIT
"""Measures speed: training steps and Stable Diffusion, beside PyTorch and the device's own limit.

python -m benchmarks --quick                      # two minutes on two cores
python -m benchmarks                              # AE, VAE and GAN in full
python -m benchmarks --models vae --networks dense --batch-sizes 128 4096
python -m benchmarks --models sd15 --resolutions 512 --dtypes bfloat16
python -m benchmarks --models sd15 --checkpoint path/to/model

Candidates take turns. Peers (extra: oracle) start from the same weights, and must have as many
parameters and find the same losses, before and after an update, or nothing is reported.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

# JAX takes most of a GPU's memory when it starts; here PyTorch needs its own
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import rich.console
import tyro
from jax.sharding import Mesh

from benchmarks import grid, race, sd_models, sd_programs, show, training
from benchmarks.peers import twins
from jaxgen import script
from jaxgen.cpu import tune
from jaxgen.measure import ceilings, environment
from jaxgen.stable_diffusion import loading
from jaxgen.train import parallel
from jaxgen.weights import hub

Row = dict[str, Any]
GPU_MINUTES = 9.0  # and a case takes up to one: a default run fits in ten


@dataclass(frozen=True)
class Config:
    """Options of the benchmark; what is not given is chosen for the backend."""

    quick: bool = False  # few cases, few turns: two minutes on two CPU cores
    models: tuple[str, ...] = ("autoencoder", "vae", "gan")  # and sd15, sd21, sdxl
    networks: tuple[str, ...] = ("dense", "conv")  # of AE, VAE and GAN
    batch_sizes: tuple[int, ...] | None = None  # images per step, over all devices
    dtypes: tuple[str, ...] | None = None  # float32, bfloat16
    dispatch: tuple[str, ...] | None = None  # step (one per dispatch), scan
    parallel: tuple[str, ...] | None = None  # jit, pmap, shard_map
    num_models: tuple[int, ...] | None = None  # trained at once by vmap
    num_devices: int | None = None  # of training; all by default
    scan_steps: int | None = None  # per dispatch of scan: 50, or 10 for conv networks on CPU
    resolutions: tuple[int, ...] | None = None  # Stable Diffusion: pixels of a side
    num_steps: int | None = None  # Stable Diffusion: sampling steps of an image
    checkpoint: str | None = None  # Stable Diffusion: a real model instead of random weights
    # pytorch, pytorch_compile, pytorch_graphs, flax_diffusers (Stable Diffusion); all installed
    peers: tuple[str, ...] | None = None
    no_peers: bool = False  # race jaxgen alone
    turns: int = 5  # of each candidate
    seconds: float = 0.5  # a turn takes about so long
    minutes: float | None = None  # begin no further case after this long; 9 on a GPU
    output: str = "runs/benchmark"  # results go to this path with .json and .png


class Job(NamedTuple):
    """One case, to be run when its turn comes."""

    name: str
    dtype: str
    run: Callable[[ceilings.Ceilings], race.Result]


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if config.quick:
        config = replace(config, turns=min(config.turns, 3), seconds=min(config.seconds, 0.3))
    tune.tune_cpu()  # as the training scripts do; the allocator's part serves the peers as well
    mesh = parallel.data_mesh(config.num_devices)
    _check(config)
    jobs = [*training_jobs(config, mesh), *diffusion_jobs(config)]

    # a file or a pipe has no width of its own
    console = rich.console.Console(width=None if sys.stdout.isatty() else 140)
    record = environment.record()
    console.print(f"{record['device']}, {mesh.size} device(s), jax {jax.__version__}")
    if record["platform"] == "cpu" and record["load_average"] > 0.5 * record["cores"]:
        console.print(f"The machine is busy (load {record['load_average']}): do not trust this run")
    for line in without(config, mesh.size):
        console.print(line, markup=False)
    limits = device_limits(console, {job.dtype for job in jobs})
    rows, failures = [], []
    for job, found in races(config, jobs, limits, console):
        for name, part in show.groups(found.rows).items():
            console.print(show.table(name, part))
        for name, reason in found.failures.items():
            failures.append({"case": job.name, "candidate": name, "error": reason})
            console.print(f"{job.name}: {name} could not take part: {reason}", markup=False)
        rows += found.rows
        write(config, record, limits, rows, failures)
    if rows:
        show.chart(rows, _subtitle(record), Path(f"{config.output}.png"))
        console.print(f"{len(rows)} rows: {config.output}.json, {config.output}.png")
    if failures:
        sys.exit(1)


def training_jobs(config: Config, mesh: Mesh) -> list[Job]:
    """Training, all checked. Raises ValueError for what cannot be run."""
    cases = grid.cases(config)
    for case in cases:
        training.check(case, mesh)
    names = peer_names(config, mesh.size, racing=bool(cases))

    def job(case: training.Case, ways: list[training.Way]) -> Job:
        def run(limit: ceilings.Ceilings) -> race.Result:
            return race.train(
                case, ways, names, mesh, limit, scan_steps=grid.scan_steps(config, case),
                num_turns=config.turns, seconds=config.seconds,
            )  # fmt: skip

        return Job(" ".join(map(str, case)), case.dtype, run)

    return [job(case, grid.ways(config, case)) for case in cases]


def diffusion_jobs(config: Config) -> list[Job]:
    """Stable Diffusion on one device, all checked. Raises ValueError for what cannot be run."""
    cases = grid.diffusion_cases(config)
    if config.checkpoint is not None and len({case.model for case in cases}) != 1:
        raise ValueError("--checkpoint needs one kind of model, as --models sd15")
    path = config.checkpoint
    checkpoint = None if path is None else hub.open_checkpoint(path)
    for case in cases:
        kind = jnp.dtype(case.dtype)
        found = sd_models.networks(case.model, kind)
        if checkpoint is not None:
            found = loading.networks(checkpoint, kind)
        sd_programs.check(found, case.size)
    names = peer_names(config, 1, racing=bool(cases), diffusion=True)

    def job(case: grid.Diffusion) -> Job:
        def run(limit: ceilings.Ceilings) -> race.Result:
            kind = jnp.dtype(case.dtype)
            if checkpoint is None:
                model = sd_models.random(case.model, kind)
            else:
                model = sd_models.stored(Path(str(path)).name, checkpoint, kind)
            return race.diffuse(
                model, case.size, case.dtype, names, limit, num_turns=config.turns,
                seconds=config.seconds,
            )  # fmt: skip

        return Job(" ".join(map(str, (case.model, case.dtype, *case.size))), case.dtype, run)

    return [job(case) for case in cases]


def peer_names(
    config: Config, num_devices: int, *, racing: bool, diffusion: bool = False
) -> list[str]:
    """The peers to race; none if nothing of the kind is raced.

    Raises ValueError for those that cannot run beside this, ImportError for absent ones.
    """
    if not racing or config.no_peers or (num_devices > 1 and config.peers is None):
        return []
    if num_devices > 1:
        raise ValueError(
            f"peers run on one device and jaxgen on {num_devices}; use --num-devices 1"
        )
    asked = config.peers
    if asked is not None and not diffusion and set(config.models) & set(sd_models.MODELS):
        asked = tuple(name for name in asked if name != twins.FLAX)  # it is for the others
    return twins.chosen(asked, config.quick, diffusion)


def without(config: Config, num_devices: int) -> list[str]:
    """Lines that say which peers a run goes without that asked for none, and why."""
    if config.peers is not None or config.no_peers:
        return []
    if num_devices > 1:
        return [f"no peers beside {num_devices} devices; --num-devices 1 races them"]
    return [f"without {name}: {why}" for name, why in twins.absent(config.quick).items()]


def races(
    config: Config,
    jobs: list[Job],
    limits: dict[str, ceilings.Ceilings],
    console: rich.console.Console,
) -> Iterator[tuple[Job, race.Result]]:
    """What comes of one case after the other, for as long as there is time."""
    default = GPU_MINUTES if jax.default_backend() == "gpu" else float("inf")
    minutes = default if config.minutes is None else config.minutes
    began = time.monotonic()
    for i, job in enumerate(jobs):
        if time.monotonic() - began > 60 * minutes:
            left = "; ".join(job.name for job in jobs[i:])
            console.print(f"{minutes:g} minutes are over (--minutes). Left out: {left}")
            return
        try:
            result = job.run(limits[job.dtype])
        except (ValueError, RuntimeError) as error:  # such as a device without enough memory
            result = race.Result([], {"jaxgen": f"{type(error).__name__}: {error}"})
        yield job, result
        jax.clear_caches()
        twins.release()


def device_limits(console: rich.console.Console, dtypes: set[str]) -> dict[str, ceilings.Ceilings]:
    """The device's measured ceilings by type of the products."""
    found = {}
    for dtype in sorted(dtypes):
        found[dtype] = ceilings.measure(jnp.dtype(dtype))
        flops, copied = found[dtype]
        console.print(f"{dtype}: {flops / 1e9:,.0f} GFLOP/s matmul, {copied / 1e9:,.1f} GB/s copy")
    return found


def _check(config: Config) -> None:
    for name in ("turns", "scan_steps", "num_steps", "num_models", "batch_sizes"):
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if any(v is not None and v < 1 for v in values):
            raise ValueError(f"--{name.replace('_', '-')} is {_said(value)}; use 1 or more")
    for name in ("seconds", "minutes"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; use a positive time")
    if not config.models:
        raise ValueError("--models names nothing; use autoencoder, vae, gan, sd15, sd21 or sdxl")


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def write(
    config: Config,
    record: Row,
    limits: dict[str, ceilings.Ceilings],
    rows: list[Row],
    failures: list[Row],
) -> None:
    """All that is known so far, as JSON."""
    path = Path(f"{config.output}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "environment": record,
        "config": asdict(config),
        "ceilings": {dtype: limit._asdict() for dtype, limit in limits.items()},
        "rows": rows,
        "failures": failures,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def _subtitle(record: Row) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in record["versions"].items() if n in ("jax", "torch"))
    return f"{record['device']}; {versions}; {record['date'][:10]}"


if __name__ == "__main__":
    script.main(main)
