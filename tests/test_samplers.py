# SPDX-License-Identifier: MIT
"""Every sampler's table: equal to diffusers' linear maps, of its order, and with its moments.

The stored maps come from tests/oracle/make_sampler_values.py; the rest is NumPy and closed forms.
"""

import json
import pathlib

import numpy as np
import pytest
import support.sampler_maps as maps

from jaxgen.diffusion import config, prediction, samplers, schedule, sigmas

STORED = np.load(pathlib.Path(__file__).parent / "data" / "samplers.npz")
CASES = json.loads(STORED["cases"].tobytes())


def table_of_case(case):
    sampler = config.from_config(
        case["config"], case.get("name"), case.get("eta"),
        pipeline=case.get("pipeline"), times=case.get("times"),
    )  # fmt: skip
    return sampler(case["num_steps"], case.get("start_step", 0))


def relative_error(found, expected):
    scale = np.abs(expected).max()
    return np.abs(found - expected).max() / scale


def test_stored_maps_cover_every_sampler():
    assert {case["name"] for case in CASES if "name" in case} == set(config.SAMPLERS)


@pytest.mark.parametrize("name", [*config.SAMPLERS, None])
def test_tables_are_the_linear_maps_of_diffusers(name):
    numbers = [i for i, case in enumerate(CASES) if case.get("name") == name]
    assert numbers
    for number in numbers:
        case = CASES[number]
        table = table_of_case(case)
        found = maps.linear_map(table)
        rows = maps.rows_of(table)
        where = str(case)
        np.testing.assert_allclose(table.t[rows], STORED[f"t_{number}"], atol=1e-3, err_msg=where)
        # 5e-6: diffusers rounds its sigmas and alphas to float32
        assert relative_error(found.inputs[-1], STORED[f"inputs_{number}"]) < 5e-6, where
        assert relative_error(found.latents[-1], STORED[f"latents_{number}"]) < 5e-6, where
        assert relative_error(table.noising[rows], STORED[f"noising_{number}"]) < 5e-6, where
        assert table.init_noise_sigma == pytest.approx(STORED[f"init_{number}"], rel=1e-6), where


# factory, its options, and the order it must show; "trailing" puts a row at t = 199 for each size
ORDERS = {
    "ddim": (samplers.ddim, {}, 1),
    "euler": (samplers.euler, {}, 1),
    "heun": (samplers.heun, {}, 2),
    "dpm2": (samplers.dpm2, {}, 2),
    "lms": (samplers.lms, {}, 3),
    "dpmpp_1m": (samplers.dpm_multistep, {"order": 1}, 1),
    "dpmpp_2m": (samplers.dpm_multistep, {}, 2),
    "dpmpp_2m heun": (samplers.dpm_multistep, {"solver_type": "heun"}, 2),
    "dpm_2m": (
        samplers.dpm_multistep, {"algorithm": "dpmsolver", "final_sigma": "sigma_min"}, 1.9
    ),
    # its first step is of first order, h^2 for ever
    "dpmpp_3m": (samplers.dpm_multistep, {"order": 3}, 1.9),
    "deis 1": (samplers.deis, {"order": 1}, 1),
    "deis 2": (samplers.deis, {}, 1.9),
    "deis 3": (samplers.deis, {"order": 3}, 2.8),
    "unipc 1": (samplers.unipc, {"order": 1}, 1.9),  # the corrector adds one order
    "unipc 2": (samplers.unipc, {}, 3),
    "unipc 3": (samplers.unipc, {"order": 3}, 3.4),
}  # fmt: skip


def error_at_199(model, table):
    """Distance from the exact trajectory of the latent that the last row at t = 199 receives."""
    rows = list(maps.rows_of(table))
    row = [i for i in rows if table.t[i] == 199][-1]
    return abs(maps.latents_of_ode(model, table)[row] - maps.exact_latent(table, row, 1.3))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("method", ORDERS)
def test_order_of_convergence_on_the_gaussian_ode(method, prediction_type):
    factory, options, order = ORDERS[method]
    model = schedule.noise_schedule(prediction_type=prediction_type)
    coarse, fine = (
        error_at_199(model, maps.table(factory, model, n, spacing="trailing", **options))
        for n in (50, 100)
    )
    assert np.log2(coarse / fine) > order - 0.05


