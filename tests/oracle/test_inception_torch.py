# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""Inception against a PyTorch network with torchvision's names, its pools as the FID has them."""

import hashlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import safetensors.torch
from torch import nn
from torch.nn import functional as F

from jaxgen.evaluate import features, inception

pytestmark = pytest.mark.oracle

# name: (inputs, outputs, kernel, stride, padding), in the order of torchvision's file
STEM = {
    "Conv2d_1a_3x3": (3, 32, 3, 2, 0), "Conv2d_2a_3x3": (32, 32, 3, 1, 0),
    "Conv2d_2b_3x3": (32, 64, 3, 1, 1), "Conv2d_3b_1x1": (64, 80, 1, 1, 0),
    "Conv2d_4a_3x3": (80, 192, 3, 1, 0),
}  # fmt: skip
WIDE, TALL = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
LAST_POOL = nn.MaxPool2d(3, 1, 1)
FLAT, HIGH = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))


class Unit(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride, padding):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Chains of units; a tuple of names at the end of a chain is a fork."""

    def __init__(self, chains, pool, units):
        super().__init__()
        self.chains, self.pool = chains, pool
        for name, spec in units.items():
            self.add_module(name, Unit(*spec))

    def forward(self, x):
        outputs = []
        for chain in self.chains:
            h = x
            for name in chain:
                if name == "pool":
                    h = self.pool(h)
                elif isinstance(name, tuple):
                    h = torch.cat([getattr(self, one)(h) for one in name], 1)
                else:
                    h = getattr(self, name)(h)
            outputs.append(h)
        return torch.cat(outputs, 1)


def mean(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def block_a(c, pooled):
    chains = [
        ["branch1x1"], ["branch5x5_1", "branch5x5_2"],
        ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["pool", "branch_pool"],
    ]  # fmt: skip
    return Block(chains, mean, {
        "branch1x1": (c, 64, 1, 1, 0), "branch5x5_1": (c, 48, 1, 1, 0),
        "branch5x5_2": (48, 64, 5, 1, 2), "branch3x3dbl_1": (c, 64, 1, 1, 0),
        "branch3x3dbl_2": (64, 96, 3, 1, 1), "branch3x3dbl_3": (96, 96, 3, 1, 1),
        "branch_pool": (c, pooled, 1, 1, 0),
    })  # fmt: skip


def block_b(c):
    chains = [
        ["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["pool"],
    ]  # fmt: skip
    return Block(chains, nn.MaxPool2d(3, 2), {
        "branch3x3": (c, 384, 3, 2, 0), "branch3x3dbl_1": (c, 64, 1, 1, 0),
        "branch3x3dbl_2": (64, 96, 3, 1, 1), "branch3x3dbl_3": (96, 96, 3, 2, 0),
    })  # fmt: skip


def block_c(c, k):
    double = [f"branch7x7dbl_{i}" for i in range(1, 6)]
    chains = [
        ["branch1x1"], ["branch7x7_1", "branch7x7_2", "branch7x7_3"], double,
        ["pool", "branch_pool"],
    ]  # fmt: skip
    return Block(chains, mean, {
        "branch1x1": (c, 192, 1, 1, 0), "branch7x7_1": (c, k, 1, 1, 0),
        "branch7x7_2": (k, k, *WIDE), "branch7x7_3": (k, 192, *TALL),
        "branch7x7dbl_1": (c, k, 1, 1, 0), "branch7x7dbl_2": (k, k, *TALL),
        "branch7x7dbl_3": (k, k, *WIDE), "branch7x7dbl_4": (k, k, *TALL),
        "branch7x7dbl_5": (k, 192, *WIDE), "branch_pool": (c, 192, 1, 1, 0),
    })  # fmt: skip


def block_d(c):
    long = [f"branch7x7x3_{i}" for i in range(1, 5)]
    return Block([["branch3x3_1", "branch3x3_2"], long, ["pool"]], nn.MaxPool2d(3, 2), {
        "branch3x3_1": (c, 192, 1, 1, 0), "branch3x3_2": (192, 320, 3, 2, 0),
        "branch7x7x3_1": (c, 192, 1, 1, 0), "branch7x7x3_2": (192, 192, *WIDE),
        "branch7x7x3_3": (192, 192, *TALL), "branch7x7x3_4": (192, 192, 3, 2, 0),
    })  # fmt: skip


def block_e(c, pool):
    chains = [
        ["branch1x1"], ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
        ["pool", "branch_pool"],
    ]  # fmt: skip
    return Block(chains, pool, {
        "branch1x1": (c, 320, 1, 1, 0), "branch3x3_1": (c, 384, 1, 1, 0),
        "branch3x3_2a": (384, 384, *FLAT), "branch3x3_2b": (384, 384, *HIGH),
        "branch3x3dbl_1": (c, 448, 1, 1, 0), "branch3x3dbl_2": (448, 384, 3, 1, 1),
        "branch3x3dbl_3a": (384, 384, *FLAT), "branch3x3dbl_3b": (384, 384, *HIGH),
        "branch_pool": (c, 192, 1, 1, 0),
    })  # fmt: skip


class Reference(nn.Module):
    def __init__(self, inner=mean, last=LAST_POOL):
        super().__init__()
        for name, spec in STEM.items():
            self.add_module(name, Unit(*spec))
        for name, c, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            self.add_module(f"Mixed_{name}", block_a(c, pooled))
        self.Mixed_6a = block_b(288)
        for name, k in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            self.add_module(f"Mixed_{name}", block_c(768, k))
        self.Mixed_7a = block_d(768)
        self.Mixed_7b, self.Mixed_7c = block_e(1280, inner), block_e(2048, last)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        for name, module in self.named_children():
            if name != "fc":
                x = module(x)
                x = F.max_pool2d(x, 3, 2) if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3") else x
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def network():
    """He's start with norms that do something, so that activations keep their size."""
    generator = torch.Generator().manual_seed(0)
    module = Reference()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            noise = torch.randn(value.shape, generator=generator) if value.ndim else None
            if name.endswith("conv.weight"):
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif ".bn." in name and value.ndim:
                value.add_(0.1 * noise)
    return module.eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return path


def test_features_of_small_images_are_those_of_pytorch(network, file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = features.by_name(f"inception:{file}:{digest}", lambda: pytest.fail("no judge"))
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1) / 255
    x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = network(2 * x - 1).numpy()
    assert (found.width, found.frechet) == (2048, "FID")
    assert expected.std() > 0.1
    np.testing.assert_allclose(found.networks[0](images), expected, rtol=1e-4, atol=1e-4)


def test_without_a_digest_it_is_no_fid(file):
    found = features.by_name(f"inception:{file}", lambda: pytest.fail("no judge"))
    assert found.frechet == "frechet"
    assert "not verified" in found.name
    with pytest.raises(ValueError, match=f"has the SHA-256 .*, not {'0' * 64}; fetch the file"):
        inception.read(file, "0" * 64)
