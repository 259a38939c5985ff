# SPDX-License-Identifier: MIT
"""Whole pipelines: PyTorch's stored results, one compilation, and what each argument does."""

import copy
import dataclasses
import functools
import inspect
import itertools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support import checkpoints, compilations, pipeline_cases
from support import sampler_maps as maps
from support.networks import psnr

import jaxgen
from jaxgen.diffusion import config, schedule
from jaxgen.stable_diffusion import generate, programs
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.weights import diffusers, tensors

DATA = np.load(pathlib.Path(__file__).parent / "data" / "pipeline.npz")
STORED = json.loads(bytes(DATA["cases"]))
LATENT = {"num_steps": 4, "output": "latent"}


@pytest.fixture
def pipe():
    return pipeline_cases.pipeline("sd1")


@pytest.fixture
def xl():
    return pipeline_cases.pipeline("xl")


@pytest.fixture(scope="module")
def small():
    """A pipeline whose programs take less time to compile."""
    return StableDiffusion(checkpoints.small())


def variant(pipe, **changes):
    """The pipeline with other attributes; parameters and programs are shared."""
    changed = copy.copy(pipe)
    changed.__dict__.update(changes)
    return changed


def close(found, expected, tolerance=1e-5):
    return pipeline_cases.relative_error(found, expected) < tolerance


def picture(seed=0, batch=None):
    shape = (checkpoints.SIZE, checkpoints.SIZE, 3)
    shape = shape if batch is None else (batch, *shape)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def half_mask():
    mask = np.zeros((checkpoints.SIZE, checkpoints.SIZE), bool)
    mask[:, 16:] = True
    return mask


def case_id(i):
    case = STORED[i]
    return "-".join(str(case.get(name, "")) for name in ("kind", "task", "sampler", "num_steps"))


def cases():
    """Every stored case; of each kind and task the first is not slow."""
    firsts = set()
    for i, case in enumerate(STORED):
        group = case["kind"], case.get("task")
        yield pytest.param(i, id=case_id(i), marks=[pytest.mark.slow] if group in firsts else [])
        firsts.add(group)


@pytest.mark.parametrize("i", list(cases()))
def test_final_latents_equal_those_of_diffusers(i):
    """Found at most 1.2e-6, over up to 20 steps; the bound leaves room for other machines."""
    assert STORED[i] == json.loads(json.dumps(pipeline_cases.STORED[i]))
    found = pipeline_cases.ours(STORED[i])
    assert close(found, DATA[f"latent_{i}"], 5e-5)


def test_pictures_equal_those_of_diffusers():
    found = pipeline_cases.ours(STORED[0], "image")
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - DATA["image"])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_call_is_a_request(pipe, monkeypatch):
    """One list of arguments: the call has the fields of Request, in their order, and on_step."""
    parameters = list(inspect.signature(StableDiffusion.__call__).parameters.values())[1:-1]
    fields = dataclasses.fields(Request)
    assert [(p.name, p.default) for p in parameters] == [(f.name, f.default) for f in fields]

    requests = []
    monkeypatch.setattr(StableDiffusion, "draw", lambda self, request, _: requests.append(request))
    values = {field.name: f"value of {field.name}" for field in fields}
    pipe(**values)
    assert requests == [Request(**values)]


SETTINGS = [
    {"prompt": "the horse on (the lake:1.4)", "negative_prompt": "a dog"},
    {"seed": 3},
    {"guidance_scale": 2.0},
    {"guidance_rescale": 0.5},
    {"num_steps": 9},
    {"sampler": "ddim", "eta": 0.7},
    *({"sampler": name} for name in config.SAMPLERS),
    {"sampler": "DPM++ 2M Karras"},
    {"sampler": "euler_a", "spacing": "trailing"},
    {"sampler": "unipc", "spacing": "linspace", "levels": "exponential"},
]


