# SPDX-License-Identifier: MIT
"""A small image classifier, to judge conditional samples and to find missing classes."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn import blocks
from jaxgen.nn.linear import Conv, Dense
from jaxgen.nn.norm import Norm
from jaxgen.types import Array

NUM_FEATURES = 128  # of the last hidden layer


class Classifier(nn.Module):
    """A convolutional classifier: [..., H, W, C] -> logits [..., num_classes]; any H and W.

    With num_classes = 0 it gives what the logits are made of: [..., NUM_FEATURES].
    """

    num_classes: int
    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = nn.relu(Conv(self.width, (3, 3), dtype=self.dtype)(x.astype(self.dtype)))
        for stage in range(blocks.halvings(*x.shape[-3:-1])):
            features = self.width * 2 ** (stage + 1)
            h = Conv(features, (3, 3), strides=2, dtype=self.dtype)(h)
            h = nn.relu(Norm("group", dtype=self.dtype)(h))
        h = nn.relu(Dense(NUM_FEATURES, dtype=self.dtype)(h.reshape(*x.shape[:-3], -1)))
        if self.num_classes == 0:
            return h.astype(jnp.float32)
        return Dense(self.num_classes, dtype=self.dtype)(h).astype(jnp.float32)
