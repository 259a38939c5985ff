# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""DeepCache beside diffusers, whose UNet runs whole every time and has one input replaced."""

import contextlib

import pytest
from support.pipeline_cases import BASE, IMAGE, XL, ours, relative_error

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from make_pipeline_values import components, theirs

pytestmark = pytest.mark.oracle


@contextlib.contextmanager
def caching(unet, interval):
    """What the last resnet of the way up gets beside its skip is that of the last full step."""
    kept, count = [None], [0]
    skip = unet.config.block_out_channels[0]

    def replaced(module, args):
        x, *rest = args
        deep, own = x[:, :-skip], x[:, -skip:]
        if count[0] % interval == 0:
            kept[0] = deep
        count[0] += 1
        return torch.cat([kept[0], own], 1), *rest

    hook = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(replaced)
    yield
    hook.remove()


@pytest.mark.parametrize(
    "case",
    [
        BASE | {"cache_interval": 3, "sampler": "ddim"},
        BASE | {"cache_interval": 2, "sampler": "heun", "num_steps": 6},
        BASE | XL | {"cache_interval": 4, "num_steps": 10},
        BASE | IMAGE | {"cache_interval": 2, "sampler": "euler", "num_steps": 10},
        BASE | {"cache_interval": 5, "sampler": "dpmpp_2m", "guidance_scale": 1.0},
    ],
)
def test_final_latents_agree(case):
    plain = {name: value for name, value in case.items() if name != "cache_interval"}
    with caching(components(case["kind"])[0]["unet"], case["cache_interval"]):
        expected = theirs(plain)
    error = relative_error(ours(case), expected)
    assert error < 1e-3
    assert relative_error(theirs(plain), expected) > 10 * error
