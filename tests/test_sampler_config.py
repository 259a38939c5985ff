# SPDX-License-Identifier: MIT
"""From scheduler_config.json to a sampler: defaults, refusals, and messages that name the cause."""

import json
import math

import numpy as np
import pytest
import support.sampler_maps as maps

from jaxgen.diffusion import config, names, samplers, schedule
from jaxgen.diffusion.scheduler_classes import CLASSES

# the files of the published checkpoints, as they are
STABLE_DIFFUSION_15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
STABLE_DIFFUSION_21 = {
    **STABLE_DIFFUSION_15,
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
}
STABLE_DIFFUSION_XL = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
PUBLISHED = (STABLE_DIFFUSION_15, STABLE_DIFFUSION_21, STABLE_DIFFUSION_XL)


def assert_same_table(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_published_configs_give_their_own_samplers():
    model = schedule.noise_schedule()
    found = config.from_config(STABLE_DIFFUSION_15)(20)
    expected = maps.table(
        samplers.pndm, model, 20, steps_offset=1, final_sigma="sigma_min", skip_prk_steps=True
    )
    assert_same_table(found, expected)
    assert found.num_rows == 21

    v_model = schedule.noise_schedule(prediction_type="v_prediction")
    found = config.from_config(STABLE_DIFFUSION_21)(20)
    expected = maps.table(samplers.ddim, v_model, 20, steps_offset=1, final_sigma="sigma_min")
    assert_same_table(found, expected)

    found = config.from_config(STABLE_DIFFUSION_XL)(20)
    assert_same_table(
        found, maps.table(samplers.euler, model, 20, spacing="leading", steps_offset=1)
    )


@pytest.mark.parametrize("name", config.SAMPLERS)
def test_every_sampler_runs_from_every_published_config(name):
    for published in PUBLISHED:
        table = config.from_config(published, name)(12, start_step=5)
        assert table.num_rows > table.start_row


def test_an_absent_spacing_means_the_default_of_the_class():
    leading = config.from_config(STABLE_DIFFUSION_15, "ddim")(10)
    linspace = config.from_config(STABLE_DIFFUSION_15, "euler")(10)
    assert leading.t[0] == 901
    assert linspace.t[0] == 999


def test_absent_betas_mean_the_default_of_the_class():
    # Euler's own betas are linear from 1e-4 to 0.02, those of Heun from 8.5e-4 to 0.012
    euler = config.from_config({"_class_name": "EulerDiscreteScheduler"})(10)
    heun = config.from_config({"_class_name": "HeunDiscreteScheduler"})(10)
    assert euler.init_noise_sigma == pytest.approx(157.4, abs=0.1)
    product = np.prod(1 - np.linspace(0.00085, 0.012, 1000))
    assert heun.init_noise_sigma == pytest.approx(np.sqrt(1 / product - 1), rel=1e-4)


def test_values_that_were_only_defaults_do_not_reach_another_class():
    given = {**STABLE_DIFFUSION_XL, "_use_default_values": ["timestep_spacing", "steps_offset"]}
    assert config.from_config(given)(10).t[0] == 999  # Euler's own default, linspace
    assert config.from_config(given, "ddim")(10).t[0] == 900


def test_a_name_fixes_order_and_algorithm():
    given = {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 3,
        "solver_type": "heun",
    }
    model = schedule.noise_schedule(1000, 0.0001, 0.02, "linear")
    found = config.from_config(given, "dpmpp_2m")(8)
    assert_same_table(found, maps.table("dpmpp_2m", model, 8, solver_type="heun"))
    found = config.from_config(given)(8)
    expected = maps.table(
        samplers.dpm_multistep, model, 8, order=3, algorithm="sde-dpmsolver++", solver_type="heun"
    )
    assert_same_table(found, expected)


def test_solver_families_take_each_others_words():
    given = {"_class_name": "DEISMultistepScheduler", "solver_type": "logrho"}
    given["algorithm_type"] = "deis"
    for name in ("dpmpp_2m", "dpmpp_2s", "unipc"):
        assert config.from_config(given, name)(5).num_rows == 5


def test_eta_reaches_ddim_and_tcd():
    for name in ("ddim", "tcd"):
        quiet = config.from_config(STABLE_DIFFUSION_15, name, eta=0.0)(5)
        noisy = config.from_config(STABLE_DIFFUSION_15, name, eta=0.9)(5)
        assert np.abs(quiet.update[:, 0, -1]).max() == 0
        assert np.abs(noisy.update[:, 0, -1]).max() > 0.1


@pytest.mark.parametrize("name", [None, "euler"])
def test_models_of_other_processes_are_not_sent_to_another_sampler(name):
    flow = "FlowMatchEulerDiscreteScheduler"
    with pytest.raises(ValueError, match=f"{flow}.* no sampler here can run them"):
        config.from_config({"_class_name": flow}, name)
    with pytest.raises(ValueError, match=r"levels of EDM .*does not have; use one of euler, dpmpp"):
        config.from_config({"_class_name": "EDMEulerScheduler"}, "ddim")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="unknown sampler 'eular'; known are ddim, ddpm, pndm"):
        config.from_config(STABLE_DIFFUSION_15, "eular")
    with pytest.raises(ValueError, match="'SASolverScheduler' is not implemented; known are DDIM"):
        config.from_config({"_class_name": "SASolverScheduler"})
    with pytest.raises(ValueError, match="scheduler class None is not implemented"):
        config.from_config({})
    with pytest.raises(ValueError, match="a mapping of keys to values"):
        config.from_config(["PNDMScheduler"])


