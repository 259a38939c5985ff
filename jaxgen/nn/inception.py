# SPDX-License-Identifier: MIT
"""The Inception network of the Frechet Inception distance, Szegedy et al. 2016 (arXiv:1512.00567).

It is the network whose features Heusel et al. 2017 (arXiv:1706.08500) use. Three things tell it
from the Inception v3 of torchvision, whose names its modules carry: average pools do not count the
border, the last block pools by the maximum, and its weights are others.
"""

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn.linear import Conv
from jaxgen.types import Array

SIDE = 299  # of the images that it was trained on
NUM_FEATURES = 2048
EPSILON = 1e-3  # of the batch norms, which are part of the kernels here


class Layer(nn.Module):
    """A convolution and a rectifier: [B, H, W, C] -> [B, H', W', features]."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    strides: int = 1
    padding: str = "SAME"  # "VALID" adds no border

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.relu(Conv(self.features, self.kernel, self.strides, self.padding, name="conv")(x))


def average(x: Array) -> Array:
    """The mean over 3x3 pixels, at the border over those that there are: as in TensorFlow."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def largest(x: Array) -> Array:
    """The maximum over 3x3 pixels at every second place."""
    return nn.max_pool(x, (3, 3), (2, 2))


class MixedA(nn.Module):
    """Figure 5 of the paper: [B, 35, 35, C] -> [B, 35, 35, 224 + pooled]."""

    pooled: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = Layer(48, name="branch5x5_1")(x)
        double = Layer(96, (3, 3), name="branch3x3dbl_2")(Layer(64, name="branch3x3dbl_1")(x))
        branches = [
            Layer(64, name="branch1x1")(x),
            Layer(64, (5, 5), name="branch5x5_2")(wide),
            Layer(96, (3, 3), name="branch3x3dbl_3")(double),
            Layer(self.pooled, name="branch_pool")(average(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class MixedB(nn.Module):
    """Halves the grid: [B, 35, 35, C] -> [B, 17, 17, C + 480]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        double = Layer(96, (3, 3), name="branch3x3dbl_2")(Layer(64, name="branch3x3dbl_1")(x))
        branches = [
            Layer(384, (3, 3), 2, "VALID", name="branch3x3")(x),
            Layer(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double),
            largest(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class MixedC(nn.Module):
    """Figure 6, with n = 7: [B, 17, 17, C] -> [B, 17, 17, 768]."""

    inner: int  # features between the layers of a branch

    @nn.compact
    def __call__(self, x: Array) -> Array:
        row, column, inner = (1, 7), (7, 1), self.inner
        single = Layer(inner, row, name="branch7x7_2")(Layer(inner, name="branch7x7_1")(x))
        double = Layer(inner, name="branch7x7dbl_1")(x)
        for i, kernel in enumerate((column, row, column), start=2):
            double = Layer(inner, kernel, name=f"branch7x7dbl_{i}")(double)
        branches = [
            Layer(192, name="branch1x1")(x),
            Layer(192, column, name="branch7x7_3")(single),
            Layer(192, row, name="branch7x7dbl_5")(double),
            Layer(192, name="branch_pool")(average(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class MixedD(nn.Module):
    """Halves the grid again: [B, 17, 17, C] -> [B, 8, 8, C + 512]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        long = Layer(192, (1, 7), name="branch7x7x3_2")(Layer(192, name="branch7x7x3_1")(x))
        long = Layer(192, (7, 1), name="branch7x7x3_3")(long)
        branches = [
            Layer(320, (3, 3), 2, "VALID", name="branch3x3_2")(Layer(192, name="branch3x3_1")(x)),
            Layer(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(long),
            largest(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class MixedE(nn.Module):
    """Figure 7: [B, 8, 8, C] -> [B, 8, 8, 2048]."""

    by_maximum: bool = False  # the pool of the last block, an oddity that the FID keeps

    @nn.compact
    def __call__(self, x: Array) -> Array:
        single = Layer(384, name="branch3x3_1")(x)
        double = Layer(384, (3, 3), name="branch3x3dbl_2")(Layer(448, name="branch3x3dbl_1")(x))
        pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME") if self.by_maximum else average(x)
        branches = [
            Layer(320, name="branch1x1")(x),
            Layer(384, (1, 3), name="branch3x3_2a")(single),
            Layer(384, (3, 1), name="branch3x3_2b")(single),
            Layer(384, (1, 3), name="branch3x3dbl_3a")(double),
            Layer(384, (3, 1), name="branch3x3dbl_3b")(double),
            Layer(192, name="branch_pool")(pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class Inception(nn.Module):
    """The features of the last pool: images [B, H, W, 3] in [-1, 1] -> [B, 2048].

    The FID is defined for H = W = 299; 75 pixels are the least. The sizes in the blocks are of 299.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Layer(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Layer(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = largest(Layer(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Layer(80, name="Conv2d_3b_1x1")(x)
        x = largest(Layer(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = MixedA(pooled, name=name)(x)
        x = MixedB(name="Mixed_6a")(x)
        for name, inner in (
            ("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192),
        ):  # fmt: skip
            x = MixedC(inner, name=name)(x)
        x = MixedD(name="Mixed_7a")(x)
        x = MixedE(name="Mixed_7b")(x)
        x = MixedE(by_maximum=True, name="Mixed_7c")(x)
        return jnp.mean(x, axis=(1, 2))
