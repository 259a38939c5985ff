# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""Perturbed attention guidance beside diffusers' pipelines, and momentum beside its guider."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.pipeline_cases import BASE, XL, ours, relative_error

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
apg = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")

import make_pipeline_values

from jaxgen.diffusion import config, guidance

pytestmark = pytest.mark.oracle
FEW = BASE | {"num_steps": 6, "pag_scale": 2.5}


@pytest.fixture
def with_pag(monkeypatch):
    classes = {
        ("sd", "text"): diffusers.StableDiffusionPAGPipeline,
        ("xl", "text"): diffusers.StableDiffusionXLPAGPipeline,
    }
    monkeypatch.setattr(make_pipeline_values, "CLASSES", classes)
    settings = (*make_pipeline_values.TEXT_SETTINGS, "pag_scale")
    monkeypatch.setattr(make_pipeline_values, "TEXT_SETTINGS", settings)


def test_other_layers_are_those_of_diffusers(with_pag, monkeypatch):
    layers, cls = ["down_blocks.0", "mid"], diffusers.StableDiffusionPAGPipeline
    own = cls.set_pag_applied_layers  # which __init__ calls
    monkeypatch.setattr(cls, own.__name__, lambda pipe, _: own(pipe, layers))
    case = FEW | {"sampler": "ddim"}
    expected = make_pipeline_values.theirs(case)
    assert relative_error(ours(case | {"pag_layers": layers}), expected) < 1e-3
    assert relative_error(ours(case), expected) > 1e-2


@pytest.mark.parametrize(
    "case",
    [
        FEW | {"sampler": "ddim"},
        FEW | {"sampler": "euler", "guidance_rescale": 0.5},
        FEW | {"sampler": "dpmpp_2m", "guidance_scale": 1.0},
        FEW | XL,
        FEW | XL | {"guidance_scale": 1.0},
    ],
)
def test_final_latents_agree(case, with_pag):
    expected = make_pipeline_values.theirs(case)
    assert relative_error(ours(case), expected) < 1e-3
    assert relative_error(ours(case | {"pag_scale": 0.0}), expected) > 1e-2


def test_momentum_is_that_of_diffusers():
    shape, parallel, limit, momentum, scale = (5, 5, 4), 0.3, 2.0, -0.5, 7.5
    table = config.from_config({"prediction_type": "sample"}, "ddim")(num_steps=3)
    rule = guidance.projection(table, np.full(1, parallel), np.full(1, limit), np.full(1, momentum))
    rule = guidance.Guidance(np.full(1, scale), np.zeros(1), rule)
    pairs = np.random.default_rng(0).normal(size=(3, 2, *shape)).astype(np.float32)
    buffer, total = apg.MomentumBuffer(momentum), jnp.zeros((1, *shape))
    for i, pair in enumerate(pairs):
        found, total = guidance.combine(rule, jnp.zeros((1, *shape)), i, jnp.asarray(pair), total)
        negative, positive = (torch.from_numpy(out[None]) for out in pair)
        # the factor beside the positive prediction is scale - 1 in the paper, and scale here
        expected = apg.normalized_guidance(
            positive, negative, scale - 1, buffer, parallel, limit, True
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
