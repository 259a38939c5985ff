# SPDX-License-Identifier: MIT
"""A linen module as a plain function of its parameters."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxgen.types import Array, Key, Params


def apply(module: nn.Module) -> Callable[..., Array]:
    """(params, *inputs) -> output."""

    def applied(params: Params, *inputs: Any) -> Any:  # an Array; linen's type allows for a tuple
        return module.apply({"params": params}, *inputs)

    return applied


def init(module: nn.Module, key: Key, *inputs: Array) -> Params:
    """Fresh float32 parameters for inputs of these shapes."""
    return module.init(key, *inputs)["params"]