@pytest.mark.parametrize("loop", ["host", "device"])
@pytest.mark.slow
def test_no_setting_compiles_anew(small, loop):
    pipe = variant(small, loop=loop)
    image, mask = picture(), half_mask()
    model = schedule.noise_schedule()
    from_image = {"image": image, "strength": 0.5}
    tasks = [{}, from_image, from_image | {"mask": mask}]
    if loop == "device":
        tasks = [{}, from_image]  # the host's loop has the mask
    for task in tasks:
        pipe("a cat", num_steps=2, **task)
    with compilations.counted() as compiled:
        for setting in SETTINGS:
            pipe(**({"prompt": "a cat", "num_steps": 4} | setting))
        for name, spacing in itertools.product(("euler", "dpmpp_2m"), schedule.SPACINGS):
            own = functools.partial(maps.table, name, model, spacing=spacing)
            pipe("a cat", num_steps=3, sampler=own)
        pipe("a dog", num_steps=4, sampler="heun")
        for task, strength in itertools.product(tasks[1:], (0.0, 0.3, 1.0)):
            settings = {"num_steps": 4, "sampler": "heun", "strength": strength}
            pipe("a dog", **(task | settings))
        if loop == "device":
            pipe("a cat", num_steps=300, sampler="euler")
    assert not compiled


def test_a_second_pipeline_of_equal_networks_compiles_nothing_and_has_its_own_weights(pipe):
    checkpoint = checkpoints.checkpoint("sd1")
    vae = checkpoint.components["vae"]
    arrays = {n: tensors.from_array(t.read() * 0.9) for n, t in vae.tensors.items()}
    components = checkpoint.components | {"vae": vae._replace(tensors=arrays)}
    plain = pipe("a cat", num_steps=2)
    with compilations.counted() as compiled:
        same = StableDiffusion(checkpoint)("a cat", num_steps=2)
        other = StableDiffusion(checkpoint._replace(components=components))("a cat", num_steps=2)
    assert not compiled
    np.testing.assert_array_equal(same, plain)
    assert (other != plain).any()


def test_an_image_does_not_depend_on_its_batch(pipe):
    settings = {"sampler": "euler_ancestral", **LATENT}
    lists = {
        "prompt": ["a cat", "the dog, sunset"],
        "negative_prompt": ["", "a lake"],
        "seed": [4, 9],
        "guidance_scale": [3.0, 6.0],
        "guidance_rescale": [0.0, 0.6],
    }
    both = pipe(**lists, **settings)
    for j in range(2):
        alone = pipe(**{name: values[j] for name, values in lists.items()}, **settings)
        assert close(both[j : j + 1], alone)


def test_image_j_takes_seed_plus_j(pipe):
    counted = pipe(["a cat"] * 2, seed=6, **LATENT)
    assert close(counted, pipe("a cat", seed=[6, 7], **LATENT), 1e-6)
    assert not close(counted[:1], counted[1:], 0.1)


def test_without_guidance_only_the_prompt_is_evaluated(pipe):
    inputs = pipe.inputs(Request("a cat", guidance_scale=1.0))
    assert inputs.context.shape[:2] == (1, 1)
    guided = pipe(["a cat"] * 2, guidance_scale=[1.0, 5.0], seed=[1, 1], **LATENT)
    plain = pipe("a cat", guidance_scale=1.0, seed=1, **LATENT)
    assert close(guided[:1], plain)
    assert not close(guided[1:], plain, 0.01)
    ignored = pipe("a cat", "a dog", guidance_scale=0.5, seed=1, **LATENT)
    assert close(ignored, plain, 1e-6)


def test_no_negative_prompt_is_zeros_in_xl(xl):
    cats, call = ["a cat"] * 2, {"guidance_scale": 3, "seed": [1, 1], **LATENT}
    none = xl(cats, [None, ""], **call)
    zeros = Text(*(jnp.zeros_like(x) for x in xl.embed(cats)))
    given, empty = xl(cats, negative_prompt_embeds=zeros, **call), xl(cats, "", **call)
    assert close(none[:1], given[:1])
    assert close(none[1:], empty[1:])
    assert not close(empty, given, 0.01)


