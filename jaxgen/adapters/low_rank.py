# SPDX-License-Identifier: MIT
"""Low-rank paths beside the layers of a network, as data: y = x W + b + ((x A) * scale) B.

The factors are a collection of variables beside the parameters, in the parameters' tree: where a
layer has a kernel, it has A as "down" and B as "up". Of a dense layer A is [I, r], of a convolution
[kh, kw, I, r]; B is [r, O]. The network itself knows nothing of them:

    with low_rank.added(scale):
        y = unet.apply({"params": params, "low_rank": factors}, x, t, text)

Hu et al. 2021 (arXiv:2106.09685), eq. 3, with scale = alpha / r.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax import lax

from jaxgen.nn.linear import SAME, Conv, Conv3x3, Dense
from jaxgen.types import Array, Key, Params
from jaxgen.weights import layout

COLLECTION = "low_rank"
LAYERS = (Dense, Conv, Conv3x3)  # that can have a path
Path = layout.Path


def added(scale: Array | float) -> contextlib.AbstractContextManager:
    """A context in which layers that have factors add their low-rank path.

    scale: one number, or [B, r] for the rows of the batch and the columns of A.
    """

    def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer, out = context.module, call(*args, **kwargs)
        is_whole = context.method_name == "__call__" and isinstance(layer, LAYERS)
        if not is_whole or not layer.has_variable(COLLECTION, "down"):
            return out
        down, up = (layer.get_variable(COLLECTION, name) for name in ("down", "up"))
        x, down, up = (a.astype(out.dtype) for a in (args[0], down, up))
        inner = x @ down if down.ndim == 2 else _convolve(layer, x, down)
        rows = jnp.asarray(scale, out.dtype)
        if rows.ndim:  # [B, r] -> [B, 1, ..., 1, r]
            rows = rows.reshape(rows.shape[0], *(1,) * (inner.ndim - 2), rows.shape[1])
        return out + (inner * rows) @ up

    return nn.intercept_methods(add)


def merged(params: Params, factors: Params, scale: Array | float) -> Params:
    """The parameters with the low-rank changes added to their kernels, in float32."""
    flat: dict[Path, Any] = dict(traverse_util.flatten_dict(params))
    parts: dict[Path, Any] = dict(traverse_util.flatten_dict(factors))
    for path, down in parts.items():
        if path[-1] == "down":
            kernel, up = flat[*path[:-1], "kernel"], parts[*path[:-1], "up"]
            change = jnp.matmul(
                down.reshape(-1, down.shape[-1]), up, precision=lax.Precision.HIGHEST
            )
            total = kernel.astype(jnp.float32) + scale * change.reshape(kernel.shape)
            flat[*path[:-1], "kernel"] = total.astype(kernel.dtype)
    return traverse_util.unflatten_dict(flat)


def layers(params: Params, targets: Sequence[str], where: str) -> dict[Path, tuple[int, ...]]:
    """The layers whose names end in one of `targets`, as {path: shape of the kernel}.

    params: arrays or shapes. targets: as PEFT's target_modules, "to_q" or "attn2.to_out.0". Raises
    ValueError for a target that no layer of `where` has.
    """
    flat: dict[Path, Any] = dict(traverse_util.flatten_dict(params))
    kernels = {path[:-1]: tuple(x.shape) for path, x in flat.items() if path[-1] == "kernel"}
    names = {path: layout.tensor_name((*path, "kernel"))[: -len(".weight")] for path in kernels}
    unknown = [t for t in targets if not any(_ends(name, t) for name in names.values())]
    if unknown:
        ends = sorted({_end(name) for name in names.values()})
        raise ValueError(
            f"no layer of {where} is called {' or '.join(map(repr, unknown))}; use ends of names "
            f"such as {', '.join(ends)}"
        )
    return {
        path: shape
        for path, shape in kernels.items()
        if any(_ends(names[path], target) for target in targets)
    }


def init(key: Key, kernels: dict[Path, tuple[int, ...]], rank: int) -> Params:
    """Fresh factors of these layers, whose change is 0: A from U(-1, 1) / sqrt(inputs), B = 0."""
    factors = {}
    for i, (path, shape) in enumerate(sorted(kernels.items())):
        bound = math.prod(shape[:-1]) ** -0.5
        factors[*path, "down"] = jax.random.uniform(
            jax.random.fold_in(key, i), (*shape[:-1], rank), minval=-bound, maxval=bound
        )
        factors[*path, "up"] = jnp.zeros((rank, shape[-1]))
    return traverse_util.unflatten_dict(factors)


def _convolve(layer: nn.Module, x: Array, down: Array) -> Array:
    """The convolution by A, with the strides and the padding of its layer."""
    strided = isinstance(layer, Conv)
    strides = (layer.strides, layer.strides) if strided else (1, 1)
    padding: Any = layer.padding if strided else SAME
    return lax.conv_general_dilated(
        x, down, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _end(name: str) -> str:
    """The last word of a name, with the number behind it."""
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
