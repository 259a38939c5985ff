# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""Every sampler beside diffusers' scheduler, as linear maps, over the whole grid of settings."""

import copy
import functools
import itertools
import json

import numpy as np
import pytest
import support.sampler_maps as maps

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import make_sampler_values as oracle
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion

from jaxgen.diffusion import config, guidance

pytestmark = pytest.mark.oracle
diffusers.utils.logging.set_verbosity_error()

BASE = oracle.STABLE_DIFFUSION
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
RESPACINGS = ("karras", "exponential", "beta")
SIZES = (1, 2, 3, 5, 20)  # other schedules and classes are compared over 50 steps, too
# what diffusers raises for a combination that it lacks: by intent, or by falling over
REFUSALS = (ValueError, NotImplementedError, UnboundLocalError, torch.linalg.LinAlgError)

# Relative to the largest coefficient of a row. Diffusers rounds its tables to float32: betas,
# square roots, sigmas; our tables are float64 from alphas_cumprod on.
TOLERANCE = 2e-5


def compare(given, num_steps, name=None, start_step=0, eta=None, tolerance=TOLERANCE, times=None):
    """True where both accept; asserts that then everything agrees."""
    where = f"{name} {given} {num_steps} from {start_step}"
    refusals = REFUSALS if times is None else (*REFUSALS, TypeError)  # many take no timesteps
    try:
        made = copy.deepcopy(made_once(json.dumps(given), name))
        theirs = oracle.linear_map(made, num_steps, start_step, eta, times)
    except refusals:
        return False
    if not np.isfinite(theirs.latents).all():
        return False
    table = config.from_config(given, name, eta, times=times)(num_steps, start_step)
    rows = maps.rows_of(table)
    ours = maps.linear_map(table)
    assert len(rows) == len(theirs.t), where
    error = 2e-2 if name == "dpm2_ancestral" else 1e-3  # fractional: they are logarithms of sigmas
    np.testing.assert_allclose(table.t[rows], theirs.t, atol=error, err_msg=where)
    for mine, other in (
        (ours.inputs, theirs.inputs),
        (ours.latents, theirs.latents),
        (table.noising[rows], theirs.noising),
    ):
        scale = np.abs(other).max(axis=1, keepdims=True)
        assert (np.abs(mine - other) / scale).max() < tolerance, where
    assert table.init_noise_sigma == pytest.approx(theirs.init_noise_sigma, rel=1e-6), where
    return True


@functools.cache
def made_once(given, name):
    return oracle.scheduler(json.loads(given), name)  # some spend 0.1 s in their constructors