@pytest.mark.parametrize(
    ("class_name", "key", "value"),
    [
        ("DDIMScheduler", "clip_sample", True),
        ("DDIMScheduler", "thresholding", True),
        ("DDPMScheduler", "variance_type", "learned_range"),
        ("DDPMScheduler", "beta_schedule", "sigmoid"),
        ("PNDMScheduler", "prediction_type", "flow_prediction"),
        ("PNDMScheduler", "timestep_spacing", "even"),
        ("HeunDiscreteScheduler", "clip_sample", True),
        ("DPMSolverMultistepScheduler", "use_lu_lambdas", True),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", "low"),
        ("DPMSolverMultistepScheduler", "solver_order", 2.0),
        ("EulerDiscreteScheduler", "steps_offset", -1),
        ("DPMSolverMultistepScheduler", "variance_type", "learned"),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", True),
        ("DPMSolverMultistepScheduler", "solver_order", 4),
        ("DPMSolverMultistepScheduler", "algorithm_type", "ode"),
        ("UniPCMultistepScheduler", "use_dynamic_shifting", True),
        ("UniPCMultistepScheduler", "solver_p", {"_class_name": "DDIMScheduler"}),
        ("UniPCMultistepScheduler", "final_sigmas_type", "one"),
        ("EulerDiscreteScheduler", "interpolation_type", "cubic"),
        ("EulerDiscreteScheduler", "sigma_min", -1.0),
        ("LCMScheduler", "thresholding", True),
    ],
)
def test_values_that_are_not_implemented_are_named(class_name, key, value):
    given = {"_class_name": class_name, "clip_sample": False, key: value}
    with pytest.raises(ValueError, match=f": {key}=.*, expected ") as raised:
        config.from_config(given)
    assert repr(value) in str(raised.value)


