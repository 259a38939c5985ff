# SPDX-License-Identifier: MIT
"""Hints for distilled models, by names and parts, and for runs that cannot become pictures."""

import warnings

import numpy as np
import pytest
from support import checkpoints

from jaxgen.diffusion import config
from jaxgen.stable_diffusion import few_steps, loading
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request, completed

CHECKPOINT = checkpoints.checkpoint("sd1")._replace(components={
    name: component._replace(tensors={})
    for name, component in checkpoints.checkpoint("sd1").components.items()
})  # fmt: skip
NETWORKS = loading.networks(CHECKPOINT)
GOOD = {"num_steps": 4, "guidance_scale": 1.0, "sampler": "euler", "spacing": "trailing"}


FITTING = {name: {"sampler": name, "spacing": None} for name in ("lcm", "tcd")}
FITTING["dmd"] = FITTING["lcm"]


def hint(kind, scheduler=CHECKPOINT.scheduler, **options):
    request = completed(Request(**({"prompt": "a cat"} | options)))
    batch = arguments.batch(request, NETWORKS, scheduler)
    return few_steps.hint(few_steps.Distilled(kind), scheduler, request, batch)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("stabilityai/sdxl-turbo", "turbo"),
        ("models/sd_xl_turbo_1.0_fp16.safetensors", "turbo"),
        ("sd_turbo.safetensors", "turbo"),
        ("SDXLTurbo", "turbo"),
        ("dreamshaperXL_v21TurboDPMSDE.safetensors", "turbo"),
        ("juggernautXL_v9Rdphoto2Lightning.safetensors", "lightning"),
        ("sdxl_lightning_4step.safetensors", "lightning"),
        ("SimianLuo/LCM_Dreamshaper_v7", "lcm"),
        ("realisticVisionV60B1_v51HyperVAE.safetensors", "hyper"),
        ("Hyper-SDXL-8steps", "hyper"),
        ("lustifySDXL_ggwpDMD2.safetensors", "dmd"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", None),
        ("hyperrealism.safetensors", None),
        ("turbo/sd15.safetensors", None),
        ("", None),
    ],
)
def test_names_say_that_a_model_is_distilled(name, kind):
    assert few_steps.kind_of(CHECKPOINT._replace(name=name)) == kind
    index = CHECKPOINT.index | {"_name_or_path": name}
    assert few_steps.kind_of(CHECKPOINT._replace(index=index)) == kind


def test_schedulers_and_guided_unets_say_that_a_model_is_distilled():
    for class_name, kind in (("LCMScheduler", "lcm"), ("TCDScheduler", "tcd")):
        scheduler = CHECKPOINT.scheduler | {"_class_name": class_name}
        assert few_steps.kind_of(CHECKPOINT._replace(scheduler=scheduler)) == kind
    unet = CHECKPOINT.components["unet"]
    unet = unet._replace(config=unet.config | {"time_cond_proj_dim": 256})
    guided = CHECKPOINT._replace(components=CHECKPOINT.components | {"unet": unet})
    assert few_steps.kind_of(guided) == "lcm"
    assert few_steps.of_checkpoint(guided)[1:3] == (4, 8.5)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("runwayml/sd15", (50, 7.5)),
        ("stabilityai/sdxl-turbo", (4, 1.0)),
        ("sdxl_lightning_8step.safetensors", (8, 1.0)),
        ("Hyper-SDXL-1steps", (1, 1.0)),
        ("some-lightning-16step", (4, 1.0)),
    ],
)
def test_calls_that_do_not_say_it_take_what_the_model_needs(name, numbers):
    pipe = StableDiffusion(checkpoints.checkpoint("sd1")._replace(name=name))
    assert pipe.defaults == numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = pipe.inputs(Request("a cat", sampler="euler", output="latent"))
        own = pipe.inputs(Request("a cat", sampler="euler", num_steps=3, guidance_scale=2.0))
    assert int(inputs.table.num_rows) == numbers[0]
    assert float(inputs.guidance_scale.max()) == numbers[1]
    assert (int(own.table.num_rows), float(own.guidance_scale[0, 0])) == (3, 2.0)


