# SPDX-License-Identifier: MIT
"""Every test runs strict: 8 forced host devices, no rank promotion, no key used twice.

The strict settings hold for the package's own code; warnings are errors (pyproject.toml). LLVM
optimises little: programs as tiny as these spend more time in it than they ever save.
"""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAXGEN_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=1",
        os.environ.get("XLA_FLAGS", ""),  # of two equal flags the last one counts
        "--xla_force_host_platform_device_count=8",
    ]
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
