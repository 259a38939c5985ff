# SPDX-License-Identifier: MIT
"""Twins of jaxgen's candidates in other frameworks, and the checks that they are equal."""

import gc
import importlib.util
import re
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from benchmarks import diffusion, training
from benchmarks.sd.sd_models import Model
from benchmarks.sd.sd_programs import Size

NAMES = ("pytorch", "pytorch_compile", "pytorch_graphs")
FLAX = "flax_diffusers"  # only Stable Diffusion
LAST_WITH_FLAX = {"diffusers": "0.39.0", "transformers": "4.57.6"}
# relative, of losses: frameworks round sums and the products of the layers differently
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
TENSOR_FLOAT_32 = 5e-3  # float32 products on a GPU's Tensor Cores have 10 bits
# relative, of the norm of a part's output
OUTPUT_TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}
OUTPUT_TENSOR_FLOAT_32 = 3e-2


# --- which peers -------------------------------------------------------------------------------


def choose(names: Sequence[str] | None, quick: bool, diffusion: bool = False) -> list[str]:
    """The peers to race: these, or all that can run here (if quick, without compilers).

    diffusion: for Stable Diffusion, which needs more packages.
    Raises ValueError for an unknown peer, ImportError for one that cannot run here.
    """
    if names is None:
        slow = quick or (diffusion and jax.default_backend() == "cpu")  # compiling takes minutes
        fast = NAMES[:1] if slow else NAMES
        every = (*fast, FLAX) if diffusion else fast
        return [name for name in every if missing(name, diffusion) is None]
    for name in names:
        if name not in (*NAMES, FLAX):
            raise ValueError(f"unknown peer {name!r}; use {', '.join((*NAMES, FLAX))}")
        if name == FLAX and not diffusion:
            raise ValueError(f"{FLAX} trains nothing; use it with --models sd15, sd21 or sdxl")
        reason = missing(name, diffusion)
        if reason is not None:
            raise ImportError(f"peer {name} cannot run: {reason}")
    return list(names)


def absent(quick: bool) -> dict[str, str]:
    """The peers of training that a run without --peers lacks, and why."""
    names = NAMES[:1] if quick else NAMES if jax.default_backend() == "gpu" else NAMES[:2]
    return {name: reason for name in names if (reason := missing(name)) is not None}


def missing(name: str, diffusion: bool = False) -> str | None:
    """Why a peer cannot run here, and what to do about it; None if it can."""
    packages = {} if name == FLAX else {"torch": "PyTorch"}
    if diffusion:
        packages |= {"diffusers": "diffusers", "transformers": "transformers"}
    for package, title in packages.items():
        if importlib.util.find_spec(package) is None:
            return f'{title} is not installed; pip install -e ".[oracle]"'
    return _no_flax() if name == FLAX else _no_torch(name)


def _no_flax() -> str | None:
    versions = {package: metadata.version(package) for package in LAST_WITH_FLAX}
    if all(_parts(v) <= _parts(LAST_WITH_FLAX[package]) for package, v in versions.items()):
        return None
    installed = " and ".join(f"{package} {version}" for package, version in versions.items())
    last = " ".join(f"{package}=={version}" for package, version in LAST_WITH_FLAX.items())
    return f"{installed} have no Flax any more; pip install {last} in an environment of its own"


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _no_torch(name: str) -> str | None:
    import torch

    on_gpu = jax.default_backend() == "gpu"
    if jax.default_backend() not in ("cpu", "gpu"):
        return f"PyTorch does not run on this {jax.default_backend()}; leave --peers out"
    if on_gpu and not torch.cuda.is_available():
        return "this PyTorch has no CUDA; install a build with CUDA"
    if name == "pytorch_graphs" and not on_gpu:
        return "CUDA graphs need a GPU; use pytorch_compile"
    if name != "pytorch" and not any(map(shutil.which, ("gcc", "clang") if on_gpu else ("g++",))):
        return "torch.compile needs a C++ compiler; install gcc and g++"
    return None


# --- training ----------------------------------------------------------------------------------