def test_sizes_and_crop_change_what_xl_draws(xl):
    cats, size = ["a cat"] * 2, (checkpoints.SIZE, checkpoints.SIZE)
    plain = xl(cats, **LATENT)
    assert close(xl(cats, original_size=size, target_size=size, **LATENT), plain, 1e-6)
    for other in ({"original_size": (900, 400)}, {"crop": (0, 50)}, {"target_size": (64, 32)}):
        assert not close(xl(cats, **other, **LATENT), plain, 1e-3)


def test_own_noise_and_embeddings_are_those_of_seed_and_prompt(pipe, xl):
    for model in (pipe, xl):
        expected = model(["a cat", "a dog"], "the lake", seed=3, **LATENT)
        noise = generate.initial_noise(np.array([3, 4]), pipeline_cases.LATENT)
        embeds = model.embed(["a cat", "a dog"])
        found = model(
            prompt_embeds=jax.device_get(embeds), negative_prompt_embeds=model.embed(["the lake"]),
            latents=np.asarray(noise), **LATENT,
        )  # fmt: skip
        assert close(found, expected)


def test_long_prompts_are_chunks_side_by_side(pipe):
    long = "a photo of the cat, " * 20
    text = pipe.embed([long])
    assert text.context.shape == (1, 2 * 77, 24)
    # 6 tokens each: the first chunk ends in the middle of the thirteenth
    first = pipe.embed(["a photo of the cat, " * 12 + "a photo of"]).context
    rest = pipe.embed(["the cat, " + "a photo of the cat, " * 7]).context
    assert close(text.context, np.concatenate([first, rest], axis=1), 1e-6)
    second = pipe.embed(["a cat"])
    alone = pipe.embed(["a cat"], num_chunks=2).context
    assert close(alone[:, :77], second.context, 1e-6)
    assert close(alone[:, 77:], pipe.embed([""]).context, 1e-6)
    both = pipe([long, "a cat"], "the dog", seed=[1, 2], **LATENT)
    assert np.isfinite(both).all()
    shorter = pipe("a cat", "the dog", seed=2, **LATENT)
    assert not close(both[1:], shorter, 1e-3)  # the empty chunk is attended to as well


