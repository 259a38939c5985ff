# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""One step of the full-size UNets beside PyTorch, with JAXGEN_FULL_SIZE=1. XL needs 11 GB on disk.

PyTorch's weights go through a file and are read tensor by tensor, so that the two copies never
stand in memory together. Latents have half their usual height and width, weights are all there.
"""

import gc
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import safetensors
import safetensors.torch
from support.networks import FULL_SIZE_UNETS, make_unet, relative_error, unet_inputs
from torch_weights import nchw, nhwc, perturb, torch_name

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.full_size,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.environ.get("JAXGEN_FULL_SIZE") != "1",
        reason="takes long and gigabytes; set JAXGEN_FULL_SIZE=1 to run",
    ),
]


@pytest.mark.parametrize("name", FULL_SIZE_UNETS)
def test_full_size_unet_equals_diffusers(name, tmp_path):
    config = FULL_SIZE_UNETS[name]
    inputs = unet_inputs(config, batch=1, size=config["sample_size"] // 2)
    file = tmp_path / "unet.safetensors"
    expected, torch_seconds = torch_step(config, inputs, file)
    gc.collect()

    unet, shapes = make_unet(config)
    params = read_tensor_by_tensor(file, shapes)
    file.unlink()
    step = jax.jit(unet.apply).lower({"params": params}, *inputs).compile()
    start = time.perf_counter()
    actual = jax.block_until_ready(step({"params": params}, *inputs))
    seconds = time.perf_counter() - start

    error = relative_error(actual, expected)
    print(f"{name}: relative error {error:.1e}, {seconds:.1f} s, PyTorch {torch_seconds:.1f} s")
    assert error < 1e-4


def torch_step(config, inputs, file):
    """PyTorch's output and seconds; leaves its weights in the file."""
    torch.manual_seed(0)
    unet = perturb(diffusers.UNet2DConditionModel(**config))
    safetensors.torch.save_file(unet.state_dict(), file)
    sample, *conditions = inputs
    t, text, pooled, sizes = (*map(torch.from_numpy, conditions), None, None)[:4]
    added = {"text_embeds": pooled, "time_ids": sizes}
    with torch.no_grad():
        start = time.perf_counter()
        out = unet(nchw(sample), t, text, added_cond_kwargs=added).sample
        return nhwc(out).copy(), time.perf_counter() - start


def read_tensor_by_tensor(file, shapes):
    with safetensors.safe_open(file, framework="numpy") as tensors:

        def read(path, leaf):
            tensor = tensors.get_tensor(torch_name(path))
            if path[-1].key == "kernel":
                tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
            return jnp.asarray(np.ascontiguousarray(tensor).reshape(leaf.shape))

        return jax.tree.map_with_path(read, shapes)