def start(case: training.Case, name: str, like: training.Started) -> training.Started:
    """The peer after two steps from the first weights of jaxgen's candidate.

    Raises ValueError unless it has as many parameters and the same two losses.
    """
    from benchmarks.peers import torch_training

    torch_training.prepare()
    before = torch_training.memory_mark()
    mode = torch_training.MODES[name]
    options = training.config_of(case)
    peer = torch_training.peer(case.model, training.originals(case), like.params, options, mode)
    images, draws = training.dataset(), training.draws(case)

    began = time.perf_counter()
    steps = torch_training.losses(peer, images[: case.batch_size], draws)
    losses = [next(steps)]
    first = time.perf_counter() - began
    losses += list(steps)
    check(case, name, peer.num_parameters, losses, like.facts)

    flops = like.facts["product_flops_per_step"] // like.facts["num_models"]
    facts = {
        "dispatch": "step", "num_models": 1, "steps_per_dispatch": 1, "num_devices": 1,
        "time_to_first_step_s": first, "parameters": peer.num_parameters, "losses": losses,
        "product_flops_per_step": flops,
        "device_memory_bytes": torch_training.memory_growth(before),
    }  # fmt: skip
    candidate = torch_training.candidate(peer, images, case.batch_size)
    return training.Started(candidate, case.batch_size, facts, like.params)


def check(
    case: training.Case, name: str, parameters: int, losses: list[float], ours: dict[str, Any]
) -> None:
    """Raises ValueError unless parameters and losses, before and after an update, are equal."""
    if parameters != ours["parameters"]:
        raise ValueError(
            f"{name} has {parameters} parameters in {case} and jaxgen {ours['parameters']}; "
            f"they are not the same network"
        )
    tolerance = TOLERANCE[case.dtype]
    if jax.default_backend() == "gpu":
        tolerance = max(tolerance, TENSOR_FLOAT_32)
    if not np.allclose(losses, ours["losses"], rtol=tolerance, atol=0):
        raise ValueError(
            f"{name} has the losses {losses} in {case} and jaxgen {ours['losses']}, which differ "
            f"by more than {tolerance:g}; they do not train the same"
        )


# --- Stable Diffusion --------------------------------------------------------------------------


def start_diffusion(
    model: Model,
    size: Size,
    dtype: str,
    name: str,
    ours: dict[str, diffusion.Part],
    begin: diffusion.Start,
) -> dict[str, diffusion.Part]:
    """The peer's parts after their first call, from jaxgen's weights and inputs.

    Raises ValueError unless each has as many parameters and the same output as jaxgen's.
    """
    peer = _diffusion_twin(model, size, dtype, name, begin)
    parts: dict[str, diffusion.Part] = {}
    for part, like in ours.items():
        began = time.perf_counter()
        output, memory = peer.first(part)
        first = time.perf_counter() - began
        if part == "images" and name != FLAX:  # it calls the other parts, which are compiled now
            first += sum(other.facts["time_to_first_step_s"] for other in parts.values())
        parameters = peer.parameters[part]
        check_diffusion(f"{name}: {part}", dtype, parameters, output, like)
        facts = {
            "time_to_first_step_s": first, "parameters": parameters,
            "product_flops_per_step": like.facts["product_flops_per_step"],
            "device_memory_bytes": memory,
        }  # fmt: skip
        parts[part] = diffusion.Part(peer.candidate(part), facts, output)
    return parts


def _diffusion_twin(model: Model, size: Size, dtype: str, name: str, begin: Any) -> Any:
    """The parts of a peer. Only its own framework is imported."""
    if name == FLAX:
        from benchmarks.peers import flax_diffusion

        return flax_diffusion.start(model, size, begin, dtype)
    from benchmarks.peers import torch_diffusion, torch_training

    torch_training.prepare()
    return torch_diffusion.start(model, size, begin, dtype, torch_training.MODES[name])


def check_diffusion(
    part: str, dtype: str, parameters: int, output: np.ndarray, ours: diffusion.Part
) -> None:
    """Raises ValueError unless parameters and outputs are equal.

    Whole images are compared in float32 only: over many steps of a network with random weights,
    the rounding of half precision grows.
    """
    if parameters != ours.facts["parameters"]:
        raise ValueError(
            f"{part} has {parameters} parameters and jaxgen {ours.facts['parameters']}; they are "
            f"not the same network"
        )
    if part.endswith("images") and dtype != "float32":
        return
    expected = np.asarray(ours.output, np.float32)
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    tolerance = OUTPUT_TOLERANCE[dtype]
    if jax.default_backend() == "gpu":
        tolerance = max(tolerance, OUTPUT_TENSOR_FLOAT_32)
    if not error <= tolerance:
        raise ValueError(
            f"{part} differs from jaxgen's by {error:.2g} of its norm, more than {tolerance:g}; "
            f"they do not compute the same"
        )


def release() -> None:
    """Frees what frameworks keep of a finished case: programs, graphs, memory."""
    gc.collect()
    if "torch" in sys.modules:
        from benchmarks.peers import torch_training

        torch_training.release()
