# SPDX-License-Identifier: MIT
"""Group normalisation with an explicit epsilon and float32 statistics."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxgen.types import Array


class GroupNorm(nn.Module):
    """Group normalisation, Wu & He 2018 (arXiv:1803.08494), over space and groups of channels.

    x: [B, ..., C] -> [B, ..., C] in `dtype`. torch.nn.GroupNorm; `epsilon` has no default because
    the networks disagree on it (1e-5 in UNet resnets, 1e-6 in Transformer2D and the VAE).
    """

    num_groups: int
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        h = x.astype(jnp.float32)  # statistics stay float32 under bf16
        # space is not flattened: under vmap, XLA's CPU gradient of that takes four times as long
        space = tuple(range(1, x.ndim - 1))
        edges = (None,) * (x.ndim - 1)

        # two passes: E[x^2] - E[x]^2 cancels where the mean is large (test_unet.py)
        centred = h - self._over_groups(h.mean(axis=space), x.ndim)
        variance = self._over_groups((centred**2).mean(axis=space), x.ndim)
        gain = lax.rsqrt(variance + self.epsilon) * scale.astype(jnp.float32)[edges]
        return (centred * gain + bias.astype(jnp.float32)[edges]).astype(self.dtype)

    def _over_groups(self, per_channel: Array, ndim: int) -> Array:
        """Every channel's value replaced by its group's average: [B, C] -> [B, 1, ..., C]."""
        b, c = per_channel.shape
        grouped = per_channel.reshape(b, self.num_groups, c // self.num_groups)
        mean = grouped.mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(mean, grouped.shape).reshape(b, *(1,) * (ndim - 2), c)
