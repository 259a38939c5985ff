# SPDX-License-Identifier: MIT
"""The parts that small image networks share: number of stages, upsampling, spectral norm."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.linear import Conv
from jaxgen.types import Array, Params


def halvings(height: int, width: int) -> int:
    """The number of times an image can be halved with even sides and 4 pixels or more left."""
    count = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) // 2 >= 4:
        height, width, count = height // 2, width // 2, count + 1
    return count


def num_stages(height: int, width: int) -> int:
    """The number of times a convolutional network halves an image.

    8 -> 1 (4x4), 28 -> 2 (7x7), 32 -> 3 (4x4), 64 -> 4 (4x4).
    Raises ValueError when the image cannot be halved once.
    """
    stages = halvings(height, width)
    if stages == 0:
        raise ValueError(
            f"a convolutional network halves the image; {height}x{width} cannot be halved to sides "
            f"of 4 or more: use even sides of at least 8 pixels (--image-size), or a dense network"
        )
    return stages


def depth_to_space(x: Array) -> Array:
    """The image whose 2x2 patches are the features of x: [..., H, W, 4 C] -> [..., 2 H, 2 W, C]."""
    *lead, h, w, c = x.shape
    x = x.reshape(*lead, h, w, 2, 2, c // 4)
    x = jnp.moveaxis(x, -3, -4)  # [..., H, 2, W, 2, C]
    return x.reshape(*lead, 2 * h, 2 * w, c // 4)


class Upsample(nn.Module):
    """An image with doubled sides, from a 3x3 convolution and `depth_to_space`.

    [..., H, W, C_in] -> [..., 2 H, 2 W, features]. The sub-pixel convolution of Shi et al. 2016
    (arXiv:1609.05158): it spans the same maps as a 6x6 transposed convolution with stride 2, and
    XLA runs it twice as fast on CPU because nothing is dilated with zeros.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return depth_to_space(Conv(4 * self.features, (3, 3), dtype=self.dtype)(x))


def spectral_norm(kernel: Array, num_iterations: int = 12) -> Array:
    """The largest singular value [] of a kernel [..., out], seen as a matrix [-1, out], from below.

    Power iteration as in Miyato et al. 2018 (arXiv:1802.05957, algorithm 1), from a fixed start
    and long enough that steps need not pass a vector on: the step stays a pure function, and a
    resumed run equals a straight one. On random kernels the estimate is up to a few per cent too
    small. Gradients flow through the kernel alone.
    """
    w = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(w)
    v = jnp.sin(jnp.arange(1, w.shape[1] + 1, dtype=w.dtype))  # any start not orthogonal to the top
    u = _unit(fixed @ v)
    for _ in range(num_iterations - 1):
        u = _unit(fixed @ _unit(fixed.T @ u))
    v = _unit(fixed.T @ u)
    return u @ w @ v


def _unit(v: Array) -> Array:
    return v / (jnp.linalg.norm(v) + 1e-12)


def spectrally_normalized(layer: type[nn.Module]) -> type[nn.Module]:
    """The linen layer class, with its kernel or table divided by the largest singular value.

    Parameters keep the layer's own names and shapes.
    """

    def divide(variables: Params) -> Params:
        params = dict(variables["params"])
        (name,) = params.keys() & {"kernel", "embedding"}
        params[name] = params[name] / spectral_norm(params[name])
        return {"params": params}

    return nn.map_variables(layer, "params", trans_in_fn=divide, init=True)
