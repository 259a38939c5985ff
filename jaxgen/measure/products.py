# SPDX-License-Identifier: MIT
"""The arithmetic of matrix products and convolutions, counted from a function's own equations.

The compiler's number counts everything but the calls of libraries. This one counts products only,
as one would by hand: 2 m n k for each matrix product, and for a convolution 2 for each weight that
meets an image pixel. A weight that meets padding or the zeros between the pixels of a dilated image
is not counted. Each number checks the other.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
from jax.extend import core


def flops(fn: Callable[..., Any], *args: Any) -> int:
    """The floating-point operations of the products in fn(*args); nothing is computed.

    args: arrays or shapes. The body of a loop counts as often as it runs, but that of a
    `while_loop` once; of the branches of a condition the most expensive one counts. Where work is
    divided over devices, that of all devices is counted.
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> int:
    match eqn.primitive.name:
        case "dot_general":
            return _product(eqn)
        case "conv_general_dilated":
            return _convolution(eqn)
        case "scan":
            return eqn.params["length"] * _of_jaxpr(eqn.params["jaxpr"].jaxpr)
        case "cond":
            return max(_of_jaxpr(branch.jaxpr) for branch in eqn.params["branches"])
        case "dot_product_attention_fwd_wrapper":  # cuDNN's, which has no equations inside
            return _attention(eqn)
        case "pallas_call":  # the equations of one cell of its grid
            return prod(eqn.params["grid_mapping"].grid) * _inner(eqn)
        case "shard_map":
            return eqn.params["mesh"].size * _of_jaxpr(eqn.params["jaxpr"])
    return _inner(eqn)


def _inner(eqn: Any) -> int:
    """The operations of the functions that an equation calls, such as jit, remat and while."""
    total = 0
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                total += _of_jaxpr(part.jaxpr)
            elif isinstance(part, core.Jaxpr):
                total += _of_jaxpr(part)
    return total


def _product(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * prod(eqn.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)


def _attention(eqn: Any) -> int:
    """Two products, queries by keys and weights by values: [B, T, N, H] and [B, S, N, H]."""
    query, key = (v.aval.shape for v in eqn.invars[:2])
    return 4 * prod(query) * key[1]


def _convolution(eqn: Any) -> int:
    params = eqn.params
    image, kernel = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    spec = params["dimension_numbers"]
    meetings = prod(
        _meetings(
            image[spec.lhs_spec[i]], kernel[spec.rhs_spec[i]], out[spec.out_spec[i]],
            params["window_strides"][i - 2], params["padding"][i - 2],
            params["lhs_dilation"][i - 2], params["rhs_dilation"][i - 2],
        )
        for i in range(2, len(image))
    )  # fmt: skip
    batch, features = (out[axis] for axis in spec.out_spec[:2])
    # the kernel's input features are those of one group already; batches in groups are divided
    batch //= params["batch_group_count"]
    return 2 * batch * features * kernel[spec.rhs_spec[1]] * meetings


def _meetings(
    size: int, taps: int, out: int, stride: int, padding: Any, spacing: int, dilation: int
) -> int:
    """The number of pairs (output place, kernel tap) along one axis that meet an image pixel."""
    first, last = -padding[0], (size - 1) * spacing
    places = (first + o * stride + k * dilation for o in range(out) for k in range(taps))
    return sum(0 <= place <= last and place % spacing == 0 for place in places)