@pytest.mark.parametrize("kind", few_steps.ADVICE)
def test_a_distilled_model_with_the_usual_settings_is_hinted_at_in_one_line(kind):
    text, good = hint(kind), GOOD | FITTING.get(kind, {})
    assert "50 steps and guidance scale 7.5" in text
    assert few_steps.ADVICE[kind] in text
    assert text.isprintable()
    assert hint(kind, **good) is None
    assert "made for" in hint(kind, **GOOD | {"spacing": "leading"})  # begins at 0.75
    assert "guidance scale 7.5" in hint(kind, **good | {"guidance_scale": [1.0, 7.5]})
    assert "this run has sampler 'pndm'" in hint(kind, **GOOD | {"sampler": "plms"})
    assert hint(None) is None


def test_sd_turbo_taken_for_a_v_model_is_told_so():
    v_model = CHECKPOINT.scheduler | {"prediction_type": "v_prediction"}
    assert "prediction_type 'v_prediction', where SD-Turbo" in hint("turbo", v_model, **GOOD)
    assert hint("lightning", v_model, **GOOD) is None


ONE_STEP = {
    "sdxl_lightning_1step_unet_x0.safetensors": (
        {"sampler": "euler", "spacing": "trailing"}, {"prediction_type": "sample"}
    ),
    "Hyper-SDXL-1step-Unet.safetensors": ({"sampler": "lcm", "times": [800]}, {}),
}  # fmt: skip
OTHERWISE = {"lightning": "this run has prediction_type 'epsilon'", "hyper": "run has other times"}


@pytest.mark.parametrize("name", ONE_STEP)
def test_unets_of_one_step_run_as_their_makers_run_them(name):
    """One predicts the picture itself, the other starts at a time of its own."""
    options, stated = ONE_STEP[name]
    distilled = few_steps.of_checkpoint(CHECKPOINT._replace(name=name))
    assert distilled[1:3] == (1, 1.0)

    def hint_of(scheduler, **options):
        request = completed(Request("a cat", **options), *distilled[1:3])
        batch = arguments.batch(request, NETWORKS, scheduler)
        return few_steps.hint(distilled, scheduler, request, batch)

    assert hint_of(CHECKPOINT.scheduler | stated, **options) is None
    text = hint_of(CHECKPOINT.scheduler | stated, **options, guidance_scale=7.5)
    assert f"made for {few_steps.ONE_STEP[distilled.kind]}; this run has guidance" in text
    options.pop("times", None)
    assert OTHERWISE[distilled.kind] in hint_of(CHECKPOINT.scheduler, **options)
    assert distilled._replace(adapter="a").advice == few_steps.ADVICE[distilled.kind]


def test_times_say_how_many_steps_there_are():
    pipe = StableDiffusion(checkpoints.checkpoint("sd1"))
    for times in ([800, 400], (800, 400), np.array([800, 400])):
        table = pipe.inputs(Request("a cat", sampler="euler", times=times)).table
        assert list(table.t[table.start_row : table.num_rows]) == [800, 400]
    for options, message in (
        ({"times": [800], "num_steps": 2}, "1 times are for as many steps, not for 2"),
        ({"times": 800}, r"times is 800; it must be a list such as \[999, 499\]"),
        ({"times": "800"}, r"times is '800'; it must be a list"),
        ({"times": [800], "sampler": config.from_config(CHECKPOINT.scheduler)}, "times is an opt"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.inputs(Request("a cat", **{"sampler": "euler"} | options))


@pytest.mark.parametrize("sampler", ["euler", "ddim", "heun", "dpm2", "lms"])
def test_one_step_that_begins_at_the_end_is_hinted_at_with_any_model(sampler):
    options = {"sampler": sampler, "num_steps": 1}
    assert "this run has a first step at 0%" in hint(None, **options)
    assert hint(None, **options, spacing="trailing") is None
    picture = np.zeros((checkpoints.SIZE, checkpoints.SIZE, 3), np.uint8)
    for strength in (1.0, 0.0):
        assert hint(None, image=picture, strength=strength, **options) is None


def test_samplers_that_the_caller_configured_are_his_own():
    own = config.from_config(CHECKPOINT.scheduler, "euler")
    assert hint("turbo", sampler=own) is None
    assert hint("turbo", sampler=own(50)) is None
