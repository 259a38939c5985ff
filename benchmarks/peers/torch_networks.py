# SPDX-License-Identifier: MIT
"""Twins in PyTorch of the networks of jaxgen.nn, with the weights of a linen original.

PyTorch pads a 3x3 convolution of stride 2 above and left where linen pads it below and right. So
the twins take and return images turned by 180 degrees, and all kernels are turned too: the same
function, at no cost in either framework.
"""

from math import gcd
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jaxgen.nn import autoencoder, blocks, gan
from jaxgen.types import Params

Shape = tuple[int, int, int]  # [H, W, C]


class Dense(nn.Linear):
    """linen's Dense; `before` and `after` are the image shapes of its input and of its output."""

    def __init__(
        self, path: str, inputs: int, outputs: int, before: Any = None, after: Any = None
    ) -> None:
        super().__init__(inputs, outputs)
        self.path, self.before, self.after = path, before, after

    def take(self, params: Params) -> None:
        kernel, bias = (np.asarray(params[name]) for name in ("kernel", "bias"))
        rows = _turned_places(self.before, kernel.shape[0])
        columns = _turned_places(self.after, kernel.shape[1])
        _fill(self.weight, kernel[rows][:, columns].T)
        _fill(self.bias, bias[columns])


class Conv(nn.Conv2d):
    """linen's Conv with "SAME" padding; `shuffled` says that depth to space follows."""

    def __init__(
        self, path: str, inputs: int, outputs: int, size: int = 3, stride: int = 1,
        shuffled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(inputs, outputs, size, stride, padding=1)
        self.path, self.shuffled = path, shuffled

    def take(self, params: Params) -> None:
        kernel, bias = (np.asarray(params[name]) for name in ("kernel", "bias"))
        order = np.arange(len(bias))
        if self.shuffled:  # features are (y, x, c) there, (c, y, x) here, y and x turned
            order = order.reshape(2, 2, -1)[::-1, ::-1].transpose(2, 0, 1).reshape(-1)
        _fill(self.weight, kernel[::-1, ::-1, :, order].transpose(3, 2, 0, 1))
        _fill(self.bias, bias[order])


class GroupNorm(nn.GroupNorm):
    def __init__(self, path: str, features: int) -> None:
        super().__init__(gcd(8, features), features, eps=1e-5)
        self.path = path

    def take(self, params: Params) -> None:
        _fill(self.weight, np.asarray(params["scale"]))
        _fill(self.bias, np.asarray(params["bias"]))


class Maxout(nn.Module):
    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.pieces)).amax(-1)


def twin(module: Any, inputs: Shape | int) -> nn.Sequential:
    """The twin of a linen module with new weights, for inputs of this shape or so many latents.

    Raises ValueError for other modules, for conditional ones and for spectral norm.
    """
    if module.num_classes or getattr(module, "spectral", False):
        raise ValueError("the PyTorch twins are neither conditional nor spectrally normalised")
    match module:
        case autoencoder.DenseEncoder():
            layers = _dense_encoder(module, inputs)
        case autoencoder.DenseDecoder():
            layers = _dense_decoder(module, inputs, tuple(reversed(module.hidden)))
        case autoencoder.ConvEncoder():
            layers = _conv_encoder(module, inputs)
        case autoencoder.ConvDecoder():
            layers = _conv_decoder(module, inputs)
        case gan.DenseGenerator():
            layers = [*_dense_decoder(module, inputs, tuple(module.hidden)), nn.Tanh()]
        case gan.DenseDiscriminator():
            layers = _dense_discriminator(module, inputs)
        case gan.ConvGenerator():
            layers = _conv_generator(module, inputs)
        case gan.ConvDiscriminator():
            layers = _conv_discriminator(module, inputs)
        case _:
            raise ValueError(f"no PyTorch twin for {type(module).__name__}")
    return nn.Sequential(*layers)


def take(network: nn.Module, params: Params) -> None:
    """Fills a twin with the weights of its linen original.

    Raises ValueError unless both have the same number.
    """
    for layer in network.modules():
        path = getattr(layer, "path", None)
        if isinstance(path, str):
            part = params
            for name in path.split("/"):
                part = part[name]
            layer.take(part)  # pyrefly: ignore[not-callable]
    ours, theirs = _count(params), sum(p.numel() for p in network.parameters())
    if ours != theirs:
        raise ValueError(f"the twin has {theirs} parameters and the original {ours}")


def turned(images: np.ndarray) -> np.ndarray:
    """The images [N, H, W, C] as the twins take them: [N, C, H, W], turned by 180 degrees."""
    return np.ascontiguousarray(images[:, ::-1, ::-1].transpose(0, 3, 1, 2))


# --- networks ----------------------------------------------------------------------------------


