# SPDX-License-Identifier: MIT
"""A linen module as a plain function of its parameters."""

from collections.abc import Callable

from flax import linen as nn

from jaxgen.types import Array, Key, Params


def apply(module: nn.Module) -> Callable[..., Array]:
    """(params, *inputs) -> output."""
    return lambda params, *inputs: module.apply({"params": params}, *inputs)


def init(module: nn.Module, key: Key, *inputs: Array) -> Params:
    """Fresh float32 parameters for inputs of these shapes."""
    return module.init(key, *inputs)["params"]
