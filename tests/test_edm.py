# SPDX-License-Identifier: MIT
"""Models of EDM, such as Playground 2.5: their own levels, times and preconditioning."""

import numpy as np
import pytest

from jaxgen.diffusion import config, sample, schedule, sigmas

EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5}


def final_scale(name, num_steps, **options):
    """What a run makes of a latent of 1 where the data are N(0, sigma_data^2): the output is 0."""
    table = config.from_config(EDM | options, name)(num_steps)
    found = sample.sample(lambda x, i: 0 * x, table, np.ones((1, 1, 1, 1)), noise=np.zeros(
        (len(table.t), 1, 1, 1, 1), np.float32))  # fmt: skip
    return float(found[0, 0, 0, 0])


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp_2m", 2)])
def test_steps_converge_to_the_flow_of_gaussian_data(name, order):
    # d x / d sigma = sigma x / (sigma^2 + sigma_data^2), from 80 to 0.002
    exact = np.sqrt((0.002**2 + 0.5**2) / (80**2 + 0.5**2))
    options = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    counts = (40, 80)
    # with "sigma_min" the last step stays at its level: a run of N steps has N - 1
    errors = [abs(final_scale(name, n + 1, **options) / exact - 1) for n in counts]
    assert errors[1] < 0.05
    assert np.log2(errors[0] / errors[1]) > 0.8 * order


def test_levels_and_times_are_edms():
    table = config.from_config(EDM)(20)
    sigma = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 20) ** 7
    np.testing.assert_allclose(table.t[:20], np.log(sigma) / 4)
    np.testing.assert_allclose(table.scale[:20], 1 / np.sqrt(sigma**2 + 0.25))
    np.testing.assert_allclose(table.noising[:20], np.stack([np.ones(20), sigma], 1))
    assert table.init_noise_sigma == np.sqrt(80**2 + 1)


def test_one_step_reaches_the_lowest_level():
    grid = sigmas.edm_grid(schedule.noise_schedule(), 1, final_sigma="sigma_min")
    np.testing.assert_allclose(grid.sigma, [80, 0.002])


def test_other_samplers_and_options_are_refused():
    for name in ("ddim", "heun", "dpmpp_2m_karras"):
        with pytest.raises(ValueError, match="levels of EDM.*use one of euler, dpmpp_2m"):
            config.from_config(EDM, name)
    for changes in ({"rho": 6.0}, {"prediction_type": "sample"}, {"sigma_data": 0}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            config.from_config(EDM | changes)(4)