def test_first_order_methods_are_not_of_second_order():
    model = schedule.noise_schedule()
    coarse, fine = (
        error_at_199(model, maps.table(samplers.ddim, model, n, spacing="trailing"))
        for n in (50, 100)
    )
    assert np.log2(coarse / fine) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("skip_prk_steps", [True, False])
def test_pndm_is_of_nearly_second_order(skip_prk_steps):
    # its transfer combines outputs at other noise levels as if they were one: order 2, not 4
    model = schedule.noise_schedule()
    options = {"spacing": "trailing", "skip_prk_steps": skip_prk_steps}
    coarse, fine = (
        error_at_199(model, maps.table(samplers.pndm, model, n, **options)) for n in (50, 125)
    )
    assert np.log(coarse / fine) / np.log(2.5) > 1.75


@pytest.mark.parametrize(("order", "solver_type"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"),
                                                    (3, "midpoint")])  # fmt: skip
def test_order_of_the_singlestep_solver(order, solver_type):
    model = schedule.noise_schedule()
    errors = []
    for num_steps in (48, 96):
        table = maps.table(
            samplers.dpmpp_2s,
            model,
            num_steps,
            order=order,
            solver_type=solver_type,
            final_sigma="sigma_min",
        )
        row = 3 * num_steps // 4  # at t = 250 for both, and between two groups of rows
        latents = maps.latents_of_ode(model, table)
        errors.append(abs(latents[row] - maps.exact_latent(table, row, 1.3)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


STOCHASTIC = {
    "ddim eta 1": (samplers.ddim, {"eta": 1.0, "spacing": "trailing"}),
    "ddpm": (samplers.ddpm, {"spacing": "trailing"}),
    "ddpm large": (samplers.ddpm, {"spacing": "trailing", "variance": "fixed_large"}),
    "euler_ancestral": (samplers.euler_ancestral, {}),
    "dpm2_ancestral": (samplers.dpm2_ancestral, {}),
    "dpmpp_2m_sde": (samplers.dpm_multistep, {"algorithm": "sde-dpmsolver++"}),
    "dpmpp_2m_sde heun": (
        samplers.dpm_multistep, {"algorithm": "sde-dpmsolver++", "solver_type": "heun"}
    ),
    "dpmpp_1m_sde": (samplers.dpm_multistep, {"order": 1, "algorithm": "sde-dpmsolver++"}),
    "dpmpp_2s_sde": (samplers.dpmpp_2s, {"algorithm": "sde-dpmsolver++"}),
}  # fmt: skip


@pytest.mark.parametrize("method", STOCHASTIC)
def test_moments_of_stochastic_samplers_converge_to_those_of_the_data(method):
    factory, options = STOCHASTIC[method]
    model = schedule.noise_schedule()
    few, many = (
        maps.final_moments(model, maps.table(factory, model, n, **options)) for n in (100, 500)
    )
    assert many[0] == pytest.approx(maps.MEAN, abs=1e-4)
    few_error, many_error = abs(few[1] / maps.STD - 1), abs(many[1] / maps.STD - 1)
    assert many_error < 0.04
    assert many_error < 0.45 * few_error


def test_third_order_sde_keeps_the_sign_of_diffusers_and_does_not_converge():
    # the warning in dpm_solver.py stays true
    model = schedule.noise_schedule()
    table = maps.table(samplers.dpm_multistep, model, 500, order=3, algorithm="sde-dpmsolver++")
    assert maps.final_moments(model, table)[1] / maps.STD > 1.2


@pytest.mark.parametrize("name", sorted(set(config.SAMPLERS) - {"pndm", "deis", "lcm"}))
def test_a_model_that_knows_the_image_is_followed_to_it(name):
    """A run that ends at sigma 0 returns the x_0 that a constant model names."""
    model = schedule.noise_schedule(prediction_type="sample")
    options = {"eta": 0.0} if name == "tcd" else {}
    table = maps.table(name, model, 7, **options)
    latent = maps.linear_map(table).latents[-1]
    rows = len(maps.rows_of(table))
    kept = 1e-2 if name == "tcd" else 1e-6  # tcd ends at t = 0, where 0.03 of the noise is left
    assert latent[1 : 1 + rows].sum() == pytest.approx(1, abs=kept)
    if name != "tcd":
        assert latent[0] == pytest.approx(0, abs=1e-6)


def test_ddim_with_eta_one_is_ddpm():
    model = schedule.noise_schedule(prediction_type="v_prediction")
    ddim = maps.linear_map(maps.table(samplers.ddim, model, 10, eta=1.0, steps_offset=1))
    ddpm = maps.linear_map(maps.table(samplers.ddpm, model, 10, steps_offset=1))
    np.testing.assert_allclose(ddim.latents, ddpm.latents, atol=1e-12)


@pytest.mark.parametrize("factory", [samplers.dpm_multistep, samplers.unipc])
def test_first_order_exponential_integrators_are_ddim(factory):
    model = schedule.noise_schedule()
    options = {"disable_corrector": range(10)} if factory is samplers.unipc else {}
    found = maps.linear_map(maps.table(factory, model, 10, order=1, spacing="trailing", **options))
    ddim = maps.linear_map(maps.table(samplers.ddim, model, 10, spacing="trailing"))
    np.testing.assert_allclose(found.latents, ddim.latents, atol=2e-6)


def test_euler_is_ddim_in_another_scale():
    model = schedule.noise_schedule()
    table = maps.table(samplers.euler, model, 10, spacing="trailing")
    ddim = maps.linear_map(maps.table(samplers.ddim, model, 10, spacing="trailing"))
    euler = maps.linear_map(table)
    # the same inputs to the model, once the first latents mean the same
    ours, theirs = euler.inputs / euler.inputs[:1, :1], ddim.inputs
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], rtol=1e-6)
    np.testing.assert_allclose(euler.inputs[:, 1:], ddim.inputs[:, 1:], atol=2e-6)


