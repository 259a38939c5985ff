# SPDX-License-Identifier: MIT
"""The embedding of time in the UNet: a sinusoid, then a small network."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxgen.nn.linear import Dense
from jaxgen.types import Array


def sinusoid(
    values: Array, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> Array:
    """The sines and cosines of `values` at `dim // 2` frequencies from 1 down to 1e-4, in float32.

    values: [...], timesteps or sizes in pixels, integer or float -> [..., dim].
    Vaswani et al. 2017 (arXiv:1706.03762) section 3.5; diffusers' Timesteps. With
    `flip_sin_to_cos` the cosines come first. Never in half precision: bfloat16 rounds 1023 to 1024.
    """
    half = dim // 2
    exponents = np.arange(half) / (half - freq_shift)
    frequencies = jnp.asarray(10000.0**-exponents, jnp.float32)

    angles = jnp.tensordot(jnp.asarray(values, jnp.float32), frequencies, axes=0)
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)


class TimestepEmbedding(nn.Module):
    """Two dense layers with a SiLU between them: diffusers' class of this name.

    x: [..., D_in] -> [..., dim].
    With `cond_dim`, a projection of `cond` [..., cond_dim] is added to x first (the guidance
    embedding of latent consistency models, Luo et al. 2023, arXiv:2310.04378).
    """

    dim: int
    cond_dim: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, cond: Array | None = None) -> Array:
        x = x.astype(self.dtype)
        if self.cond_dim is not None:
            project = Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="cond_proj")
            cond = jnp.zeros((*x.shape[:-1], self.cond_dim), x.dtype) if cond is None else cond
            x = x + project(cond)
        x = Dense(self.dim, dtype=self.dtype, name="linear_1")(x)
        return Dense(self.dim, dtype=self.dtype, name="linear_2")(nn.silu(x))