def count(cases, name=None, tolerance=TOLERANCE):
    """How many of the cases diffusers accepts, all of them compared."""
    accepted = 0
    for given, num_steps in cases:
        for start_step in (0,) if num_steps < 5 else (0, num_steps // 3):
            accepted += compare(given, num_steps, name, start_step, tolerance=tolerance)
    return accepted


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_spacing_and_prediction_type(name):
    grid = itertools.product(SPACINGS, PREDICTIONS, SIZES)
    cases = [
        ({**BASE, "timestep_spacing": spacing, "prediction_type": prediction_type}, num_steps)
        for spacing, prediction_type, num_steps in grid
    ]
    # the ancestral ones lose up to 1e-4 in diffusers' float32 where a step is very long
    tolerance = 2e-4 if name == "dpm2_ancestral" else TOLERANCE
    two_of_three = name in ("pndm", "euler_ancestral", "dpm2", "dpm2_ancestral")
    assert count(cases, name, tolerance) == (42 if two_of_three else 63)


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_respaced_sigmas(name):
    cases = [
        ({**BASE, "timestep_spacing": spacing, f"use_{respacing}_sigmas": True}, num_steps)
        for spacing, respacing, num_steps in itertools.product(SPACINGS, RESPACINGS, SIZES)
    ]
    assert count(cases, name, 2e-4 if name == "dpm2_ancestral" else 5e-5) == 63


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_times_of_the_callers_choice(name):
    """Refused where diffusers refuses: by samplers without them, and beside placed levels."""
    accepted = 0
    changes = [{"prediction_type": kind, "timestep_spacing": "leading"} for kind in PREDICTIONS]
    for change in [*changes, {"interpolation_type": "log_linear"}, {"use_karras_sigmas": True}]:
        for times in ([800], [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]):
            given = {**BASE, **change}
            for start_step in (0, len(times) // 3):
                same = compare(given, len(times), name, start_step, times=times)
                accepted += same
                if not same:
                    with pytest.raises(ValueError, match="times|has no"):
                        config.from_config(given, name, times=times)
    with_levels = name in ("ddpm", "lcm", "tcd")  # which have none, so that the key says nothing
    assert accepted == (0 if name not in oracle.TIMED else 20 if with_levels else 16)


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_zero_terminal_snr(name):
    cases = [
        (
            {
                **BASE,
                "timestep_spacing": spacing,
                "prediction_type": prediction_type,
                "rescale_betas_zero_snr": True,
            },
            num_steps,
        )
        for spacing, prediction_type, num_steps in itertools.product(
            SPACINGS, ("v_prediction", "sample"), SIZES
        )
    ]
    # 5e-5: the rescaled products are rounded to float32 four times
    tolerance = 2e-4 if name == "dpm2_ancestral" else 5e-5
    one_of_two = name in ("pndm", "euler_ancestral", "dpm2", "dpm2_ancestral")
    assert count(cases, name, tolerance) == (21 if one_of_two else 42)


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_other_schedules_and_ends(name):
    changes = (
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"final_sigmas_type": "sigma_min"},
        {"skip_prk_steps": False, "set_alpha_to_one": True, "steps_offset": 0},
        {"num_train_timesteps": 500},
        {"num_train_timesteps": 100, "trained_betas": [0.001 + 0.0009 * i for i in range(100)]},
    )
    cases = [({**BASE, **change}, n) for change in changes for n in (4, 7, 50)]
    assert count(cases, name, 2e-4 if name == "dpm2_ancestral" else TOLERANCE) == 25


@pytest.mark.parametrize("name", sorted(set(config.SAMPLERS) - {"dpm2_ancestral"}))
def test_cosine_schedule(name):
    # without dpm2_ancestral, whose float32 square roots in diffusers are NaN on this schedule
    cases = [({**BASE, "beta_schedule": "squaredcos_cap_v2"}, n) for n in (5, 20)]
    assert count(cases, name, 1e-4) == 4


@pytest.mark.parametrize("class_name", sorted(cls.__name__ for cls, _ in oracle.CLASS_OF.values()))
def test_absent_keys_mean_the_defaults_of_the_class(class_name):
    given = {"_class_name": class_name, "clip_sample": False}
    assert count([(given, n) for n in (4, 7, 50)], tolerance=2e-4) == 5


def test_multistep_dpm_solver_options():
    grid = itertools.product(
        ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        (1, 2, 3), ("midpoint", "heun"), (True, False), (True, False), ("zero", "sigma_min"),
    )  # fmt: skip
    cases = []
    for algorithm, order, solver_type, lower, euler, final in grid:
        if algorithm == "sde-dpmsolver" and order == 3:
            continue  # diffusers fails in the third step; ours refuses
        given = {
            "_class_name": "DPMSolverMultistepScheduler",
            **BASE,
            "algorithm_type": algorithm,
            "solver_order": order,
            "solver_type": solver_type,
            "lower_order_final": lower,
            "euler_at_final": euler,
            "final_sigmas_type": final,
        }
        # below 15 steps diffusers lowers the order at the end, if at all
        cases += [(given, n) for n in ((1, 3, 6, 16) if lower else (1, 3, 6))]
    assert count(cases) == 680


def test_singlestep_dpm_solver_options():
    algorithms, orders = ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"), (1, 2, 3)
    solvers = ("midpoint", "heun"), (True, False), ("zero", "sigma_min"), PREDICTIONS[:1]
    predictions = ("midpoint",), (True,), ("sigma_min",), PREDICTIONS[1:]
    cases = []
    grid = itertools.chain(
        itertools.product(algorithms, orders, *solvers),
        itertools.product(algorithms, orders, *predictions),
    )
    for algorithm, order, solver_type, lower, final, prediction_type in grid:
        given = {
            "_class_name": "DPMSolverSinglestepScheduler",
            **BASE,
            "algorithm_type": algorithm,
            "solver_order": order,
            "solver_type": solver_type,
            "lower_order_final": lower,
            "final_sigmas_type": final,
            "prediction_type": prediction_type,
        }
        cases += [(given, n) for n in (1, 2, 4, 5, 6)]
    assert count(cases) == 546


def test_deis_options():
    cases = []
    for order, lower, respacing in itertools.product((1, 2, 3), (True, False), (None, *RESPACINGS)):
        given = {
            "_class_name": "DEISMultistepScheduler",
            **BASE,
            "solver_order": order,
            "lower_order_final": lower,
        }
        if respacing:
            given[f"use_{respacing}_sigmas"] = True
        cases += [(given, n) for n in (1, 3, 6, 16)]
    assert count(cases) == 144


def test_unipc_options():
    grid = itertools.product(
        (1, 2, 3), ("bh1", "bh2"), (True, False), (True, False), ((), (0, 2)),
        ("zero", "sigma_min"), (None, "karras"),
    )  # fmt: skip
    cases = []
    for order, solver_type, predict_x0, lower, disabled, final, respacing in grid:
        if final == "zero" and not (predict_x0 and lower):
            continue  # NaN or a singular matrix in diffusers; ours refuses
        given = {
            "_class_name": "UniPCMultistepScheduler",
            **BASE,
            "solver_order": order,
            "solver_type": solver_type,
            "predict_x0": predict_x0,
            "lower_order_final": lower,
            "disable_corrector": list(disabled),
            "final_sigmas_type": final,
        }
        if respacing:
            given[f"use_{respacing}_sigmas"] = True
        cases += [(given, n) for n in (1, 2, 3, 6)]
    assert count(cases) > 430  # diffusers is NaN for bh1 with final sigma 0, among others


def test_euler_options():
    grid = itertools.product(
        ("linear", "log_linear"), ("discrete", "continuous"), ("zero", "sigma_min"),
        ("epsilon", "v_prediction"), ({}, {"sigma_min": 0.05, "sigma_max": 10.0}),
        (None, *RESPACINGS),
    )  # fmt: skip
    cases = []
    for interpolation, timed, final, prediction_type, ends, respacing in grid:
        given = {
            "_class_name": "EulerDiscreteScheduler",
            **BASE,
            **ends,
            "interpolation_type": interpolation,
            "timestep_type": timed,
            "final_sigmas_type": final,
            "prediction_type": prediction_type,
        }
        if (interpolation, timed) == ("log_linear", "continuous"):
            continue  # diffusers gives one time too many; ours refuses
        if respacing:
            given[f"use_{respacing}_sigmas"] = True
        cases += [(given, n) for n in (1, 6)]
    assert count(cases) == 288


def test_noise_amounts():
    for eta in (0.0, 0.3, 1.0):
        for spacing in SPACINGS:
            given = {**BASE, "timestep_spacing": spacing}
            assert compare(given, 10, "ddim", eta=eta)
            assert compare(given, 10, "tcd", eta=eta)
    for variance in ("fixed_small", "fixed_small_log", "fixed_large"):
        for num_steps in (3, 20):
            assert compare({**BASE, "variance_type": variance}, num_steps, "ddpm")


def test_distilled_schedules():
    for name in ("lcm", "tcd"):
        given = {**BASE, "original_inference_steps": 30, "timestep_scaling": 5.0}
        assert count([(given, n) for n in (1, 4, 20, 30)], name) == 6


def test_guidance_rescale_is_that_of_diffusers():
    rng = np.random.default_rng(0)
    positive, negative = rng.standard_normal((2, 3, 8, 8, 4)).astype(np.float32)
    scale, rescale = np.array([1.0, 5.0, 7.5]), np.array([0.0, 0.5, 0.7])

    def model(x, t):
        return np.stack([negative, positive], axis=1).reshape(6, 8, 8, 4) + 0 * x

    found = guidance.guide(model, scale, rescale)(np.zeros_like(positive), np.float32(0))
    for j in range(3):
        guided = torch.tensor(negative[j] + scale[j] * (positive[j] - negative[j]))[None]
        expected = pipeline_stable_diffusion.rescale_noise_cfg(
            guided, torch.tensor(positive[j])[None], guidance_rescale=rescale[j]
        )
        np.testing.assert_allclose(found[j], expected[0], rtol=1e-5, atol=1e-5)


PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionPAGImg2ImgPipeline",
    "StableDiffusionPAGInpaintPipeline",
)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_pipelines_correct_the_configs_of_their_schedulers(pipeline):
    bare = {k: v for k, v in BASE.items() if k not in ("steps_offset", "clip_sample")}
    accepted = 0
    for class_name in ("PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"):
        for change in ({}, {"steps_offset": 0}, {"steps_offset": 2}, {"skip_prk_steps": False}):
            given = {"_class_name": class_name, "timestep_spacing": "leading", **bare, **change}
            theirs = oracle.linear_map(oracle.scheduler_of_pipeline(pipeline, given), 8)
            clips = pipeline == "StableDiffusionInpaintPipeline" and "DD" in class_name
            if clips:  # this pipeline leaves clip_sample as it is; ours refuses to clip
                with pytest.raises(ValueError, match="clip_sample=True"):
                    config.from_config(given, pipeline=pipeline)
                continue
            table = config.from_config(given, pipeline=pipeline)(8)
            ours = maps.linear_map(table)
            np.testing.assert_allclose(table.t[maps.rows_of(table)], theirs.t, atol=1e-3)
            scale = np.abs(theirs.latents).max(axis=1, keepdims=True)
            assert (np.abs(ours.latents - theirs.latents) / scale).max() < TOLERANCE, given
            accepted += 1
    assert accepted == (8 if pipeline == "StableDiffusionInpaintPipeline" else 16)


def test_clipped_lambdas():
    """lambda_min_clipped: -Infinity as diffusers writes it, and values that leave timesteps out."""
    cases = []
    for class_name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        for betas, spacing, clip in itertools.product(
            ("scaled_linear", "squaredcos_cap_v2"), SPACINGS, (-float("inf"), -5.1, -2.0, 0.5)
        ):
            given = {
                "_class_name": class_name,
                **BASE,
                "beta_schedule": betas,
                "timestep_spacing": spacing,
                "lambda_min_clipped": clip,
            }
            cases += [(given, n) for n in (1, 6, 17)]
    # twice the clipping leaves no step after the skipped ones: 0.5, trailing, of 6 and of 17
    assert count(cases) == 238