def test_prediction_types_agree_where_the_model_does():
    """One exact Gaussian model, told in three ways, gives one trajectory."""
    runs = []
    for prediction_type in schedule.PREDICTION_TYPES:
        model = schedule.noise_schedule(prediction_type=prediction_type)
        for factory in (samplers.heun, samplers.dpm_multistep, samplers.unipc, samplers.deis):
            runs.append(maps.latents_of_ode(model, maps.table(factory, model, 8))[-1])
    np.testing.assert_allclose(np.reshape(runs, (3, 4))[1:], np.reshape(runs, (3, 4))[[0, 0]])


def test_pndm_runs_the_last_of_its_n_plus_one_rows():
    """Fault 1 of the last Flax pipeline: n rows, so that 20 steps stopped at t = 51."""
    model = schedule.noise_schedule()
    for num_steps in (20, 50):
        table = maps.table(samplers.pndm, model, num_steps, steps_offset=1, skip_prk_steps=True)
        stride = 1000 // num_steps
        assert table.num_rows == num_steps + 1
        assert table.t[maps.rows_of(table)][[-2, -1]].tolist() == [1 + stride, 1]
        # the last output counts: it takes the latent from t = 1 to the end
        latents = maps.linear_map(table).latents
        assert latents[-2][num_steps + 1] == 0
        assert latents[-1][num_steps + 1] < -1e-3


@pytest.mark.parametrize("factory", [samplers.euler, samplers.lms])
@pytest.mark.parametrize("num_steps", [20, 25, 50, 100])
def test_linspace_rows_use_their_own_sigma(factory, num_steps):
    """Fault 2 of the last Flax schedulers: a search by timestep missed, and took sigma[0]."""
    model = schedule.noise_schedule()
    table = maps.table(factory, model, num_steps, spacing="linspace")
    rows = maps.rows_of(table)
    levels = np.interp(table.t[rows], np.arange(1000), schedule.training_sigmas(model))
    assert len(set(levels)) == num_steps
    np.testing.assert_allclose(table.scale[rows], 1 / np.sqrt(levels**2 + 1))
    np.testing.assert_allclose(table.noising[rows, 1], levels)


def test_zero_terminal_snr_starts_from_pure_noise():
    """Fault 3, second half: the rescaled schedule reaches the sampler."""
    options = {"zero_terminal_snr": True, "prediction_type": "v_prediction"}
    model = schedule.noise_schedule(**options)
    ddim = maps.table(samplers.ddim, model, 5, spacing="trailing")
    assert ddim.t[0] == 999
    np.testing.assert_array_equal(ddim.noising[0], [0, 1])
    euler = maps.table(samplers.euler, model, 5, spacing="trailing")
    assert euler.init_noise_sigma == pytest.approx(4096, rel=1e-4)


