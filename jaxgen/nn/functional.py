# SPDX-License-Identifier: MIT
"""Linen modules as plain functions of their parameters."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxgen.types import Array, Key, Params


def apply(module: nn.Module) -> Callable[..., Array]:
    """The module as a function (params, *inputs) -> output."""

    def applied(params: Params, *inputs: Any) -> Any:  # an Array; linen's type allows for a tuple
        return module.apply({"params": params}, *inputs)

    return applied


def init(module: nn.Module, key: Key, *inputs: Array) -> Params:
    """New float32 parameters, drawn with the key, for inputs of these shapes."""
    return module.init(key, *inputs)["params"]
