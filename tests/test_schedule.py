# SPDX-License-Identifier: MIT
"""Schedules, spacings and noise levels against closed forms and published values."""

import numpy as np
import pytest

from jaxgen.diffusion import schedule, sigmas
from jaxgen.weights import ldm_configs


def test_scaled_linear_betas_give_the_known_ends_of_stable_diffusion():
    ac = schedule.noise_schedule().alphas_cumprod
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # float64, no rounding between
    np.testing.assert_allclose(ac, np.cumprod(1 - betas), rtol=2e-6)
    assert ac[-1] == pytest.approx(0.00466, abs=5e-6)
    # the levels that are quoted for these models
    train = schedule.training_sigmas(schedule.noise_schedule())
    assert train[-1] == pytest.approx(14.6146, abs=1e-3)
    assert train[0] == pytest.approx(0.0292, abs=1e-4)


def test_cosine_schedule_follows_its_closed_form_up_to_the_cap():
    ac = schedule.noise_schedule(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    u = np.arange(1, 1001) / 1000
    closed = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(ac[:-2], closed[:-2], rtol=2e-4)


def test_given_betas_override_the_formula():
    made = schedule.noise_schedule(trained_betas=[0.5, 0.5])
    np.testing.assert_array_equal(made.alphas_cumprod, [0.5, 0.25])


def test_zero_terminal_snr_ends_at_zero_and_keeps_the_first_step():
    plain = schedule.noise_schedule().alphas_cumprod
    made = schedule.noise_schedule(zero_terminal_snr=True)
    root, plain_root = np.sqrt(made.alphas_cumprod), np.sqrt(plain)
    assert made.alphas_cumprod[-1] == 0
    assert root[0] == pytest.approx(plain_root[0], rel=1e-6)
    # algorithm 1 shifts and scales sqrt(ac), so its differences keep their ratios
    np.testing.assert_allclose(
        np.diff(root) / np.diff(plain_root), plain_root[0] / (plain_root[0] - plain_root[-1]),
        rtol=2e-3,
    )  # fmt: skip
    assert np.isfinite(schedule.training_sigmas(made)).all()
    assert schedule.training_sigmas(made)[-1] == pytest.approx(4096, rel=1e-4)


def test_leading_uses_steps_offset_and_trailing_starts_at_the_last_timestep():
    """Fault 3 of the last Flax schedulers: a literal 1 for the offset, and no trailing."""
    model = schedule.noise_schedule()
    assert schedule.integer_timesteps(model, 50, "leading", 1)[[0, 1, -1]].tolist() == [981, 961, 1]
    assert schedule.integer_timesteps(model, 50, "leading", 0)[[0, -1]].tolist() == [980, 0]
    trailing = schedule.integer_timesteps(model, 50, "trailing", 1)
    assert trailing[[0, 1, -1]].tolist() == [999, 979, 19]


def test_linspace_times_stay_fractional():
    times = schedule.timesteps(1000, 20, "linspace")
    assert times[[0, -1]].tolist() == [999, 0]
    assert times[1] == pytest.approx(946.42, abs=5e-3)


def test_interval_timesteps_divide_by_one_more():
    model = schedule.noise_schedule()
    leading = schedule.interval_timesteps(model, 4, "leading", 1)
    assert leading.tolist() == [801, 601, 401, 201]
    assert schedule.interval_timesteps(model, 4, "linspace").tolist() == [999, 749, 500, 250]


def test_trailing_gives_as_many_times_as_steps_for_every_number_of_steps():
    for num_steps in range(1, 1001):
        times = schedule.timesteps(1000, num_steps, "trailing")
        assert len(times) == num_steps
        assert times[0] == 999
        assert times[-1] >= 0


def test_more_steps_than_training_steps_are_refused():
    model = schedule.noise_schedule()
    with pytest.raises(ValueError, match="num_steps is 1001; this schedule allows 1 to 1000"):
        schedule.integer_timesteps(model, 1001, "leading")
    with pytest.raises(ValueError, match="num_steps is 0"):
        schedule.timesteps(1000, 0, "linspace")
    with pytest.raises(ValueError, match="start at timestep 1000"):
        schedule.integer_timesteps(model, 1000, "leading", 1)


def test_unknown_words_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="beta_schedule is 'cubic'; known are linear"):
        schedule.noise_schedule(beta_schedule="cubic")
    with pytest.raises(ValueError, match="prediction_type is 'flow'; known are epsilon"):
        schedule.noise_schedule(prediction_type="flow")
    with pytest.raises(ValueError, match="spacing is 'even'; known are leading"):
        schedule.timesteps(1000, 5, "even")
    with pytest.raises(ValueError, match="levels is 'log'; known are None, karras"):
        sigmas.placed("log", 0.1, 1.0, 5)
    with pytest.raises(ValueError, match="final_sigma is 'one'; known are zero"):
        sigmas.final_level("one", 0.1)


def test_strength_skips_the_steps_that_diffusers_skips():
    assert [schedule.start_step(50, s) for s in (1.0, 0.8, 0.5, 0.01, 0.0)] == [0, 10, 25, 50, 50]
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            schedule.start_step(50, strength)


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_placed_levels_descend_from_the_highest_to_the_lowest(kind):
    levels = sigmas.placed(kind, 0.03, 14.6, 12)
    assert len(levels) == 12
    np.testing.assert_allclose(levels[[0, -1]], [14.6, 0.03], rtol=1e-9)
    assert (np.diff(levels) < 0).all()


def test_placed_levels_are_even_in_their_own_variable():
    karras = sigmas.placed("karras", 0.03, 14.6, 12) ** (1 / 7)
    np.testing.assert_allclose(np.diff(karras, 2), 0, atol=1e-12)
    exponential = np.log(sigmas.placed("exponential", 0.03, 14.6, 12))
    np.testing.assert_allclose(np.diff(exponential, 2), 0, atol=1e-12)
    # Beta(0.6, 0.6) is symmetric: the middle of the ramp is the middle of the range
    assert sigmas.placed("beta", 1.0, 3.0, 5)[2] == pytest.approx(2.0)


def test_times_of_levels_invert_the_levels_of_times():
    train = schedule.training_sigmas(schedule.noise_schedule())
    times = np.array([999.0, 500.0, 123.0, 0.0])
    # 1e-4: the table of logarithms is rounded to float32
    np.testing.assert_allclose(sigmas.times_of(train[times.astype(int)], train), times, atol=1e-4)
    middle = np.sqrt(train[500] * train[501])
    assert sigmas.times_of(np.array([middle]), train)[0] == pytest.approx(500.5, abs=1e-3)
    assert sigmas.times_of(np.array([1e-3, 100.0]), train).tolist() == [0, 999]


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_start": 0.9, "beta_end": 0.9999999},  # no signal is left long before the end
        {"beta_start": 1e-12, "beta_end": 1e-12},  # no noise in float32
        {"trained_betas": [0.5, 1.0, 0.5]},
    ],
)
def test_betas_that_leave_no_signal_or_no_noise_are_refused(betas):
    with pytest.raises(ValueError, match="too near 0 or 1: alphas_cumprod goes from"):
        schedule.noise_schedule(**betas)


def test_one_training_step_cannot_be_rescaled():
    with pytest.raises(ValueError, match="more than one training timestep"):
        schedule.noise_schedule(num_train_steps=1, zero_terminal_snr=True)


def test_both_homes_of_the_betas_of_stable_diffusion_agree():
    # the rooms do not import each other: a single file's config is written in weights
    assert schedule.STABLE_DIFFUSION_BETAS.items() <= ldm_configs.BETAS.items()