def test_an_epsilon_model_cannot_start_from_pure_noise():
    model = schedule.noise_schedule(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="use a v_prediction model"):
        maps.table(samplers.ddim, model, 5, spacing="trailing")
    assert prediction.ALPHA_ZERO.startswith("an epsilon model")
    maps.table(samplers.ddim, model, 5, spacing="leading")  # never visits the last timestep


def test_skipping_all_steps_leaves_nothing_to_run_and_no_noise():
    model = schedule.noise_schedule()
    for name in config.SAMPLERS:
        options = {"skip_prk_steps": True} if name == "pndm" else {}
        table = maps.table(name, model, 6, start_step=6, **options)
        # pndm has one row more than steps, which diffusers runs as well
        assert len(maps.rows_of(table)) == (1 if name == "pndm" else 0), name
        if name != "pndm":
            np.testing.assert_array_equal(table.noising[int(table.start_row)], [1, 0])


def test_padding_hides_the_number_of_rows():
    model = schedule.noise_schedule()
    tables = [
        maps.table(samplers.euler, model, 3),
        maps.table(samplers.heun, model, 500),
        maps.table(samplers.ddpm, model, 1000),
    ]
    assert {table.t.shape for table in tables} == {(1024,)}
    assert maps.table(samplers.heun, model, 1000).t.shape == (2048,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: maps.table(samplers.pndm, m, 3), "needs at least 4"),
        (lambda m: maps.table(samplers.lcm, m, 60), "original_steps 50"),
        (lambda m: maps.table(samplers.tcd, m, 4, eta=1.5), "eta is 1.5"),
        (lambda m: maps.table(samplers.ddim, m, 4, eta=-0.1), "eta is -0.1"),
        (lambda m: samplers.ddim(m, sigmas.euler_grid(m, 4)), "steps through integer timesteps"),
        (lambda m: samplers.deis(m, sigmas.solver_grid(m, 4)), "deis cannot step to sigma 0"),
        (
            lambda m: sigmas.euler_grid(m, 4, levels="beta", sigma_min=9, sigma_max=2),
            "<= sigma_max",
        ),
        (lambda m: maps.table(samplers.ddpm, m, 4, variance="learned"), "variance is 'learned'"),
        (lambda m: maps.table(samplers.deis, m, 4, order=4), "order is 4"),
        (lambda m: maps.table(samplers.unipc, m, 4, solver_type="bh3"), "solver_type is 'bh3'"),
        (lambda m: maps.table(samplers.unipc, m, 4, predict_x0=False), "reaches sigma 0 only"),
        (lambda m: maps.table(samplers.dpm_multistep, m, 4, algorithm="ode"), "algorithm is 'ode'"),
        (
            lambda m: maps.table(samplers.dpm_multistep, m, 4, algorithm="dpmsolver"),
            "cannot step to sigma 0",
        ),
        (
            lambda m: maps.table(samplers.dpm_multistep, m, 4, solver_type="bh2"),
            "solver_type is 'bh2'",
        ),
        (lambda m: maps.table(samplers.euler, m, 4, levels="log"), "levels is 'log'"),
        (lambda m: maps.table(samplers.euler, m, 4, start_step=-1), "start_step is -1"),
        (lambda m: maps.table(samplers.pndm, m, 4, start_step=5), "must lie between 0 and 4"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(schedule.noise_schedule())


def test_one_grid_serves_every_sampler_of_noise_levels():
    """Levels that no diffusers class makes: the last x_0 is reached all the same."""
    model = schedule.noise_schedule(prediction_type="sample")
    grid = sigmas.Grid(np.array([999.0, 500.0, 100.0]), np.array([14.0, 3.0, 0.5, 0.0]), 14.0)
    for sampler in (samplers.euler, samplers.heun, samplers.dpm2, samplers.dpm_multistep):
        table = sampler(model, grid)
        latent = maps.linear_map(table).latents[-1]
        assert latent[1 : 1 + len(maps.rows_of(table))].sum() == pytest.approx(1, abs=1e-6)
