# SPDX-License-Identifier: MIT
"""Races: all candidates of a case take turns, and there is a row of figures for each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from benchmarks import diffusion, training
from benchmarks.peers import twins
from benchmarks.sd.sd_models import Model
from benchmarks.sd.sd_programs import Size
from jaxgen.measure import ceilings, turns

Row = dict[str, Any]


class Result(NamedTuple):
    """The rows of the candidates, and the reason for each peer that could not take part."""

    rows: list[Row]
    failures: dict[str, str]


def train(
    case: training.Case,
    ways: Sequence[training.Way],
    peer_names: Sequence[str],
    mesh: Mesh,
    limit: ceilings.Ceilings,
    *,
    scan_steps: int,
    num_turns: int,
    seconds: float,
) -> Result:
    """The race of all ways to train a case, and the peers.

    Raises ValueError if two ways do not train the same; a peer that does not is a failure.
    """
    started = {way.name: training.start(case, way, mesh, scan_steps) for way in ways}
    first = next(iter(started.values()))
    for name, way in started.items():
        twins.check(case, name, way.facts["parameters"], way.facts["losses"], first.facts)
    others, failures = _start_peers(peer_names, lambda name: twins.start(case, name, first))
    started |= others
    times = turns.take_turns({n: s.candidate for n, s in started.items()}, num_turns, seconds)

    common = {"kind": "training", **case._asdict()}
    per_image = {name: [t / s.images_per_step for t in times[name]] for name, s in started.items()}
    rows = [
        common | {"candidate": name} | s.facts
        | speed(times[name], s.images_per_step)
        | limits(s.facts, turns.spread(times[name]).median, limit, mesh.size)
        | {"faster_than": ratios(name, per_image, others)}
        for name, s in started.items()
    ]  # fmt: skip
    return Result(rows, failures)


def diffuse(
    model: Model,
    size: Size,
    dtype: str,
    peer_names: Sequence[str],
    limit: ceilings.Ceilings,
    *,
    num_turns: int,
    seconds: float,
) -> Result:
    """The races of the parts of a Stable Diffusion pipeline and of whole images, with the peers.

    A peer with other outputs is a failure.
    """
    parts, begin = diffusion.start(model, size)
    others, failures = _start_peers(
        peer_names, lambda name: twins.start_diffusion(model, size, dtype, name, parts, begin)
    )
    rows = []
    for part, ours in parts.items():
        started = {"jaxgen": ours} | {name: twin[part] for name, twin in others.items()}
        candidates = {name: s.candidate for name, s in started.items()}
        times = turns.take_turns(candidates, num_turns, seconds)
        common = {"kind": "diffusion", "model": model.name, "part": part, "dtype": dtype}
        rows += [
            common | size._asdict() | {"candidate": name} | s.facts
            | speed(times[name], size.batch_size)
            | limits(s.facts, turns.spread(times[name]).median, limit, 1)
            | {"faster_than": ratios(name, times, others)}
            for name, s in started.items()
        ]  # fmt: skip
    return Result(rows, failures)


def _start_peers(
    names: Sequence[str], start: Callable[[str], Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The peers that are ready, and why others are not: none of them may end the whole run."""
    ready, failures = {}, {}
    for name in names:
        try:
            ready[name] = start(name)
        except Exception as error:  # whatever another framework and its compilers raise
            failures[name] = f"{type(error).__name__}: {error}"
    return ready, failures


def speed(seconds: Sequence[float], images: int) -> Row:
    """The rates of steps with these seconds, one value for each turn, and so many images each."""
    return {
        "seconds_per_step": list(seconds),
        "steps_per_second": turns.spread([1 / s for s in seconds])._asdict(),
        "images_per_second": turns.spread([images / s for s in seconds])._asdict(),
    }


def limits(facts: Row, seconds: float, limit: ceilings.Ceilings, num_devices: int) -> Row:
    """The shares of the device's measured ceilings that a step of so many seconds uses."""
    shares = {}
    if "product_flops_per_step" in facts:
        most = limit.flops_per_second * num_devices
        shares["fraction_of_matmul"] = facts["product_flops_per_step"] / seconds / most
    if "compiler_bytes_per_step" in facts:
        per_second = facts["compiler_bytes_per_step"] / seconds
        shares["fraction_of_copy"] = per_second / limit.bytes_per_second
    return shares


def ratios(name: str, times: Mapping[str, Sequence[float]], others: Iterable[str]) -> Row:
    """The factors by which a candidate is faster than each of the others, per image."""
    return {
        other: turns.ratio(times[other], times[name])._asdict() for other in others if other != name
    }