def _dense_encoder(module: Any, shape: Any) -> list[nn.Module]:
    sizes = [shape[0] * shape[1] * shape[2], *module.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(len(module.hidden)):
        layers += [Dense(f"Dense_{i}", *sizes[i : i + 2], before=None if i else shape), nn.ReLU()]
    return [*layers, Dense("head", sizes[-1], module.outputs)]


def _dense_decoder(module: Any, latents: Any, hidden: tuple[int, ...]) -> list[nn.Module]:
    h, w, c = module.image_shape
    sizes = [latents, *hidden]
    layers: list[nn.Module] = []
    for i in range(len(hidden)):
        layers += [Dense(f"Dense_{i}", *sizes[i : i + 2]), nn.ReLU()]
    head = Dense("head", sizes[-1], h * w * c, after=module.image_shape)
    return [*layers, head, nn.Unflatten(1, (c, h, w))]


def _dense_discriminator(module: Any, shape: Any) -> list[nn.Module]:
    sizes = [shape[0] * shape[1] * shape[2], *module.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, features in enumerate(module.hidden):
        before = None if i else shape
        layers += [Dense(f"Dense_{i}", sizes[i], features * module.pieces, before=before)]
        layers += [Maxout(module.pieces)]
    return [*layers, Dense("head", sizes[-1], 1), nn.Flatten(0)]


def _conv_encoder(module: Any, shape: Any) -> list[nn.Module]:
    _check_norm(module, "none")
    h, w, features = shape
    layers: list[nn.Module] = []
    for stage in range(blocks.num_stages(h, w)):
        layers += [Conv(f"Conv_{stage}", features, module.width * 2**stage, stride=2), nn.SiLU()]
        h, w, features = h // 2, w // 2, module.width * 2**stage
    flat = Dense("Dense_0", h * w * features, module.hidden, before=(h, w, features))
    return [*layers, nn.Flatten(), flat, nn.SiLU(), Dense("head", module.hidden, module.outputs)]


def _conv_decoder(module: Any, latents: Any) -> list[nn.Module]:
    _check_norm(module, "none")
    h, w, c = module.image_shape
    stages = blocks.num_stages(h, w)
    h, w, features = h // 2**stages, w // 2**stages, module.width * 2 ** (stages - 1)
    base = Dense("Dense_1", module.hidden, h * w * features, after=(h, w, features))
    layers = [Dense("Dense_0", latents, module.hidden), nn.SiLU(), base, nn.SiLU()]
    layers += [nn.Unflatten(1, (features, h, w))]
    for i, stage in enumerate(reversed(range(1, stages))):
        after = module.width * 2 ** (stage - 1)
        layers += [*_upsample(f"Upsample_{i}/Conv_0", features, after), nn.SiLU()]
        features = after
    return [*layers, *_upsample("head/Conv_0", features, c)]


def _conv_generator(module: Any, latents: Any) -> list[nn.Module]:
    _check_norm(module, "group")
    h, w, c = module.image_shape
    stages = blocks.num_stages(h, w)
    h, w, features = h // 2**stages, w // 2**stages, module.width * 2**stages
    layers: list[nn.Module] = [Dense("Dense_0", latents, h * w * features, after=(h, w, features))]
    layers += [nn.Unflatten(1, (features, h, w)), GroupNorm("Norm_0/GroupNorm_0", features)]
    layers += [nn.ReLU()]
    for i, stage in enumerate(reversed(range(stages))):
        after = module.width * 2**stage
        layers += _upsample(f"Upsample_{i}/Conv_0", features, after)
        layers += [GroupNorm(f"Norm_{i + 1}/GroupNorm_0", after), nn.ReLU()]
        features = after
    return [*layers, Conv("head", features, c), nn.Tanh()]


def _conv_discriminator(module: Any, shape: Any) -> list[nn.Module]:
    h, w, features = shape
    layers: list[nn.Module] = []
    for stage in range(blocks.num_stages(h, w)):
        after = module.width * 2**stage
        layers += [Conv(f"Conv_{stage}", features, after, size=4, stride=2), nn.LeakyReLU(0.2)]
        h, w, features = h // 2, w // 2, after
    head = Dense("head", h * w * features, 1, before=(h, w, features))
    return [*layers, nn.Flatten(), head, nn.Flatten(0)]


def _upsample(path: str, before: int, after: int) -> list[nn.Module]:
    return [Conv(path, before, 4 * after, shuffled=True), nn.PixelShuffle(2)]


# --- weights -----------------------------------------------------------------------------------


def _turned_places(shape: Shape | None, size: int) -> np.ndarray:
    """The place in [H, W, C] of each entry of a turned [C, H, W]; 0, 1, 2, ... without a shape."""
    places = np.arange(size)
    if shape is None:
        return places
    return places.reshape(shape)[::-1, ::-1].transpose(2, 0, 1).reshape(-1)


def _fill(parameter: Any, values: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(values)))


def _count(params: Params) -> int:
    if hasattr(params, "items"):
        return sum(_count(part) for part in params.values())
    return params.size


def _check_norm(module: Any, expected: str) -> None:
    if module.norm != expected:
        raise ValueError(f"the PyTorch twin of {type(module).__name__} has norm={expected!r} only")


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + e^x), without the threshold above which torch's default returns x itself."""
    return F.softplus(x, threshold=1e9)
