# SPDX-License-Identifier: MIT
"""Generative models as pure functions, at accelerator speed."""

from typing import Any

__version__ = "0.2.0"
__all__ = ["StableDiffusion", "__version__"]


def __getattr__(name: str) -> Any:
    """Public names that need JAX are imported at their first use: `import jaxgen` stays light."""
    if name == "StableDiffusion":
        from jaxgen.stable_diffusion.pipeline import StableDiffusion

        return StableDiffusion
    raise AttributeError(f"module 'jaxgen' has no attribute {name!r}")
