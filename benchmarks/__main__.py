# SPDX-License-Identifier: MIT
"""Measures speed: training steps and Stable Diffusion, beside PyTorch and the device's own limit.

    python -m benchmarks --quick                      # two minutes on two cores
    python -m benchmarks                              # AE, VAE and GAN in full
    python -m benchmarks --models vae --networks dense --batch-sizes 128 4096
    python -m benchmarks --models sd15 --resolutions 512 --dtypes bfloat16
    python -m benchmarks --models sd15 --checkpoint path/to/model

All candidates take turns. A peer (extra: oracle) starts from jaxgen's weights, and is reported only
if it has as many parameters and the same losses before and after an update.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

# JAX takes most of a GPU's memory when it starts; here PyTorch needs its own
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import rich.console
import tyro
from jax.sharding import Mesh

from benchmarks import grid, options, race, result_file, training
from benchmarks.options import Config
from benchmarks.peers import twins
from benchmarks.sd import sd_models, sd_programs
from benchmarks.tables import show
from jaxgen import files, script
from jaxgen.cpu import tune
from jaxgen.measure import ceilings, environment
from jaxgen.stable_diffusion import loading, placement
from jaxgen.train import parallel
from jaxgen.weights import hub

Row = dict[str, Any]
GPU_MINUTES = 9.0  # a case takes up to one more, so that a run without flags fits in ten


class Job(NamedTuple):
    """One case and the function that measures it."""

    name: str
    dtype: str
    run: Callable[[ceilings.Ceilings], race.Result]


def main() -> None:
    config = tyro.cli(Config, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    if config.quick:
        timing = config.timing
        timing = replace(timing, turns=min(timing.turns, 3), seconds=min(timing.seconds, 0.3))
        config = replace(config, timing=timing)
    tune.tune_cpu()  # as the training scripts do; its memory settings help the peers as well
    mesh = parallel.data_mesh(config.training.num_devices)
    options.check(config)
    for ending in (".json", ".png"):
        files.check_writable(Path(f"{config.output}{ending}"))
    jobs = [*training_jobs(config, mesh), *diffusion_jobs(config)]

    # a file or a pipe has no width of its own
    console = rich.console.Console(width=None if sys.stdout.isatty() else 140)
    record = environment.record()
    console.print(f"{record['device']}, {mesh.size} device(s), jax {jax.__version__}")
    if record["platform"] == "cpu" and record["load_average"] > 0.5 * record["cores"]:
        console.print(f"The machine is busy (load {record['load_average']}): do not trust this run")
    for line in absent_peers(config, mesh.size):
        console.print(line, markup=False)
    limits = device_limits(console, {job.dtype for job in jobs})
    rows, failures = [], []
    for job, result in races(config, jobs, limits, console):
        for name, part in show.groups(result.rows).items():
            console.print(show.table(name, part))
        for name, reason in result.failures.items():
            failures.append({"case": job.name, "candidate": name, "error": reason})
            console.print(f"{job.name}: {name} could not take part: {reason}", markup=False)
        rows += result.rows
        write(config, record, limits, rows, failures)
    if rows:
        show.chart(rows, _subtitle(record), Path(f"{config.output}.png"))
        console.print(f"{len(rows)} rows: {config.output}.json, {config.output}.png")
    if failures:
        sys.exit(1)


def training_jobs(config: Config, mesh: Mesh) -> list[Job]:
    """The jobs of training, all checked. Raises ValueError for a case that cannot run."""
    cases = grid.cases(config)
    for case in cases:
        training.check(case, mesh)
    names = peer_names(config, mesh.size, racing=bool(cases))

    def job(case: training.Case, ways: list[training.Way]) -> Job:
        def run(limit: ceilings.Ceilings) -> race.Result:
            return race.train(
                case, ways, names, mesh, limit, scan_steps=grid.scan_steps(config, case),
                num_turns=config.timing.turns, seconds=config.timing.seconds,
            )  # fmt: skip

        return Job(" ".join(map(str, case)), case.dtype, run)

    return [job(case, grid.ways(config, case)) for case in cases]


def diffusion_jobs(config: Config) -> list[Job]:
    """The jobs of Stable Diffusion on one device, all checked.

    Raises ValueError for a case that cannot run.
    """
    cases = grid.diffusion_cases(config)
    path = config.stable_diffusion.checkpoint
    if path is not None and len({case.model for case in cases}) != 1:
        raise ValueError("--checkpoint needs one kind of model, as --models sd15")
    checkpoint = None if path is None else hub.open_checkpoint(path)
    for case in cases:
        dtype = jnp.dtype(case.dtype)
        if checkpoint is None:
            networks = sd_models.networks(case.model, dtype)
        else:
            networks = loading.networks(checkpoint, dtype)
        sd_programs.check(networks, case.size)
    placement.check_kernel_layout(config.stable_diffusion.kernel_layout)
    names = peer_names(config, 1, racing=bool(cases), diffusion=True)

    def job(case: grid.Diffusion) -> Job:
        def run(limit: ceilings.Ceilings) -> race.Result:
            dtype = jnp.dtype(case.dtype)
            if checkpoint is None:
                model = sd_models.random(case.model, dtype)
            else:
                model = sd_models.stored(Path(str(path)).name, checkpoint, dtype)
            model = sd_models.laid_out(model, config.stable_diffusion.kernel_layout)
            return race.diffuse(
                model, case.size, case.dtype, names, limit, num_turns=config.timing.turns,
                seconds=config.timing.seconds,
            )  # fmt: skip

        return Job(" ".join(map(str, (case.model, case.dtype, *case.size))), case.dtype, run)

    return [job(case) for case in cases]


def peer_names(
    config: Config, num_devices: int, *, racing: bool, diffusion: bool = False
) -> list[str]:
    """The peers to race with; none if there are no such cases.

    Raises ValueError for peers that cannot run with these options, ImportError for absent ones.
    """
    if not racing or config.no_peers or (num_devices > 1 and config.peers is None):
        return []
    if num_devices > 1:
        raise ValueError(
            f"peers run on one device and jaxgen on {num_devices}; use --num-devices 1"
        )
    names = config.peers
    if names is not None and not diffusion and set(config.models) & set(sd_models.MODELS):
        names = tuple(name for name in names if name != twins.FLAX)  # it is for Stable Diffusion
    return twins.choose(names, config.quick, diffusion)


def absent_peers(config: Config, num_devices: int) -> list[str]:
    """Lines that say which peers a run without --peers lacks, and why."""
    if config.peers is not None or config.no_peers:
        return []
    if num_devices > 1:
        return [f"no peers with {num_devices} devices; use --num-devices 1 to race with them"]
    return [f"without {name}: {why}" for name, why in twins.absent(config.quick).items()]


def races(
    config: Config,
    jobs: list[Job],
    limits: dict[str, ceilings.Ceilings],
    console: rich.console.Console,
) -> Iterator[tuple[Job, race.Result]]:
    """The result of one job after the other, until the time is over."""
    default = GPU_MINUTES if jax.default_backend() == "gpu" else float("inf")
    minutes = default if config.timing.minutes is None else config.timing.minutes
    began = time.monotonic()
    for i, job in enumerate(jobs):
        if time.monotonic() - began > 60 * minutes:
            rest = "; ".join(job.name for job in jobs[i:])
            console.print(f"{minutes:g} minutes are over (--minutes). Not measured: {rest}")
            return
        try:
            result = job.run(limits[job.dtype])
        except (ValueError, RuntimeError) as error:  # such as a device without enough memory
            result = race.Result([], {"jaxgen": f"{type(error).__name__}: {error}"})
        yield job, result
        jax.clear_caches()
        twins.release()


def device_limits(console: rich.console.Console, dtypes: set[str]) -> dict[str, ceilings.Ceilings]:
    """The device's measured ceilings by type of the products, also printed."""
    limits = {dtype: ceilings.measure(jnp.dtype(dtype)) for dtype in sorted(dtypes)}
    for dtype, (flops, copied) in limits.items():
        console.print(f"{dtype}: {flops / 1e9:,.0f} GFLOP/s matmul, {copied / 1e9:,.1f} GB/s copy")
    return limits


def write(
    config: Config,
    record: Row,
    limits: dict[str, ceilings.Ceilings],
    rows: list[Row],
    failures: list[Row],
) -> None:
    """Writes all results so far as JSON."""
    content = {
        "environment": record,
        "config": asdict(config),
        "ceilings": {dtype: limit._asdict() for dtype, limit in limits.items()},
        "rows": rows,
        "failures": failures,
    }
    result_file.write(Path(f"{config.output}.json"), content)


def _subtitle(record: Row) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in record["versions"].items() if n in ("jax", "torch"))
    return f"{record['device']}; {versions}; {record['date'][:10]}"


if __name__ == "__main__":
    script.main(main)