def test_weights_scale_hidden_states_and_keep_their_mean(pipe):
    plain = np.asarray(pipe.embed(["the cat on the lake"]).context)
    emphasised = np.asarray(pipe.embed(["the (cat:1.5) on the lake"]).context)
    weights = np.ones((77, 1))
    weights[2] = 1.5
    expected = plain[0] * weights
    expected *= plain.mean() / expected.mean()
    np.testing.assert_allclose(emphasised[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(pipe.embed(["the (cat:1.0) on the lake"]).context, plain)
    as_text = pipe.embed(["the (cat:1.5) on the lake"], weighting=False).context
    assert not close(as_text, plain, 1e-2)


def test_strength_zero_gives_the_image_back(pipe):
    image = picture(1)
    same = pipe("a cat", image=image, strength=0.0, seed=5, **LATENT)
    known, seeds = image[None].astype(np.float32) / 127.5 - 1, np.array([5])
    clean = programs.encode(
        pipe.programs, pipe.networks.vae, pipe.params["vae"], None, known, seeds, "image"
    )
    assert close(same, clean)
    full = pipe("a cat", image=image, strength=1.0, seed=5, **LATENT)
    assert not close(full, same, 0.1)


def test_outside_the_mask_the_image_stays(pipe):
    image = picture(2)
    settings = {"image": image, "strength": 0.8, "sampler": "euler", "seed": 5, **LATENT}
    clean = pipe("a cat", **settings | {"strength": 0.0})
    found = pipe("a cat", mask=half_mask(), **settings)
    assert close(found[:, :, :8], clean[:, :, :8])
    assert not close(found[:, :, 8:], clean[:, :, 8:], 0.1)
    everywhere = pipe("a cat", mask=np.ones((32, 32)), **settings)
    assert close(everywhere, pipe("a cat", **settings))


def test_pictures_may_be_pillow_images(pipe):
    image, mask = picture(3), half_mask()
    settings = {"num_steps": 3, "strength": 0.7}
    arrays = pipe("a cat", image=image, mask=mask, **settings)
    pillow = pipe(
        "a cat",
        image=Image.fromarray(image),
        mask=Image.fromarray(mask * np.uint8(255)),
        **settings,
    )
    np.testing.assert_array_equal(arrays, pillow)


def test_every_step_is_shown(pipe):
    seen = []
    settings = {"sampler": "euler", "seed": [1, 2], **LATENT}
    final = pipe(
        "a cat", on_step=lambda done, total, x, x0: seen.append((done, total, x, x0)), **settings
    )
    assert [(done, total) for done, total, _, _ in seen] == [(i, 4) for i in range(1, 5)]
    latents, estimates = ([np.asarray(s[k]) for s in seen] for k in (2, 3))
    assert all(x.shape == (2, *pipeline_cases.LATENT) for x in latents + estimates)
    np.testing.assert_array_equal(latents[-1], final)
    assert close(estimates[-1], final)  # Euler ends at sigma 0
    assert not close(estimates[0], final, 1e-3)
    assert pipe.decode(estimates[0]).shape == (2, 32, 32, 3)


def test_pictures_are_decoded_in_tiles_above_a_size(pipe):
    tiled = variant(pipe, vae_tile=8)
    whole = variant(pipe, vae_tile=32)
    for loop in ("host", "device"):
        images = [variant(p, loop=loop)("a cat", num_steps=2) for p in (tiled, whole)]
        assert psnr(*images) > 15
        assert (images[0] != images[1]).any()


@pytest.mark.slow
def test_bfloat16_is_close_to_float32(pipe):
    half = StableDiffusion(checkpoints.checkpoint("sd1"), jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    settings = {"num_steps": 20, "sampler": "dpmpp_2m", "guidance_scale": 5}
    images = [model(["a cat", "a dog"], **settings) for model in (half, pipe)]
    print(f"bfloat16: {psnr(*images):.1f} dB")
    assert psnr(*images) > 30  # 46.9 found


def test_a_result_that_is_not_finite_says_which_type_to_use(pipe):
    latents = np.zeros((2, 16, 16, 4), np.float32)
    latents[1, 0, 0] = np.inf
    for dtype, advice in (
        (jnp.float16, "with dtype bfloat16 or float32"),
        (jnp.bfloat16, "with dtype float32"),
        (jnp.float32, "check the checkpoint's weights"),
    ):
        with pytest.raises(ValueError, match=f"image 1 is not finite in .*; .*{advice}"):
            variant(pipe, dtype=jnp.dtype(dtype)).decode(latents)
    poisoned = copy.copy(pipe.params)
    poisoned["unet"] = jax.tree.map(lambda x: x * np.float32(np.nan), poisoned["unet"])
    for output in ("latent", "image"):
        with pytest.raises(ValueError, match="image 0, 1 is not finite in float32"):
            variant(pipe, params=poisoned)(["a"] * 2, num_steps=2, output=output)


def test_the_buffer_of_the_noise_is_given_away(pipe):
    inputs, on_device = pipe.inputs(Request("a cat", num_steps=2)), variant(pipe, loop="device")
    on_device.latents(inputs)
    assert inputs.noise.is_deleted()
    for again in (on_device, pipe):
        with pytest.raises(ValueError, match="were run, and their noise given away; make new ones"):
            again.latents(inputs)


def test_a_folder_is_a_pipeline(pipe, tmp_path):
    diffusers.write(tmp_path / "model", checkpoints.checkpoint("sd1"))
    loaded = jaxgen.StableDiffusion.from_pretrained(tmp_path / "model")
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(pipe.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (loaded.networks, loaded.scheduler) == (pipe.networks, pipe.scheduler)
    found = variant(loaded, programs=pipe.programs)("a cat", "a dog", **LATENT)
    np.testing.assert_array_equal(found, pipe("a cat", "a dog", **LATENT))


def test_the_autoencoder_of_another_model_is_taken(tmp_path):
    diffusers.write(tmp_path / "model", checkpoints.checkpoint("sd1"))
    other = checkpoints.checkpoint("sd1").components["vae"]
    arrays = {n: tensors.from_array(t.read() * 2) for n, t in other.tensors.items()}
    components = checkpoints.checkpoint("sd1").components | {"vae": other._replace(tensors=arrays)}
    diffusers.write(tmp_path / "vae", checkpoints.checkpoint("sd1")._replace(components=components))
    plain, changed = (
        StableDiffusion.from_pretrained(tmp_path / "model", vae=vae).params
        for vae in (None, tmp_path / "vae")
    )
    for name in plain:
        factor = 2 if name == "vae" else 1
        for a, b in zip(*(jax.tree.leaves(p[name]) for p in (plain, changed)), strict=True):
            np.testing.assert_array_equal(a * factor, b)


def test_a_distilled_model_with_the_usual_settings_is_warned_about(tmp_path):
    diffusers.write(tmp_path / "sd-turbo", checkpoints.checkpoint("sd1"))
    loaded = StableDiffusion.from_pretrained(tmp_path / "sd-turbo")
    with pytest.warns(UserWarning, match=r"a distilled model \(Turbo\), made for 1 to 4 steps"):
        loaded.inputs(Request("a cat"))
    loaded.inputs(Request("a cat", num_steps=1, guidance_scale=1, spacing="trailing"))


def test_a_folder_that_is_no_pipeline_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        StableDiffusion.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="dtype is int8; use one of float32, bfloat16, float16"):
        StableDiffusion.from_pretrained(tmp_path, dtype=jnp.int8)
    with pytest.raises(ValueError, match="loop is 'gpu'; use 'device', 'host', or None"):
        StableDiffusion(checkpoints.checkpoint("sd1"), loop="gpu")
    folder = tmp_path / "model"
    diffusers.write(folder, checkpoints.checkpoint("sd1"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="unet"):
        StableDiffusion.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(ValueError, match="unet"):
        StableDiffusion.from_pretrained(folder)


def test_importing_jaxgen_imports_no_jax():
    code = "import sys, jaxgen; assert jaxgen.__version__; assert 'jax' not in sys.modules; "
    code += (
        "assert 'numpy' not in sys.modules; import jaxgen.pictures.images; jaxgen.StableDiffusion"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="module 'jaxgen' has no attribute 'Stable'"):
        jaxgen.Stable  # noqa: B018


# the second is last, because it makes the others' programs compile anew
@pytest.mark.parametrize(
    "masked", [False, pytest.param(True, marks=(pytest.mark.slow, pytest.mark.optimized))]
)
def test_the_loop_on_the_device_is_the_loop_from_python(small, masked):
    """Text and image come as arrays, so that the UNet alone is compiled."""
    rng = np.random.default_rng(3)
    texts = [Text(rng.standard_normal((1, 77, 24), np.float32)) for _ in range(2)]
    settings = {"prompt_embeds": texts[0], "negative_prompt_embeds": texts[1], "seed": 2, **LATENT}
    if masked:
        latents = rng.standard_normal((1, *pipeline_cases.LATENT), np.float32)
        settings |= {"image_latents": latents, "strength": 0.6, "mask": half_mask()}
    found = [
        variant(small, loop=loop)(sampler="euler_ancestral", **settings)
        for loop in ("host", "device")
    ]
    assert close(*found, 2e-6)