def test_an_absent_clip_sample_is_the_default_of_the_class_and_refused():
    with pytest.raises(ValueError, match="of DDIMScheduler .*: clip_sample=True, expected False"):
        config.from_config({"_class_name": "DDIMScheduler"})
    # asked for by name on a latent model, whose own class has no such key: nothing is clipped
    config.from_config({"_class_name": "PNDMScheduler"}, "ddim")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_train_timesteps", 10**12, "an integer from 1 to 100000"),
        ("num_train_timesteps", "1000", "an integer from 1 to 100000"),
        ("num_train_timesteps", True, "an integer from 1 to 100000"),
        ("beta_start", "0.1", "a number from 1e-09"),
        ("beta_end", float("nan"), "a number from 1e-09"),
        ("steps_offset", 10**9, "an integer from 0 to 100000"),
        ("trained_betas", "many", "a list of 1 to 100000 entries, each a number"),
        ("trained_betas", [[0.1]] * 1000, "a list of 1 to 100000 entries, each a number"),
        ("trained_betas", [0.1] * 9, "a list of num_train_timesteps numbers"),
        ("trained_betas", [2.0] * 1000, "each a number from 0 to 1"),
        ("beta_end", 1.0, "beta_end=1.0, expected a number"),
        ("beta_end", 0.9999, "too near 0 or 1"),
        ("beta_start", -1.0, "beta_start=-1.0, expected a number from 1e-09"),
        ("beta_schedule", "x" * 10**6, ": beta_schedule=.{80}, expected"),
        ("skip_prk_steps", "yes", "true or false"),
        ("timestep_spacing", ["leading"], "expected 'leading'"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        config.from_config({**STABLE_DIFFUSION_15, key: value})


def test_respacings_exclude_each_other():
    given = {**STABLE_DIFFUSION_XL, "use_karras_sigmas": True, "use_beta_sigmas": True}
    with pytest.raises(ValueError, match="exclude each other"):
        config.from_config(given)


def test_keys_of_other_classes_and_null_flags_are_passed_over():
    given = {
        **STABLE_DIFFUSION_XL,
        "use_karras_sigmas": None,
        "solver_order": 3,
        "clip_sample": True,
    }
    assert_same_table(config.from_config(given)(5), config.from_config(STABLE_DIFFUSION_XL)(5))


def test_configs_survive_json():
    for class_name, known in CLASSES.items():
        given = {**known.defaults, "_class_name": class_name, "clip_sample": False}
        read = json.loads(json.dumps(given))
        assert config.from_config(read)(8).num_rows >= 8


def test_keys_that_no_class_knows_are_passed_over_and_listed():
    old = {"predict_epsilon": False, "tensor_format": "pt", "shift": 3.0, "my_trainer": {"a": [1]}}
    given = {**STABLE_DIFFUSION_15, **old}
    assert_same_table(config.from_config(given)(5), config.from_config(STABLE_DIFFUSION_15)(5))
    assert config.unknown_keys(given) == list(old)
    for published in PUBLISHED:
        assert config.unknown_keys(published) == []


def test_minus_infinity_clips_nothing():
    given = {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -math.inf}
    plain = config.from_config({"_class_name": "DPMSolverMultistepScheduler"})(5)
    assert_same_table(config.from_config(given)(5), plain)


@pytest.mark.parametrize("name", sorted(set(config.SAMPLERS) - {"ddim", "tcd"}))
def test_eta_for_a_sampler_that_has_none_is_an_error(name):
    with pytest.raises(ValueError, match=rf"^{name} .* has no eta; .* use one of ddim, tcd$"):
        config.from_config(STABLE_DIFFUSION_15, name, eta=0.0)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan"), True, "much"])
def test_eta_lies_between_0_and_1(eta):
    with pytest.raises(ValueError, match="^eta is .*; it must lie between 0 and 1"):
        config.from_config(STABLE_DIFFUSION_15, "ddim", eta=eta)


@pytest.mark.parametrize(
    ("typed", "name", "levels"),
    [
        ("dpmpp_2m", "dpmpp_2m", None),
        ("dpmpp_2m_karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("dpmpp-2m-sde_beta", "dpmpp_2m_sde", "beta"),
        ("Euler a", "euler_ancestral", None),
        ("euler_a", "euler_ancestral", None),
        ("k_euler_a", "euler_ancestral", None),
        ("DPM2 a Karras", "dpm2_ancestral", "karras"),
        ("LMS Karras", "lms", "karras"),
        ("PLMS", "pndm", None),
        ("UniPC", "unipc", None),
    ],
)
def test_names_in_the_spellings_that_users_type(typed, name, levels):
    assert names.sampler(typed) == (name, levels)
    keys = {f"use_{levels}_sigmas": True} if levels else {}
    written = config.from_config({**STABLE_DIFFUSION_21, **keys}, name)(6)
    assert_same_table(config.from_config(STABLE_DIFFUSION_21, typed)(6), written)


@pytest.mark.parametrize("name", ["DPM++ 2S a", "DPM++ SDE", "karras", "_karras", "x" * 10**5, 3])
def test_names_of_other_samplers_are_not_taken_for_these(name):
    with pytest.raises(ValueError, match="unknown sampler .*; known are ddim, ddpm") as raised:
        config.from_config(STABLE_DIFFUSION_15, name)
    assert len(str(raised.value)) < 600


def test_spacing_and_levels_start_from_the_config_of_the_checkpoint():
    """The model stays a v-prediction model, with its own betas: only the two keys change."""
    for spacing in schedule.SPACINGS:
        written = {**STABLE_DIFFUSION_21, "timestep_spacing": spacing}
        asked = config.from_config(STABLE_DIFFUSION_21, "euler", spacing=spacing)
        assert_same_table(asked(7), config.from_config(written, "euler")(7))
    for levels in ("karras", "exponential", "beta"):
        written = {**STABLE_DIFFUSION_21, f"use_{levels}_sigmas": True}
        asked = config.from_config(STABLE_DIFFUSION_21, "dpmpp_2m", levels=levels)
        assert_same_table(asked(7), config.from_config(written, "dpmpp_2m")(7))
        plain = config.from_config(written, "dpmpp_2m", levels="schedule")
        assert_same_table(plain(7), config.from_config(STABLE_DIFFUSION_21, "dpmpp_2m")(7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "ddim", "levels": "karras"},
            r"ddim \(.*\) has no levels; .* one of lms, euler, ",
        ),
        ({"name": "ddim_karras"}, "ddim_karras .* has no levels"),
        ({"name": "lcm", "spacing": "trailing"}, "lcm .* has no spacing; .* one of ddim, ddpm"),
        ({"name": "dpmpp_2s", "spacing": "trailing"}, "dpmpp_2s .* has no spacing"),
        ({"name": "ddim", "times": [800]}, r"ddim .* no times; .* one of ddpm, euler, heun, dpmpp"),
        ({"name": "euler", "times": [9], "spacing": "trailing"}, "times and spacing are both giv"),
        ({"name": "dpmpp_2m_karras", "times": [9]}, r"levels are placed \(karras\)"),
        ({"name": "lcm", "times": [1000]}, "times are .*1000.*; expected whole numbers from 999"),
        ({"name": "lcm", "times": [9, 9]}, "times are .*; .* each below the one before"),
        ({"name": "lcm", "times": [9, -1]}, "times are .*; .* to 0"),
        ({"name": "lcm", "times": [9.5]}, "times are .*; expected whole numbers"),
        ({"name": "lcm", "times": [True]}, "times are .*; expected whole numbers"),
        ({"name": "lcm", "times": []}, "times are .*; expected whole numbers"),
        ({"spacing": "even"}, "spacing is 'even'; known are leading, linspace, trailing"),
        ({"levels": ["karras"]}, "levels is .*; known are karras, exponential, beta, schedule"),
        ({"name": "euler_karras", "levels": "beta"}, "asks for levels 'karras', but levels is 'b"),
    ],
)
def test_options_that_a_sampler_does_not_have_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        config.from_config(STABLE_DIFFUSION_15, **options)


