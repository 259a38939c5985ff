# SPDX-License-Identifier: MIT
"""Estimates for TPUs: programs compiled for a TPU that is not there, and their costs."""

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax

from benchmarks.compiling.programs import Program, Row
from jaxgen.measure import cost

RATES = ("arithmetic_s", "memory_s", "network_s")
SUMMED = ("flops", "bytes", "collective_bytes", "seconds_estimated", *RATES)  # of whole images


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
