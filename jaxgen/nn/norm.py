# SPDX-License-Identifier: MIT
"""Normalisation layers, chosen by name; only BatchNorm looks at other examples."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxgen import fields
from jaxgen.types import DATA_AXIS, Array

NORMS = ("none", "group", "layer", "batch")


@jax.custom_batching.custom_vmap
def mean_over_examples(v: Array) -> Array:
    """The mean over the examples of an enclosing vmap; v itself where there is none.

    A vmap rule, and no named axis: inside shard_map, jax 0.10 and 0.11 reject collectives over
    the axis of a vmap. Only the innermost vmap, the one over examples, is averaged.
    """
    return v


@mean_over_examples.def_vmap
def _(axis_size: int, in_batched: list[bool], v: Array) -> tuple[Array, bool]:
    return (jnp.mean(v, axis=0) if in_batched[0] else v), False


def mean_over_devices(v: Array) -> Array:
    """The mean over the devices inside pmap and shard_map, where jax knows the axis `DATA_AXIS`.

    v itself elsewhere: under jit with shardings the batch is global already. So a module does not
    depend on how its step is run.
    """
    try:
        return lax.pmean(v, DATA_AXIS)
    except NameError:  # jax's error for an axis that nothing maps
        return v


class BatchNorm(nn.Module):
    """Batch normalisation, Ioffe & Szegedy 2015 (arXiv:1502.03167), without running averages.

    x: [..., C] -> [..., C] in `dtype`. Statistics are those of the whole global batch: over all
    leading axes, over the examples of an enclosing vmap, and over the devices of a pmap or
    shard_map. When a collection `batch_stats` is passed to `apply` it is used instead, so that one
    example can be evaluated alone; `apply(..., mutable="batch_stats")` on a large batch returns
    that collection (the standing statistics of Brock et al. 2019, arXiv:1809.11096, section 4.1).
    Nothing is carried from step to step, so a step stays a function of parameters, batch and key.
    Gradients of batch statistics exist outside the vmap over examples, where a gradient step takes
    them, and not inside it: a gradient penalty through this layer is an error of jax.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))

        if self.has_variable("batch_stats", "mean"):
            mean = self.get_variable("batch_stats", "mean")
            var = self.get_variable("batch_stats", "var")
        else:
            mean, var = _moments(x.astype(jnp.float32))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                self.put_variable("batch_stats", "mean", mean)
                self.put_variable("batch_stats", "var", var)

        y = (x - _like(mean, x)) * _like(jax.lax.rsqrt(var + self.epsilon) * scale, x)
        return (y + _like(bias, x)).astype(self.dtype)


class Norm(nn.Module):
    """One of `NORMS` over the features of x: [..., H, W, C] or [..., D]; statistics in float32.

    "group" is GroupNorm with 8 groups (Wu & He 2018, arXiv:1803.08494), or with fewer where 8 does
    not divide the features; "layer" is LayerNorm over the features (Ba et al. 2016,
    arXiv:1607.06450); "batch" is the BatchNorm above. Output in `dtype`, except for "none".
    Raises ValueError for another name.
    """

    kind: str = "group"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        passes = {"use_fast_variance": _one_pass_is_enough(x.dtype)}
        match self.kind:
            case "none":
                return x
            case "group":
                groups = math.gcd(8, x.shape[-1])
                # over space and the group's channels only, never over a batch axis
                axes = (-3, -2, -1) if x.ndim >= 3 else (-1,)
                norm = nn.GroupNorm(
                    num_groups=groups, epsilon=1e-5, dtype=self.dtype, reduction_axes=axes, **passes
                )
                return norm(x)
            case "layer":
                return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, **passes)(x)
            case "batch":
                return BatchNorm(dtype=self.dtype)(x)
        raise ValueError(f"unknown norm {fields.shown(self.kind)}; use one of {', '.join(NORMS)}")


def _moments(x: Array) -> tuple[Array, Array]:
    """The mean and variance [C] over every axis but the last, over examples and over devices."""

    def mean_of(x: Array) -> Array:
        per_channel = jnp.mean(x, axis=tuple(range(x.ndim - 1)))
        return mean_over_devices(mean_over_examples(per_channel))

    mean = mean_of(x)
    return mean, mean_of(jnp.square(x - _like(mean, x)))


def _like(v: Array, x: Array) -> Array:
    """v [C] as [1, ..., 1, C], with as many axes as x."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)


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

        mean = self._over_groups(h.mean(axis=space), x.ndim)
        if _one_pass_is_enough(x.dtype):
            square = self._over_groups((h**2).mean(axis=space), x.ndim)
            centred, variance = h - mean, jnp.maximum(square - mean**2, 0)
        else:  # E[x^2] - E[x]^2 cancels where the mean is large (test_unet.py)
            centred = h - mean
            variance = self._over_groups((centred**2).mean(axis=space), x.ndim)
        gain = lax.rsqrt(variance + self.epsilon) * scale.astype(jnp.float32)[edges]
        return (centred * gain + bias.astype(jnp.float32)[edges]).astype(self.dtype)

    def _over_groups(self, per_channel: Array, ndim: int) -> Array:
        """The average of its group for every channel: [B, C] -> [B, 1, ..., C]."""
        b, c = per_channel.shape
        grouped = per_channel.reshape(b, self.num_groups, c // self.num_groups)
        mean = grouped.mean(axis=-1, keepdims=True)
        return jnp.broadcast_to(mean, grouped.shape).reshape(b, *(1,) * (ndim - 2), c)


def _one_pass_is_enough(dtype: jnp.dtype) -> bool:
    """Whether both moments are computed in one pass: from bfloat16 inputs on a GPU or TPU.

    The variance is then E[x^2] - E[x]^2 in float32. A bfloat16 image cannot have a mean of more
    than some hundred standard deviations, and up to 100 this costs less than the rounding of the
    image did (test_norm.py). A second pass costs a GPU a third of the norm's memory traffic.
    """
    return dtype == jnp.bfloat16 and jax.default_backend() in ("gpu", "tpu")
