# SPDX-License-Identifier: MIT
"""The same training in other frameworks: which of them are here, and the proof of sameness."""

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
from benchmarks.sd_models import Model
from benchmarks.sd_programs import Size

NAMES = ("pytorch", "pytorch_compile", "pytorch_graphs")
FLAX = "flax_diffusers"  # only Stable Diffusion
LAST_WITH_FLAX = {"diffusers": "0.39.0", "transformers": "4.57.6"}
# relative, of losses: rounding of one sum, and of the products of one layer after another
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
TENSOR_FLOAT_32 = 5e-3  # float32 products on a GPU's Tensor Cores have 10 bits
# relative, of the norm of what a part gives
OUTPUT_TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}
OUTPUT_TENSOR_FLOAT_32 = 3e-2


def chosen(asked: Sequence[str] | None, quick: bool, diffusion: bool = False) -> list[str]:
    """The peers to race: those asked for, else all that are here (if quick, without compilers).

    diffusion: for Stable Diffusion, which takes more packages.
    Raises ValueError for an unknown one, and ImportError for one that is not here.
    """
    if asked is None:
        slow = quick or (diffusion and jax.default_backend() == "cpu")  # to compile: minutes
        fast = NAMES[:1] if slow else NAMES
        names = (*fast, FLAX) if diffusion else fast
        return [name for name in names if missing(name, diffusion) is None]
    for name in asked:
        if name not in (*NAMES, FLAX):
            raise ValueError(f"unknown peer {name!r}; use {', '.join((*NAMES, FLAX))}")
        if name == FLAX and not diffusion:
            raise ValueError(f"{FLAX} trains nothing; ask for it with --models sd15, sd21 or sdxl")
        reason = missing(name, diffusion)
        if reason is not None:
            raise ImportError(f"peer {name} was asked for, and {reason}")
    return list(asked)


def absent(quick: bool) -> dict[str, str]:
    """The peers of training that a run without --peers goes without, and why."""
    names = NAMES[:1] if quick else NAMES if jax.default_backend() == "gpu" else NAMES[:2]
    return {name: reason for name in names if (reason := missing(name)) is not None}


def missing(name: str, diffusion: bool = False) -> str | None:
    """What a peer lacks here, and what to do about it; None if nothing."""
    needed = {} if name == FLAX else {"torch": "PyTorch"}
    if diffusion:
        needed |= {"diffusers": "diffusers", "transformers": "transformers"}
    for package, title in needed.items():
        if importlib.util.find_spec(package) is None:
            return f'{title} is not installed; pip install "jaxgen[oracle]"'
    return _no_flax() if name == FLAX else _no_torch(name)


def _no_flax() -> str | None:
    versions = {package: metadata.version(package) for package in LAST_WITH_FLAX}
    if all(_parts(v) <= _parts(LAST_WITH_FLAX[package]) for package, v in versions.items()):
        return None
    found = " and ".join(f"{package} {version}" for package, version in versions.items())
    last = " ".join(f"{package}=={version}" for package, version in LAST_WITH_FLAX.items())
    return f"{found} have no Flax any more; pip install {last} in an environment of its own"


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _no_torch(name: str) -> str | None:
    import torch

    on_gpu = jax.default_backend() == "gpu"
    if jax.default_backend() not in ("cpu", "gpu"):
        return f"PyTorch does not run on this {jax.default_backend()}; leave --peers out"
    if on_gpu and not torch.cuda.is_available():
        return "this PyTorch has no CUDA; install a build that has"
    if name == "pytorch_graphs" and not on_gpu:
        return "CUDA graphs need a GPU; use pytorch_compile"
    if name != "pytorch" and not any(map(shutil.which, ("gcc", "clang") if on_gpu else ("g++",))):
        return "torch.compile needs a compiler for what it writes; install gcc and g++"
    return None


def start(case: training.Case, name: str, like: training.Started) -> training.Started:
    """The peer past its first two steps, from the weights of jaxgen's candidate.

    Raises ValueError unless it has as many parameters and found the same two losses.
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


def start_diffusion(
    model: Model,
    size: Size,
    dtype: str,
    name: str,
    ours: dict[str, diffusion.Part],
    given: diffusion.Given,
) -> dict[str, diffusion.Part]:
    """The peer's parts past their first call, from jaxgen's weights and inputs.

    Raises ValueError unless each has as many parameters and finds what jaxgen found.
    """
    peer = _diffusion_twin(model, size, dtype, name, given)
    found: dict[str, diffusion.Part] = {}
    for part, like in ours.items():
        began = time.perf_counter()
        output, memory = peer.first(part)
        first = time.perf_counter() - began
        if part == "images" and name != FLAX:  # made of the other parts, which are compiled now
            first += sum(made.facts["time_to_first_step_s"] for made in found.values())
        parameters = peer.parameters[part]
        check_diffusion(f"{name}: {part}", dtype, parameters, output, like)
        facts = {
            "time_to_first_step_s": first, "parameters": parameters,
            "product_flops_per_step": like.facts["product_flops_per_step"],
            "device_memory_bytes": memory,
        }  # fmt: skip
        found[part] = diffusion.Part(peer.candidate(part), facts, output)
    return found


def release() -> None:
    """Lets go of what frameworks keep of a finished case: programs, graphs, memory."""
    gc.collect()
    if "torch" in sys.modules:
        from benchmarks.peers import torch_training

        torch_training.release()


def _diffusion_twin(model: Model, size: Size, dtype: str, name: str, given: Any) -> Any:
    """The parts of a peer. Only the framework that is asked for is imported."""
    if name == FLAX:
        from benchmarks.peers import flax_diffusion

        return flax_diffusion.start(model, size, given, dtype)
    from benchmarks.peers import torch_diffusion, torch_training

    torch_training.prepare()
    return torch_diffusion.start(model, size, given, dtype, torch_training.MODES[name])


def check_diffusion(
    what: str, dtype: str, parameters: int, output: np.ndarray, ours: diffusion.Part
) -> None:
    """Raises ValueError unless parameters and outputs are equal.

    Whole images are compared in float32 only: over many steps of a network with random weights,
    half precision's rounding grows.
    """
    if parameters != ours.facts["parameters"]:
        raise ValueError(
            f"{what} has {parameters} parameters and jaxgen {ours.facts['parameters']}; they are "
            f"not the same network"
        )
    if what.endswith("images") and dtype != "float32":
        return
    expected = np.asarray(ours.output, np.float32)
    error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
    tolerance = OUTPUT_TOLERANCE[dtype]
    if jax.default_backend() == "gpu":
        tolerance = max(tolerance, OUTPUT_TENSOR_FLOAT_32)
    if not error <= tolerance:
        raise ValueError(
            f"{what} differs from jaxgen's by {error:.2g} of its size, more than {tolerance:g}; "
            f"they do not compute the same"
        )


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
            f"{name} finds the losses {losses} in {case} and jaxgen {ours['losses']}, which differ "
            f"by more than {tolerance:g}; they do not train the same"
        )
