# SPDX-License-Identifier: MIT
"""What callers may ask for, as arrays, and what they may not: errors before anything compiles."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import checkpoints, compilations, pipeline_cases
from support import sampler_maps as maps

from jaxgen.diffusion import schedule
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.nn.stable_diffusion.clip import CLIPTextModel
from jaxgen.nn.stable_diffusion.unet import UNet2DConditionModel
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.request import Request
from jaxgen.stable_diffusion.text_encoding import Text

SCHEDULER = checkpoints.SCHEDULERS["sd1"]
# no weights: only what the configurations say is asked
NETWORKS = Networks(
    UNet2DConditionModel(sample_size=(8, 6), cross_attention_dim=24),
    AutoencoderKL(block_out_channels=(8,) * 4),
    {"text_encoder": CLIPTextModel(num_hidden_layers=3)},
)
PICTURE = np.zeros((32, 32, 3), np.uint8)


def batch(networks=NETWORKS, **options):
    request = Request(**({"prompt": "a cat"} | options))
    return arguments.batch(request, networks, SCHEDULER)


def test_single_values_serve_all_images():
    found = batch(prompt=["a", "b", "c"], negative_prompt="d", guidance_scale=[1, 2, 3], seed=5)
    assert found.phases.positives == [["a", "b", "c"]]
    assert found.phases.negatives == [["d"] * 3]
    rows = len(found.table.t)
    np.testing.assert_array_equal(found.guidance_scale, [[1, 2, 3]] * rows)
    np.testing.assert_array_equal(found.guidance_rescale, [[0, 0, 0]] * rows)
    np.testing.assert_array_equal(found.seeds, [5, 6, 7])
    assert found.size == (64, 48)
    assert not found.from_image


@pytest.mark.parametrize(
    "options",
    [
        {"seed": [3, 3, 9]},
        {"guidance_scale": [1.0, 2.0, 3.0]},
        {"negative_prompt": ["a", None, "b"]},
        {"image": [PICTURE] * 3},
        {"latents": np.zeros((3, 4, 4, 4))},
        {"prompt": None, "prompt_embeds": Text(np.zeros((3, 77, 24)))},
    ],
)
def test_the_batch_is_as_long_as_any_list(options):
    assert len(batch(**options).seeds) == 3


def test_a_list_of_one_counts_its_seeds_up_like_a_single_one():
    np.testing.assert_array_equal(batch(prompt=["a", "b"], seed=[7]).seeds, [7, 7])
    np.testing.assert_array_equal(batch(prompt=["a", "b"], seed=7).seeds, [7, 8])


def test_guidance_of_one_and_below_is_none():
    assert not batch(guidance_scale=1.0).guided
    assert not batch(guidance_scale=[0.0, 1.0]).guided
    assert batch(guidance_scale=[0.0, 1.5]).guided
    found = batch(guidance_scale=[0.0, 1.5])
    np.testing.assert_array_equal(found.guidance_scale, [[1, 1.5]] * len(found.table.t))


def test_pictures_come_as_pillow_bytes_or_floats():
    bytes_ = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    floats = bytes_.astype(np.float32) / 255 * 2 - 1
    for image in (bytes_, floats, Image.fromarray(bytes_), bytes_[None], [bytes_], [floats[:]]):
        found = batch(image=image)
        assert found.size == (16, 24)
        np.testing.assert_allclose(found.image, floats[None], atol=1e-6)
    assert batch(prompt=["a", "b"], image=bytes_).image.shape == (2, 16, 24, 3)
    grey = Image.new("L", (24, 16), 255)
    np.testing.assert_array_equal(batch(image=grey).image, 1)


def test_masks_come_as_pillow_bytes_floats_or_booleans():
    made_anew = np.zeros((32, 32), bool)
    made_anew[:5, 7:] = True
    for mask in (
        made_anew,
        made_anew * np.uint8(255),
        made_anew * 0.7,
        made_anew[None, :, :, None],
        Image.fromarray(made_anew * np.uint8(200)),
    ):
        found = batch(image=PICTURE, mask=mask).mask
        np.testing.assert_array_equal(found[0, :, :, 0], made_anew)


def test_strength_says_how_many_steps_run():
    for strength, rows in ((0.0, 0), (0.3, 3), (0.75, 7), (1.0, 10)):
        table = batch(image=PICTURE, strength=strength, num_steps=10).table
        assert int(table.num_rows - table.start_row) == rows, strength


def test_samplers_are_names_configured_ones_or_tables():
    model = schedule.noise_schedule(prediction_type="epsilon")
    configured = functools.partial(maps.table, "euler", model, levels="karras")
    table = configured(10)
    named = batch(sampler="euler", num_steps=10).table
    assert int(named.num_rows) == 10
    for sampler, steps in ((configured, 10), (table, None)):
        found = batch(sampler=sampler, num_steps=steps).table
        np.testing.assert_array_equal(found.update, table.update)
        assert np.abs(found.t - named.t).max() > 1


@pytest.mark.parametrize("name", ["DPM++ 2M Karras", "dpmpp_2m_karras", "dpmpp_2m"])
def test_names_spacing_and_levels_start_from_the_checkpoints_own_schedule(name):
    """The v-prediction model stays one."""
    options = {"spacing": "trailing", "levels": "karras"}
    scheduler = checkpoints.SCHEDULERS["sd2"]
    request = Request("a cat", num_steps=6, sampler=name, **options)
    found = arguments.batch(request, NETWORKS, scheduler).table
    model = schedule.noise_schedule(prediction_type="v_prediction")
    expected = maps.table("dpmpp_2m", model, 6, **options)
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, right)


def test_spacing_alone_changes_the_checkpoints_own_sampler():
    assert batch(num_steps=4).table.t[0] == 751
    assert batch(num_steps=4, spacing="trailing").table.t[0] == 999


TABLE = maps.table("euler", schedule.noise_schedule(), 10)
BAD = [
    ({"sampler": TABLE, "num_steps": 10}, "num_steps is 10, and the sampler is a Table"),
    ({"sampler": TABLE, "num_steps": 50}, "a Table, which has its own, of 10 eval"),
    ({"sampler": TABLE, "image": PICTURE, "strength": 0.2}, "build it with start_step"),
    ({"sampler": "lms", "spacing": "leading", "num_steps": 1000}, "steps 1 and 2 of 1000 begin"),
    ({"sampler": "deis", "spacing": "leading", "num_steps": 999}, "begin at the same one"),
    ({"times": []}, "times is an empty list"),
    ({"strength": 0.3}, "no image is given"),
    ({"control_scale": 0.3, "guess_mode": True}, "control_scale and guess_mode: of ControlNets"),
    ({"pag_layers": "nonsense"}, "'nonsense', which is no self-attention"),
    ({"pag_layers": "down"}, "pag_layers need a pag_scale; leave them out"),
    ({"prompt": []}, "prompt is an empty list"),
    ({"prompt": None}, "give a prompt"),
    ({"prompt": 7}, "prompt holds 7; expected a string"),
    ({"prompt": ["a", None]}, "prompt holds None; expected a string"),
    ({"prompt": ["a", "b"], "negative_prompt": ["a", "b", "c"]}, "the batch has 3 images, but pro"),
    ({"prompt": ["a", "b", "c"], "seed": [1, 2]}, "but seed has 2; give one for each"),
    ({"num_steps": 0}, "num_steps is 0; it must be a whole number, at least 1"),
    ({"num_steps": 2.5}, "num_steps is 2.5; it must be a whole number"),
    ({"num_steps": 10**9}, "num_steps|steps"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan; it must be finite"),
    ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5; it must be between 0 and 1"),
    ({"sampler": "eulr"}, "unknown sampler 'eulr'; known are .*euler_ancestral"),
    ({"sampler": 3}, "sampler is a int; give one of ddim"),
    ({"spacing": "even"}, "spacing is 'even'; known are leading"),
    ({"levels": "kerras"}, "levels is 'kerras'; known are karras"),
    ({"sampler": "lcm", "spacing": "trailing"}, "lcm .* has no spacing; leave it out, or use one"),
    ({"sampler": "euler_karras", "levels": "beta"}, "asks for levels 'karras', but levels is 'bet"),
    ({"sampler": len, "levels": "beta"}, "levels is an option of samplers by name"),
    ({"sampler": len, "eta": 0.5}, "eta is an option of samplers by name"),
    ({"seed": -1}, "seed is -1; it must be a whole number from 0 to"),
    ({"seed": 2**32 - 1, "prompt": ["a", "b"]}, "seed is 4294967296; it must be"),
    ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    ({"height": 30}, "height is 30; it must be a positive multiple of 8 pixels"),
    ({"width": 0}, "width is 0; it must be a positive multiple of 8"),
    ({"width": 64.0}, "width is 64.0; it must be"),
    ({"height": 2**16, "width": 2**16}, "65536 x 65536 pixels are too many"),
    ({"image": PICTURE, "strength": 1.01}, "strength is 1.01; it must lie between 0 and 1"),
    ({"image": PICTURE, "strength": float("nan")}, "strength is nan"),
    ({"image": np.zeros((32, 32, 5), np.uint8)}, r"the image has shape \(1, 32, 32, 5\); expected"),
    ({"image": PICTURE, "strength": 0.04, "num_steps": 20}, "strength 0.04 of 20 steps is no"),
    ({"image": PICTURE.astype(int)}, "the image has type int64; expected uint8"),
    ({"image": [PICTURE, PICTURE[:16]]}, "the images differ in size"),
    ({"image": PICTURE[:30]}, "height is 30; it must be a positive multiple of 8"),
    ({"image": PICTURE, "height": 64}, "the image has 32 x 32 pixels .* height and width are 64"),
    ({"image": PICTURE, "mask": PICTURE[:16, :, 0]}, "the mask has 16 x 32 pixels .* of one size"),
    ({"image": PICTURE, "mask": PICTURE[0, 0]}, r"the mask has shape \(3,\)"),
    ({"mask": PICTURE[:, :, 0]}, "give the image too"),
    ({"latents": np.zeros((1, 4, 8, 8))}, r"expected \[B, H/8, W/8, 4\]"),
    ({"latents": np.zeros((4, 8, 4))}, r"latents have shape \(4, 8, 4\)"),
    ({"latents": np.zeros((1, 4, 4, 4)), "height": 64}, r"expected \[B, 8, 4, 4\] for 64 x 32"),
    ({"output": "jpeg"}, "output is 'jpeg'; use one of image, latent"),
]  # fmt: skip
OBJECTS = np.array([None, "a"], object)
WRONG_TYPES = [
    ({"prompt": {"a": 1}}, "prompt holds {'a': 1}; expected a string"),
    ({"prompt": [["a"]]}, r"prompt holds \['a'\]; expected"),
    ({"prompt": np.zeros(2)}, "prompt holds 0.0; expected"),
    ({"negative_prompt": 3}, "negative_prompt holds 3; expected"),
    ({"num_steps": "20"}, "num_steps is '20'; it must be a whole number"),
    ({"num_steps": True}, "num_steps is True"),
    ({"num_steps": "4"}, "num_steps is '4'"),
    ({"guidance_scale": "7"}, "guidance_scale is '7'; it must be finite"),
    ({"guidance_scale": [7, None]}, r"guidance_scale is \[7, None\]"),
    ({"guidance_scale": OBJECTS}, "guidance_scale is array"),
    ({"guidance_scale": [[1.0], [2.0, 3.0]]}, "guidance_scale is"),
    ({"guidance_rescale": "x"}, "guidance_rescale is 'x'; it must be between 0 and 1"),
    ({"sampler": len}, "sampler <built-in function len> cannot be called as sampler"),
    ({"sampler": lambda num_steps, start_step=0: num_steps}, "returns a int; it must return a T"),
    ({"sampler": ["euler"]}, "sampler is a list"),
    ({"spacing": 3}, "spacing is 3; it must be a string such as 'trailing'"),
    ({"levels": OBJECTS}, "levels is array.*; it must be a string such as 'karras'"),
    ({"seed": [1.5]}, "seed is 1.5; it must be a whole number"),
    ({"seed": "x", "prompt": ["a", "b"]}, "seed is 'x'; it must be a whole number"),
    ({"seed": None}, "seed is None"),
    ({"seed": [True]}, "seed is True"),
    ({"seed": np.array([0.5, 1])}, "seed is 0.5"),
    ({"seed": {}}, "seed is {}"),
    ({"height": "64"}, "height is '64'; it must be a positive multiple of 8"),
    ({"width": [64]}, r"width is \[64\]; it must"),
    ({"image": "a.png"}, r"a\.png: No such file"),
    ({"image": OBJECTS}, "the image has type object; expected uint8"),
    ({"image": []}, "image is an empty list"),
    ({"image": [[[1], [2, 3]]]}, "image cannot be read as one array"),
    ({"image": np.zeros((0, 8, 3), np.uint8)}, "the image has shape"),
    ({"image": np.full((8, 8, 3), np.nan)}, "the image has floats from nan to nan; expected"),
    ({"image": PICTURE, "strength": "x"}, "strength is 'x'; it must lie between 0 and 1"),
    ({"strength": None}, "strength is None"),
    ({"strength": [0.5]}, r"strength is \[0.5\]"),
    ({"image": PICTURE, "mask": "white"}, "white: No such file"),
    ({"image": PICTURE, "mask": OBJECTS}, "the mask has type object"),
    ({"image": PICTURE, "mask": np.full((32, 32), np.nan)}, "the mask has type float64 and"),
    ({"latents": "x"}, "latents of type <U1 hold values that are no finite numbers"),
    ({"latents": OBJECTS}, "latents of type object"),
    ({"latents": [[1], [2, 3]]}, "latents cannot be read as one array"),
    ({"latents": np.full((1, 8, 6, 4), np.nan)}, "latents of type float64 hold"),
    ({"latents": np.zeros((0, 8, 6, 4))}, "latents have shape"),
    ({"output": None}, "output is None; use one of"),
    ({"output": np.array(["image", "latent"])}, "output is array"),
    ({"eta": "x"}, "eta is 'x'; it must be a number"),
    ({"eta": float("nan")}, "eta is nan"),
    ({"eta": -0.1}, "eta is -0.1"),
    ({"clip_skip": "x"}, "clip_skip is 'x'; use 0"),
    ({"clip_skip": 1.0}, "clip_skip is 1.0"),
    ({"weighting": "no"}, "weighting is 'no'; use True or False"),
    ({"original_size": 64}, "two numbers each: .* got 64, "),
    ({"crop": 5}, "two numbers each"),
    ({"crop": None}, "two numbers each"),
    ({"crop": ("a", "b")}, "two numbers each"),
    ({"target_size": (float("inf"), 8)}, "two numbers each"),
    ({"prompt_embeds": np.zeros((1, 77, 24))}, "prompt_embeds is a ndarray; pass what `embed`"),
    (
        {"prompt": None, "prompt_embeds": Text(np.zeros((1, 77, 24))), "clip_skip": 1},
        "clip_skip is 1, of a prompt, and prompt_embeds are given",
    ),
    ({"prompt_embeds": Text(3)}, "prompt_embeds has context of shape"),
    ({"negative_prompt_embeds": "x"}, "negative_prompt_embeds is a str"),
    ({"prompt_embeds": Text(np.zeros((1, 77, 24)))}, "prompt and prompt_embeds are both given"),
    (
        {"negative_prompt": "x", "negative_prompt_embeds": Text(np.zeros((1, 77, 24)))},
        "negative_prompt and negative_prompt_embeds are both given",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_request_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        batch(**options)


@pytest.mark.parametrize(
    ("options", "message"), WRONG_TYPES, ids=lambda value: str(value).split(" at 0x")[0][:40]
)
def test_an_argument_of_a_wrong_type_is_one_error(options, message):
    with pytest.raises(ValueError, match=message) as error:
        batch(**options)
    assert len(str(error.value)) < 400


def test_an_inpainting_model_needs_image_and_mask():
    unet = UNet2DConditionModel(in_channels=9, cross_attention_dim=24)
    networks = NETWORKS._replace(unet=unet)
    with pytest.raises(ValueError, match="this is an inpainting model; give an image and a mask"):
        batch(networks)
    with pytest.raises(ValueError, match="give an image and a mask"):
        batch(networks, image=PICTURE)


def test_a_model_without_a_size_needs_one():
    with pytest.raises(ValueError, match="states no size of its own; give height and width"):
        batch(NETWORKS._replace(unet=UNet2DConditionModel(cross_attention_dim=24)), height=64)


def text(*shape, pooled=None):
    return Text(np.zeros(shape, np.float32), pooled)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sd1", {"prompt": []}, "prompt is an empty list"),
        ("sd1", {"height": 33}, "multiple of 2 pixels"),
        ("sd1", {"sampler": "ddm"}, "unknown sampler 'ddm'; known are ddim"),
        ("sd1", {"strength": 2}, "strength is 2"),
        ("sd1", {"image": PICTURE, "mask": np.zeros((32, 16))}, "must be of one size"),
        ("sd1", {"latents": np.zeros((1, 16, 16, 3))}, r"latents have shape \(1, 16, 16, 3\)"),
        ("sd1", {"clip_skip": 4}, r"clip_skip is 4; use 0 \(no layer left out\) to 3"),
        ("sd1", {"clip_skip": -1}, "clip_skip is -1"),
        ("sd1", {"prompt": "(cat:1e9)", "negative_prompt": "(cat:99999)"}, "beyond 1000"),
        ("sd1", {"prompt_embeds": text(1, 77, 25)}, r"expected \[B, T, 24\]"),
        ("sd1", {"negative_prompt_embeds": text(77, 24)}, r"negative_prompt_embeds .*\(77, 24\)"),
        ("xl", {"prompt_embeds": text(1, 77, 40)}, "this model needs pooled as well"),
        ("xl", {"prompt_embeds": text(1, 77, 40, pooled=np.zeros(20))}, r"pooled of shape \(20,\)"),
        ("sd1", {"prompt_embeds": text(1, 77, 24, pooled=np.zeros((1, 20)))}, "takes no pooled"),
        ("refiner", {"target_size": (64, 64)}, "no input of XL's refiner"),
        ("xl", {"crop": (1, 2, 3)}, "original_size, crop and target_size are two numbers each"),
        ("sd1", {"crop": (1, 2)}, "inputs of Stable Diffusion XL"),
        ("inpaint", {}, "this is an inpainting model"),
    ],
)
def test_a_bad_call_compiles_nothing(kind, options, message):
    pipe = pipeline_cases.pipeline(kind)
    with compilations.counted() as compiled, pytest.raises(ValueError, match=message):
        pipe(**({"prompt": "a cat"} | options))
    assert not compiled


@pytest.mark.parametrize("texts", ["a cat", [], [None], [["a cat"]]])
def test_texts_to_embed_are_a_list_of_strings(texts):
    with pytest.raises(ValueError, match="give a list of one or more strings"):
        pipeline_cases.pipeline("sd1").embed(texts)


@pytest.mark.parametrize("on_step", [3, "print"])
def test_on_step_is_a_function(on_step):
    with pytest.raises(ValueError, match=r"on_step is a .*; give a function"):
        pipeline_cases.pipeline("sd1")("a cat", on_step=on_step)


def test_the_counter_of_compilations_counts():
    pipe = pipeline_cases.pipeline("sd1")
    with compilations.counted() as compiled:
        pipe.programs.noise(jnp.zeros(3, jnp.uint32), shape=(3, 5, 7))
    assert compiled
