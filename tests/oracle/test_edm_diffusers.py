# SPDX-License-Identifier: MIT
"""Samplers of EDM beside diffusers', on a model that is a function of latent and time."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion import config, sample

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.oracle

CASES = [
    ("EDMEulerScheduler", {}),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_schedule": "exponential"}),
    ("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    ("EDMDPMSolverMultistepScheduler", {"solver_type": "heun", "prediction_type": "v_prediction"}),
]


# one exponential level is diffusers' lowest, from which no picture can begin
@pytest.mark.parametrize(
    ("name", "options", "num_steps"),
    [
        (*case, num_steps)
        for case in CASES
        for num_steps in (1, 6, 20)
        if num_steps > 1 or "sigma_schedule" not in case[1]
    ],
)
def test_latents_are_diffusers(name, options, num_steps):
    noise = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)
    theirs = getattr(diffusers, name)(**options)
    theirs.set_timesteps(num_steps)
    x = torch.from_numpy(noise).double() * theirs.init_noise_sigma
    for t in theirs.timesteps:
        scaled = theirs.scale_model_input(x, t)
        x = theirs.step(torch.sin(2 * scaled) + 0.1 * t, t, x).prev_sample
    table = config.from_config({"_class_name": name, **options})(num_steps)
    denoise = sample.at_times(lambda x, t: jnp.sin(2 * x) + 0.1 * t, table)
    start = sample.scaled_noise(table, noise)
    zeros = np.zeros((len(table.t), *noise.shape), np.float32)
    found = sample.sample(denoise, table, start, noise=zeros)
    np.testing.assert_allclose(found, x.numpy(), rtol=1e-4, atol=1e-4 * float(x.abs().max()))
