# SPDX-License-Identifier: MIT
"""Weights between PyTorch modules and parameter trees, written apart from the package's reader."""

import re

import jax
import numpy as np
import torch


def torch_module(path):
    """The PyTorch name of a submodule "a/b_3": "a.b.3"."""
    own = ("linear_1", "linear_2")  # names that end in a number of their own
    parts = path.split("/")
    return ".".join(part if part in own else re.sub(r"_(\d+)$", r".\1", part) for part in parts)


def torch_name(path):
    """The PyTorch name of a leaf, whose last part is weight or bias."""
    module = torch_module("/".join(key.key for key in path[:-1]))
    return module + (".bias" if path[-1].key == "bias" else ".weight")


def from_torch(state, shapes):
    """The parameter tree of a state dict; every tensor must be used once."""
    state = {name: tensor.numpy() for name, tensor in state.items() if "position_ids" not in name}

    def take(path, leaf):
        tensor = state.pop(torch_name(path))
        if path[-1].key == "kernel":
            tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
        tensor = tensor.reshape(leaf.shape) if tensor.size == np.prod(leaf.shape) else tensor
        assert tensor.shape == leaf.shape, path
        return np.ascontiguousarray(tensor)

    params = jax.tree.map_with_path(take, shapes)
    assert not state, f"unused tensors: {sorted(state)}"
    return params


def to_torch(params, module):
    """Loads a parameter tree into a PyTorch module, in place."""
    flat = {
        torch_name(path): (path[-1].key, np.asarray(leaf))
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    state = {}
    for name, tensor in module.state_dict().items():
        if "position_ids" in name:
            continue
        kind, leaf = flat.pop(name)
        leaf = np.moveaxis(leaf, (-1, -2), (0, 1)) if kind == "kernel" else leaf
        state[name] = torch.from_numpy(np.ascontiguousarray(leaf)).reshape(tensor.shape)
    assert not flat, f"unused leaves: {sorted(flat)}"
    module.load_state_dict(state, strict=False)
    return module.eval()


def perturb(module, seed=0):
    """Moves norms' scales away from 1 and all biases away from 0, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def nchw(x):
    """[B, H, W, C] as a PyTorch tensor [B, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(tensor):
    """[B, C, H, W] as a NumPy array [B, H, W, C]."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)
