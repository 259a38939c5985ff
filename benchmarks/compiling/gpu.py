# SPDX-License-Identifier: MIT
"""Programs compiled for a GPU that is not there, and what the compiler made of them."""

import importlib.util
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks.compiling.programs import Program, Row
from jaxgen.measure import cost, hlo, thunks
from jaxgen.nn import attention

TARGETS = {"h100": (9, 0), "a100": (8, 0)}  # CUDA compute capability
SUMMED = ("kernels", "launches", "graphs", "bytes", "collective_bytes")  # of whole images
_FOLDER = Path(__file__).parent / "targets"
_WHEELS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


def devices(target: str, count: int) -> list[Any]:
    """So many devices of a target in one host.

    Raises ValueError for an unknown target, ImportError without XLA's CUDA part.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; use one of {', '.join(TARGETS)}")
    if not any(importlib.util.find_spec(name) for name in _WHEELS):
        raise ImportError('XLA\'s CUDA compiler is not installed; pip install -e ".[cuda13]"')
    from jax.experimental import topologies

    description = topologies.get_topology_desc(
        platform="cuda", target_config=_description(target), topology=f"1x1x{count}"
    )
    return list(description.devices)


def memory_bytes(target: str) -> int:
    """The memory of one device."""
    size = re.search(r"device_memory_size: (\d+)", _description(target))
    if size is None:
        raise ValueError(f"{_FOLDER / target}.txtpb does not state device_memory_size")
    return int(size[1])


@contextmanager
def as_on_gpu(target: str) -> Iterator[None]:
    """Makes networks and jax choose as on the target: they ask the local device, here the CPU."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    capability = TARGETS[target]

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    with ExitStack() as stack:
        for where, name, answer in (
            (jax, "default_backend", lambda: "gpu"),
            (attention, "current_backend", lambda: ("gpu", capability)),
            (cudnn, "check_compute_capability", lambda text: capability >= number(text)),
            (cudnn, "is_cuda_compute_capability_equal", lambda text: capability == number(text)),
        ):
            stack.enter_context(mock.patch.object(where, name, answer))
        yield


def compiled_row(program: Program, target: str, num_devices: int) -> Row:
    """The row of one program; its "error" is set if the program does not compile or fit.

    Of a program that steps in a loop, kernels, launches, graphs and bytes are those of one round.
    Of any other loop, such as attention in blocks, one round is counted too.
    """
    row: Row = {"kind": "gpu", "target": target, "program": program.name, "error": None}
    row |= {"num_devices": num_devices, "images_per_step": program.images}
    row |= {"rounds": program.rounds, "device_memory_bytes": memory_bytes(target)}
    began = time.perf_counter()
    try:
        with as_on_gpu(target), tempfile.TemporaryDirectory() as folder:
            lowered = program.fn.lower(*program.args, **program.static)
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
            row["compile_s"] = time.perf_counter() - began
            row |= _launches(Path(folder), program.loops) | _facts(compiled, program.loops)
    except Exception as error:  # whatever the compiler may raise is this row's result
        return row | {"error": (str(error).strip() or repr(error)).splitlines()[0][:300]}
    if row["memory_bytes"] > row["device_memory_bytes"]:
        needed, there = row["memory_bytes"] / 1e9, row["device_memory_bytes"] / 1e9
        row["error"] = f"needs {needed:.1f} GB of {there:.0f} GB"
    return row


def _description(target: str) -> str:
    return (_FOLDER / f"{target}.txtpb").read_text()


def _launches(folder: Path, loops: bool) -> Row:
    lists = list(folder.glob(thunks.FILES))
    if len(lists) != 1:
        raise ValueError(f"XLA wrote {len(lists)} lists of thunks for one program, not one")
    return thunks.launches(thunks.parse(lists[0].read_text()), loops)._asdict()


def _facts(compiled: Any, loops: bool) -> Row:
    """What the text of the compiled program and its memory say."""
    text = compiled.as_text()
    program = hlo.parse(text)
    loop = sum(hlo.traffic(program, name) for name in hlo.main_loop(program)) if loops else 0
    everything = hlo.traffic(program, program.entry)
    memory, (kinds, moved) = compiled.memory_analysis(), cost.collectives(text)
    wide_convolutions, wide_products = hlo.wide(program)
    sizes = {
        name: getattr(memory, f"{name}_size_in_bytes")
        for name in ("argument", "output", "temp", "alias", "generated_code")
    }
    return {
        "bytes": loop or everything, "bytes_once": everything - loop if loop else 0,
        **{f"{name}_bytes": size for name, size in sizes.items()},
        "memory_bytes": sum(sizes.values()) - 2 * sizes["alias"],
        "collectives": kinds, "collective_bytes": moved, "calls": dict(_calls(program)),
        "wide_convolutions": wide_convolutions, "wide_products": wide_products,
    }  # fmt: skip


def _calls(program: hlo.Program) -> Counter[str]:
    """The number of calls of a library by what is called, such as "__cudnn$fmhaSoftmax"."""
    targets = (i.target for part in program.computations.values() for i in part.values())
    return Counter(filter(None, targets))
