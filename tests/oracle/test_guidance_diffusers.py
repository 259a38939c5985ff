# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""Adaptive projected guidance beside diffusers', on models that predict x_0."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
apg = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")

from jaxgen.diffusion import config, guidance

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(("parallel", "limit"), [(0.0, 0.0), (0.3, 2.0), (1.0, 5.0)])
def test_projections_are_diffusers(parallel, limit):
    rng = np.random.default_rng(0)
    negative, positive = rng.standard_normal((2, 3, 5, 5, 4)).astype(np.float32)
    table = config.from_config({"prediction_type": "sample"}, "ddim")(num_steps=2)
    rule = guidance.projection(table, np.full(3, parallel), np.full(3, limit or np.inf))
    outputs = jnp.stack([negative, positive], 1).reshape(6, 5, 5, 4)
    found = guidance.guide(lambda x, i: outputs, np.full(3, 7.5), np.zeros(3), rule)(
        jnp.zeros((3, 5, 5, 4)), 0
    )
    # theirs adds scale times the change, and ours, as the paper, scale - 1 times
    expected = apg.normalized_guidance(
        torch.from_numpy(positive), torch.from_numpy(negative), 6.5, None, parallel, limit, True
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