def test_a_pipeline_corrects_what_old_configs_lack():
    old = {k: v for k, v in STABLE_DIFFUSION_15.items() if k not in ("steps_offset", "clip_sample")}
    for given in (old, {**old, "steps_offset": 0}, {**old, "steps_offset": 2}):
        for name in (None, "ddim"):
            corrected = config.from_config(given, name, pipeline="StableDiffusionPipeline")(10)
            expected = config.from_config(STABLE_DIFFUSION_15, name)(10)
            assert_same_table(corrected, expected)
    # the pipeline of XL corrects nothing
    given = {**STABLE_DIFFUSION_XL, "steps_offset": 0}
    left = config.from_config(given, pipeline="StableDiffusionXLPipeline")(10)
    assert_same_table(left, config.from_config(given)(10))
    clipped = {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 1}
    config.from_config(clipped, pipeline="StableDiffusionImg2ImgPipeline")
    with pytest.raises(ValueError, match="clip_sample=True, expected False"):
        config.from_config(clipped, pipeline="StableDiffusionInpaintPipeline")
    with pytest.raises(ValueError, match="steps_offset=-1, expected"):
        config.from_config({**old, "steps_offset": -1}, pipeline="StableDiffusionPipeline")


@pytest.mark.parametrize(
    "name", ["FlaxEulerDiscreteScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"]
)
def test_classes_of_the_same_equations_have_one_sampler(name):
    plain = name.removeprefix("Flax").replace("Parallel", "")
    given = {**STABLE_DIFFUSION_15, "clip_sample": False}
    table = config.from_config({**given, "_class_name": name})(10)
    assert_same_table(table, config.from_config({**given, "_class_name": plain})(10))


