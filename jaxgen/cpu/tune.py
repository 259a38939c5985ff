# SPDX-License-Identifier: MIT
"""The one call that makes XLA's CPU backend fast in this process."""

import ctypes
import os

import jax

from jaxgen.cpu import convolution, sums

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"  # XLA's flag: the operations left to YNNPACK


def tune_cpu() -> None:
    """Sets all that makes XLA's CPU backend fast in this process; docs/design.md says why.

    Call it before anything is computed. Other backends stay as they are, and so does a flag that
    XLA_FLAGS has already.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNNPACK}=".lstrip()  # read once, at the first use
    convolution.register()
    sums.register()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        _keep_memory()


def _keep_memory() -> None:
    """Makes glibc keep the memory that a step frees for the next step.

    XLA allocates its temporaries again in every step. Large ones come from mmap, and the system
    zeroes their pages each time: about a tenth of the step of a convolutional VAE.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's own
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
