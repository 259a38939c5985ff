# SPDX-License-Identifier: MIT
"""The Inception network of the FID, with weights that the user has: uint8 images -> features.

jaxgen ships no such weights. They are those that pytorch-fid converted from TensorFlow, as a
safetensors file with its names ("Mixed_5b.branch1x1.conv.weight", "....bn.running_var").
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import files
from jaxgen.nn import functional, inception
from jaxgen.train import augment
from jaxgen.types import Array, Params
from jaxgen.weights import layout, tensors
from jaxgen.weights.tensors import Tensor

BATCH = 50  # images at once; each is 299 x 299 inside
UNUSED = ("fc.", "AuxLogits.")  # the classifiers' weights, which features do not need
NETWORK = inception.Inception()


def read(path: Path, digest: str | None = None) -> Params:
    """Reads the parameters in a safetensors file, each batch norm folded into its convolution.

    digest: the SHA-256 that the file must have, 64 hexadecimal digits. Raises ValueError for a
    missing or damaged file, another digest, and tensors that are unknown, missing or misshaped.
    """
    with files.one_error(path):
        stored = tensors.open_file(path)
        if digest is not None:
            check_digest(path, digest)
        shapes = jax.eval_shape(
            lambda: functional.init(NETWORK, jax.random.key(0), jnp.zeros((1, 75, 75, 3)))
        )
        return layout.load(folded(stored), shapes)


def check_digest(path: Path, digest: str) -> None:
    """Raises ValueError unless the file has this SHA-256."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest.lower():
        raise ValueError(
            f"{path} has the SHA-256 {actual}, not {digest.lower()}; fetch the file again or give "
            f"the digest that its source states"
        )


def folded(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Folds each batch norm into its convolution, which then has one weight and one bias.

        scale = gamma / sqrt(variance + 0.001),   weight scale,   beta - mean scale

    A convolution without all four tensors of its norm is passed on, and `layout.load` names it.
    """
    result = {
        name: tensor
        for name, tensor in stored.items()
        if not name.startswith(UNUSED) and not name.endswith("num_batches_tracked")
    }
    for name in [name for name in result if name.endswith(".conv.weight")]:
        layer = name.removesuffix(".conv.weight")
        parts = [f"{layer}.bn.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        if not all(part in result for part in parts):
            continue
        norm = [result.pop(part) for part in parts]
        weight = result[name]
        result[name] = Tensor(weight.shape, weight.dtype, partial(_weight, weight, norm))
        result[f"{layer}.conv.bias"] = Tensor(norm[0].shape, norm[0].dtype, partial(_bias, norm))
    return result


def _weight(weight: Tensor, norm: list[Tensor]) -> np.ndarray:
    values = np.asarray(weight.read(), np.float32)
    return values * _scale(norm).reshape(-1, 1, 1, 1)


def _bias(norm: list[Tensor]) -> np.ndarray:
    beta, mean = (np.asarray(tensor.read(), np.float32) for tensor in norm[1:3])
    return beta - mean * _scale(norm)


def _scale(norm: list[Tensor]) -> np.ndarray:
    gamma, variance = (np.asarray(norm[i].read(), np.float32) for i in (0, 3))
    return gamma / np.sqrt(variance + inception.EPSILON)


def features_of(params: Params) -> Callable[[np.ndarray], np.ndarray]:
    """Builds the function uint8 images [N, H, W, 1 or 3] -> features [N, 2048].

    Images become 299 x 299 by linear interpolation without a filter, as in pytorch-fid; grey ones
    get three equal channels.
    """

    def features(images: np.ndarray) -> np.ndarray:
        parts, size = [], min(BATCH, len(images))
        for start in range(0, len(images), size):
            part = images[start : start + size]
            whole = np.resize(part, (size, *part.shape[1:]))  # one size compiles once
            parts.append(np.asarray(_apply(params, jnp.asarray(whole)))[: len(part)])
        return np.concatenate(parts)

    return features


@jax.jit
def _apply(params: Params, images: Array) -> Array:
    x = augment.to_unit_range(images)
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    return functional.apply(NETWORK)(params, resized(x))


def resized(x: Array) -> Array:
    """Resizes images [B, H, W, C] to 299 x 299, linearly between the centres of pixels."""
    shape = (len(x), inception.SIDE, inception.SIDE, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=False)
