# SPDX-License-Identifier: MIT
"""Networks of one stochastic layer: the moments of a Gaussian as a function of another layer."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.types import Array

GLOROT = nn.initializers.xavier_uniform()


class GaussianLayer(nn.Module):
    """h [..., D_in] -> the mean and the log-variance of a Gaussian, concatenated: [..., 2 D].

    `hidden` layers of tanh, then a linear head for each of mean and log standard deviation, as in
    Burda et al. 2016 (arXiv:1509.00519), section 5 and appendix C.
    """

    features: int
    hidden: Sequence[int] = (100, 100)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Array) -> Array:
        h = h.astype(self.dtype)
        for features in self.hidden:
            h = nn.tanh(nn.Dense(features, dtype=self.dtype, kernel_init=GLOROT)(h))
        mean, log_std = (
            nn.Dense(self.features, dtype=self.dtype, kernel_init=GLOROT, name=name)(h)
            for name in ("mean", "log_std")
        )
        return jnp.concatenate([mean, 2 * log_std], axis=-1).astype(jnp.float32)
