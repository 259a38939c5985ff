# SPDX-License-Identifier: MIT
"""The record of where and how something was measured, without which a figure says nothing."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "jaxgen", "jax", "jaxlib", "flax", "optax", "numpy", "libtpu", "torch", "triton", "diffusers",
    "transformers",
)  # fmt: skip
FLAGS = (
    "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_OPTIMIZATION_LEVEL",
    "JAX_DEFAULT_MATMUL_PRECISION", "OMP_NUM_THREADS", "XLA_PYTHON_CLIENT_PREALLOCATE",
)  # fmt: skip
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # by the flag in /proc/cpuinfo, widest first


def record() -> dict[str, Any]:
    """The device, driver, versions, flags, date, exact command and load of the machine."""
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": _commit(),
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "driver": device.client.platform_version,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    """The processor's name and its widest vectors, where the system tells: "AMD EPYC, AVX2".

    Vectors decide the highest speed, and virtual machines hide the model.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    facts = {name.strip(): value.strip() for name, value in pairs}  # of the last core
    flags = facts.get("flags", "").split()
    vectors = [name for flag, name in VECTORS.items() if flag in flags]
    return ", ".join([facts.get("model name") or platform.processor() or "cpu", *vectors[:1]])


def _commit() -> str | None:
    """The commit of the working tree, with a "+" if files differ from it; None outside of git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--short", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
