# SPDX-License-Identifier: MIT
"""The minimal scripts are short, stand alone, and give the numbers of the library."""

import ast
import dataclasses
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import autoencoder, gan, vae
from experiments.minimal import diffusion
from jaxgen.data import sets
from jaxgen.diffusion import guidance, sample, schedule, sigmas, timestep_samplers
from jaxgen.runs import experiment, plan, run
from jaxgen.train import augment, latent_losses, optimizer, order, parallel, step

FILES = sorted((Path(__file__).parent.parent / "experiments" / "minimal").glob("*.py"))
ALLOWED = {"jax", "flax", "optax", "numpy", "sklearn", "PIL"} | sys.stdlib_module_names
NUM_STEPS = 20  # more than an epoch
SAME = 1e-6  # relative; most losses are equal to the bit, sums of another program may round anew
# Adam divides by a gradient's own size: a bit of a small one grows (on CPUs without AVX-512 from
# the sixth step on, to 2e-4 at the twentieth); another order of the data changes losses by 1e-2
LATER = 1e-3


def test_there_are_four_scripts_of_at_most_150_lines():
    lines = {file.stem: file.read_text().splitlines() for file in FILES}

    assert sorted(lines) == ["autoencoder", "diffusion", "gan", "vae"]
    for name, text in lines.items():
        assert len(text) <= 150, name
        assert max(map(len, text)) <= 100, name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_minimal_script_stands_alone(file):
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module)

    assert {name.split(".")[0] for name in names} <= ALLOWED


def metrics(script):
    """The metrics of the first steps of the script's own run, which leaves no files here."""
    config = script.PRESETS["digits"]
    options = dataclasses.replace(config.run, steps=NUM_STEPS, num_devices=1)
    job = run._checked(dataclasses.replace(config, run=options), script.build, plan.open_split)
    init_key, train_key = (
        parallel.put(keys(options), job.mesh)
        for keys in (experiment.init_keys, experiment.train_keys)
    )
    state = jax.jit(job.system.init)(init_key)
    return run._compiled(job)(state, job.feed(0)(0, NUM_STEPS), train_key)[1]


@pytest.mark.parametrize(
    ("script", "names"),
    [(autoencoder, ["loss"]), (vae, ["loss"]), (gan, ["d_loss", "g_loss"])],
    ids=["autoencoder", "vae", "gan"],
)
def test_a_minimal_script_has_the_losses_of_the_script_and_writes_its_picture(
    script, names, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = script.__name__.split(".")[-1]
    file = next(file for file in FILES if file.stem == name)
    monkeypatch.setattr(sys, "argv", [str(file), str(NUM_STEPS)])

    left = runpy.run_path(str(file), run_name="__main__")

    own = np.asarray(left["_"]).reshape(NUM_STEPS, -1)  # the losses, which it has no use for
    expected = metrics(script)
    expected = np.stack([expected[n] for n in names], axis=1)
    np.testing.assert_allclose(own[:5], expected[:5], rtol=SAME)
    np.testing.assert_allclose(own, expected, rtol=LATER)
    with Image.open(tmp_path / "runs" / "minimal" / f"{name}.png") as picture:
        assert picture.size[0] == 580


@pytest.fixture(scope="module")
def unet():
    """Parameters of the UNet of minimal/diffusion.py, drawn so that its last layer is not zero."""
    shapes = jax.eval_shape(
        diffusion.UNet().init, jax.random.key(0), jnp.zeros((8, 8, 1)), 1, jnp.int32(0)
    )
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * generator.standard_normal(leaf.shape, np.float32)), shapes
    )


def library_loss():
    """The library's loss: latents are the pixels themselves, a caption is one id, the label.

    The library counts times from 0, the first noisy one; the minimal script from the clean image.
    """
    loss = latent_losses.diffusion_loss(
        predict=lambda params, x, t, ids: diffusion.UNet().apply(params, x, t + 1, ids[0]),
        embed=lambda params, ids: ids,
        alphas_cumprod=np.cos(diffusion.phi[1:]) ** 2,
        prediction_type="v_prediction",
        empty_caption=np.array([diffusion.NO_LABEL]),
        caption_dropout=diffusion.LABEL_DROPOUT,
    )

    def of_pixels(params, example, key):
        x = example["image"]
        certain = jnp.full_like(x, -jnp.inf)  # log-variance of a posterior that is one point
        latent = {"posterior": jnp.concatenate([x, certain], -1), "ids": example["label"][None]}
        return loss({"unet": params, "text_encoder": {}}, latent, key)

    return augment.on_uint8(of_pixels)


def test_minimal_diffusion_has_the_data_and_the_losses_of_the_library(unet):
    train = sets.load("digits")
    dataset = diffusion.load_digits()
    np.testing.assert_array_equal(dataset[0], train.images)
    np.testing.assert_array_equal(dataset[1], train.labels)
    train_key, data_key = jax.random.split(jax.random.key(2))
    rate = optimizer.schedule(3e-3, diffusion.NUM_STEPS, "cosine")
    tx = optimizer.adam(rate)
    one = jax.jit(step.scan_steps(step.gradient_step(library_loss(), tx)))
    images = {"image": jnp.asarray(train.images), "label": jnp.asarray(train.labels)}
    rows = order.epoch_order(data_key, jnp.int32(0), len(train.images), diffusion.BATCH_SIZE)

    state, expected = step.init_state(unet, tx), []
    params, opt_state, own = unet, diffusion.tx.init(unet), []
    for i in range(20):
        state, terms = one(state, (images, rows[i][None]), train_key)
        expected.append(terms["loss"][0])
        params, opt_state, value = diffusion.update(
            params, opt_state, i, *dataset, train_key, data_key
        )
        own.append(value)

    np.testing.assert_allclose(own, expected, rtol=SAME)


def test_minimal_ddim_is_the_sampler_of_the_library():
    noise = jax.random.normal(jax.random.key(3), (2, 8, 8, 1))
    model = schedule.Schedule(np.cos(diffusion.phi[1:]) ** 2, "v_prediction")
    table = timestep_samplers.ddim(model, sigmas.timestep_grid(model, 10, "trailing"))

    def predict(x, t):  # any function of both
        return jnp.tanh(x) * (0.3 + t / diffusion.NUM_TIMES)

    keys = jax.random.split(jax.random.key(4), 2)
    denoise = sample.at_times(lambda x, t: predict(x, t + 1), table)
    expected = sample.sample(denoise, table, noise, keys)
    np.testing.assert_allclose(diffusion.ddim(predict, noise, 10), expected, atol=1e-5)


def test_minimal_guidance_is_that_of_the_library(unet):
    x = jax.random.normal(jax.random.key(5), (3, 8, 8, 1))
    labels = jnp.array([1, 4, 7])
    pairs = jnp.stack([jnp.full(3, diffusion.NO_LABEL), labels], axis=1).reshape(-1)

    def model(x, t):
        return jax.vmap(diffusion.UNet().apply, (None, 0, None, 0))(unet, x, t, pairs)

    guide = guidance.guide(model, jnp.full(3, diffusion.GUIDANCE), jnp.zeros(3))
    expected = jax.jit(guide)(x, jnp.int32(500))
    own = diffusion.guided(unet, x, jnp.int32(500), labels)
    np.testing.assert_allclose(own, expected, atol=1e-5)
