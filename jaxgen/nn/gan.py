# SPDX-License-Identifier: MIT
"""Generators and discriminators: dense ones of Goodfellow 2014, convolutional ones like DCGAN."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.nn import blocks
from jaxgen.nn.autoencoder import with_label
from jaxgen.nn.linear import Conv, Dense, Embed
from jaxgen.nn.norm import Norm
from jaxgen.types import Array


class DenseGenerator(nn.Module):
    """The fully connected generator: z [..., D] -> [..., H, W, C] in [-1, 1].

    Two hidden layers of rectifiers as in the MNIST network of Goodfellow et al. 2014
    (arXiv:1406.2661, section 5), with tanh for images in [-1, 1] where the paper has a sigmoid.
    """

    image_shape: tuple[int, int, int]
    hidden: Sequence[int] = (1200, 1200)
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        height, width, channels = self.image_shape
        h = with_label(z.astype(self.dtype), label, self.num_classes)
        for features in self.hidden:
            h = nn.relu(Dense(features, dtype=self.dtype)(h))
        x = Dense(height * width * channels, dtype=self.dtype, name="head")(h)
        return jnp.tanh(x.reshape(*z.shape[:-1], *self.image_shape).astype(jnp.float32))


class DenseDiscriminator(nn.Module):
    """The fully connected discriminator: [..., H, W, C] -> logit [...].

    Maxout layers (Goodfellow et al. 2013, arXiv:1302.4389) of `hidden` units with `pieces` pieces,
    as in Goodfellow et al. 2014 section 5; without its dropout, so that a loss needs one key only.
    `auxiliary` gives [..., 1 + num_classes]: the logit of "real", then those of the classes.
    """

    hidden: Sequence[int] = (240, 240)
    pieces: int = 5
    num_classes: int = 0
    spectral: bool = False
    auxiliary: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        dense = _layer(Dense, self.spectral)
        h = x.reshape(*x.shape[:-3], -1).astype(self.dtype)
        for i, features in enumerate(self.hidden):
            h = dense(features * self.pieces, dtype=self.dtype, name=f"Dense_{i}")(h)
            h = jnp.max(h.reshape(*h.shape[:-1], features, self.pieces), axis=-1)
        if self.auxiliary:
            return _logits(h, self.num_classes, self.spectral, self.dtype)
        return _logit(h, label, self.num_classes, self.spectral, self.dtype)


class ConvGenerator(nn.Module):
    """The convolutional generator: z [..., D] -> [..., H, W, C] in [-1, 1].

    As in DCGAN (Radford et al. 2016, arXiv:1511.06434): a projection to the smallest map, then
    stages that double the sides and halve the features down to `width`. Unlike there, the norm does
    not look at the batch unless norm = "batch", and upsampling is sub-pixel (`blocks.Upsample`).
    """

    image_shape: tuple[int, int, int]
    width: int = 64
    norm: str = "group"
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, label: Array | None = None) -> Array:
        height, width, channels = self.image_shape
        stages = blocks.num_stages(height, width)
        base = (height // 2**stages, width // 2**stages, self.width * 2**stages)

        h = with_label(z.astype(self.dtype), label, self.num_classes)
        h = Dense(base[0] * base[1] * base[2], dtype=self.dtype)(h)
        h = h.reshape(*z.shape[:-1], *base)
        h = nn.relu(Norm(self.norm, dtype=self.dtype)(h))
        for stage in reversed(range(stages)):
            h = blocks.Upsample(self.width * 2**stage, dtype=self.dtype)(h)
            h = nn.relu(Norm(self.norm, dtype=self.dtype)(h))
        x = Conv(channels, (3, 3), dtype=self.dtype, name="head")(h)
        return jnp.tanh(x.astype(jnp.float32))


class ConvDiscriminator(nn.Module):
    """The convolutional discriminator: [..., H, W, C] -> logit [...].

    4x4 convolutions with stride 2 and leaky rectifiers (slope 0.2), as in DCGAN, without norms.
    `spectral` divides every kernel by its largest singular value (Miyato et al. 2018,
    arXiv:1802.05957). `auxiliary` gives [..., 1 + num_classes] as in `DenseDiscriminator`.
    """

    width: int = 64
    num_classes: int = 0
    spectral: bool = False
    auxiliary: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None) -> Array:
        conv = _layer(Conv, self.spectral)
        h = x.astype(self.dtype)
        for stage in range(blocks.num_stages(*x.shape[-3:-1])):
            name = f"Conv_{stage}"
            h = conv(self.width * 2**stage, (4, 4), strides=2, dtype=self.dtype, name=name)(h)
            h = nn.leaky_relu(h, 0.2)
        h = h.reshape(*x.shape[:-3], -1)
        if self.auxiliary:
            return _logits(h, self.num_classes, self.spectral, self.dtype)
        return _logit(h, label, self.num_classes, self.spectral, self.dtype)


def _layer(kind: type[nn.Module], spectral: bool) -> type[nn.Module]:
    """The class of a layer, spectrally normalised if asked for."""
    return blocks.spectrally_normalized(kind) if spectral else kind


def _logits(h: Array, num_classes: int, spectral: bool, dtype: Any) -> Array:
    """The logit of "real", then those of the classes, of features h [..., D]: [..., 1 + classes].

    The auxiliary classifier of Odena et al. 2017 (arXiv:1610.09585), which is not told the label.
    """
    if num_classes < 1:
        raise ValueError("an auxiliary classifier needs classes; use a conditional network")
    head = _layer(Dense, spectral)(1 + num_classes, dtype=dtype, name="head")
    return head(h).astype(jnp.float32)


def _logit(h: Array, label: Array | None, num_classes: int, spectral: bool, dtype: Any) -> Array:
    """The logit [...] of features h [..., D], plus, with classes, h times the label's embedding.

    That is the projection discriminator of Miyato & Koyama 2018 (arXiv:1802.05637), eq. 4.
    """
    logit = _layer(Dense, spectral)(1, dtype=dtype, name="head")(h)[..., 0]
    if num_classes > 0:
        if label is None:
            raise ValueError(f"a network conditioned on {num_classes} classes needs a label")
        embed = _layer(Embed, spectral)(num_classes, h.shape[-1], dtype=dtype, name="label")
        logit = logit + jnp.sum(embed(label) * h, axis=-1)
    return logit.astype(jnp.float32)