def test_inpainting_corrects_the_runge_kutta_start_too():
    given = {**STABLE_DIFFUSION_15, "skip_prk_steps": False}
    masked = config.from_config(given, pipeline="StableDiffusionInpaintPipeline")(10)
    assert_same_table(masked, config.from_config(STABLE_DIFFUSION_15)(10))
    text = config.from_config(given, pipeline="StableDiffusionPipeline")(10)
    assert text.num_rows == masked.num_rows + 8


# whatever stands in a file: a sampler, or one ValueError of one readable line
STRANGE = [None, True, -1, 0, 2.0, 1e308, math.nan, math.inf, 10**30, "", "x" * 10**5, [], [[1]],
           {}, {"a": None}, "\x1b[2J\u202e"]  # fmt: skip


@pytest.mark.parametrize("class_name", CLASSES)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(class_name):
    base = {**CLASSES[class_name].defaults, "_class_name": class_name, "clip_sample": False}
    for key in [*base, "_use_default_values"]:
        for value in STRANGE:
            fault = fault_of({**base, key: value})
            assert fault.isprintable(), (key, value)
            assert len(fault) < 700, (key, value)


def fault_of(scheduler_config):
    """The message of the one exception that may come out; empty where the config is taken."""
    try:
        table = config.from_config(scheduler_config)(6)
    except ValueError as error:
        return str(error)
    assert np.isfinite(table.update).all(), scheduler_config
    return ""


def test_start_step_is_checked():
    with pytest.raises(ValueError, match="start_step is 9; it must lie between 0 and 8"):
        config.from_config(STABLE_DIFFUSION_15)(8, start_step=9)


def test_the_schedule_of_training_is_what_the_config_says_of_it():
    stated = {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.02}
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):  # DDIM's default is to clip samples
        own = config.training_schedule(
            {"_class_name": name, "prediction_type": "v_prediction", **stated}
        )
        # a linear schedule, written out
        expected = np.cumprod(1 - np.linspace(0.001, 0.02, 1000))
        np.testing.assert_allclose(own.alphas_cumprod, expected, rtol=1e-4)
        assert own.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="is for models of EDM, whose noise levels are not"):
        config.training_schedule({"_class_name": "EDMEulerScheduler"})
    with pytest.raises(ValueError, match="is not implemented; known are"):
        config.training_schedule({"_class_name": "OwnScheduler"})
