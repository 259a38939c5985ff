# SPDX-License-Identifier: MIT
"""Every argument takes its own values, NumPy's among them, and refuses all else in one message."""

import dataclasses
import functools
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from fuzz import calls
from support import checkpoints, controlnets, pipeline_cases

from jaxgen.adapters import spec
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.stable_diffusion.request import Request
from jaxgen.weights import diffusers

PICTURE = np.zeros((16, 16, 3), np.uint8)
# kind of model, number of ControlNets, what is given already
SITUATIONS = {
    "text": ("sd1", 0, {}),
    "image": ("sd1", 0, {"image": PICTURE, "mask": PICTURE[..., 0] == 0, "strength": 0.5}),
    "xl": ("xl", 0, {"crop": (0, 0), "original_size": None, "target_size": None, "clip_skip": 0}),
    "controlnets": (
        "sd1",
        2,
        {
            "control_image": [PICTURE, PICTURE],
            "control_scale": 1.0,
            "control_start": 0.0,
            "control_end": 1.0,
            "guess_mode": False,
        },
    ),
}


@functools.cache
def batch_of(situation):
    """A function that checks a request with the given options."""
    kind, count, given = SITUATIONS[situation]
    checkpoint = checkpoints.checkpoint(kind)
    networks = loading.networks(checkpoint, controlnets=[controlnets.component(kind)] * count)
    options = {"prompt": "a cat", "num_steps": 3} | given

    def batch(**own):
        return arguments.batch(Request(**(options | own)), networks, checkpoint.scheduler)

    return batch


@pytest.mark.filterwarnings("ignore:a mask selects no pixel")  # some are of zeros
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_call_takes_or_refuses_every_value_in_one_message(situation):
    given = SITUATIONS[situation][2]
    names = list(given) or [field.name for field in dataclasses.fields(Request)]
    faults = calls.faults(names, batch_of(situation))
    assert faults == [], chr(10).join(faults)


NUMBERS = {
    "num_steps": 3, "guidance_scale": 7.5, "guidance_rescale": 0.5, "seed": 5, "height": 16,
    "width": 16, "eta": 0.5, "clip_skip": 1, "weighting": False,
}  # fmt: skip
WITH_MORE = {
    "image": {"strength": 0.75},
    "xl": {"crop": (3, 4), "original_size": (8, 8), "target_size": (8, 8)},
    "controlnets": {
        "control_scale": 0.5, "control_start": 0.25, "control_end": 0.75, "guess_mode": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray, lambda x: np.asarray(x)[()]])
def test_single_numbers_of_numpy_and_jax_are_numbers(convert):
    for situation in SITUATIONS:
        options = WITH_MORE.get(situation, {"sampler": "ddim", **NUMBERS})
        foreign = {
            name: tuple(map(convert, value)) if isinstance(value, tuple) else convert(value)
            for name, value in options.items()
            if name != "sampler"
        }
        batch = batch_of(situation)
        theirs, ours = batch(**(options | foreign)), batch(**options)
        for one, other in zip(pipeline_leaves(theirs), pipeline_leaves(ours), strict=True):
            np.testing.assert_array_equal(one, other)


def pipeline_leaves(value):
    """The values of a named tuple, and of those within it."""
    if isinstance(value, list | tuple):
        return [leaf for entry in value for leaf in pipeline_leaves(entry)]
    return [value]


def test_adapters_take_or_refuse_every_value_in_one_message():
    pipe = pipeline_cases.pipeline("sd1")

    def set_one(path="no.safetensors", strength=1.0, factors=(), text=1.0):
        factors = {"text": text} if isinstance(factors, tuple) and not factors else factors
        pipe.set_adapters([(path, strength, factors)])

    names = ["path", "strength", "factors", "text"]
    faults = calls.faults(names, set_one) + calls.faults(["adapters"], pipe.set_adapters)
    assert faults + calls.faults(["embeddings"], pipe.set_embeddings) == []
    assert spec.parts_of(("a", np.float32(0.5), {"text": np.int64(2)})) == ("a", 0.5, {"text": 2})


def test_texts_to_embed_take_or_refuse_every_value_in_one_message():
    pipe = pipeline_cases.pipeline("sd1")
    programs = pipe.embedder.programs._replace(embed=lambda *inputs, **options: None)
    embedder = pipe.embedder._replace(programs=programs)  # all but the arithmetic
    names = list(inspect.signature(pipe.embed).parameters)
    assert calls.faults(names, lambda **own: embedder.encode(**({"texts": ["a"]} | own))) == []


def test_loading_takes_or_refuses_every_value_in_one_message(tmp_path, monkeypatch):
    diffusers.write(tmp_path / "model", checkpoints.checkpoint("sd1"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def stop(*inputs):
        raise ValueError("stopped before the weights are read")

    monkeypatch.setattr(loading, "load", stop)
    names = list(inspect.signature(StableDiffusion.from_pretrained).parameters)
    load = StableDiffusion.from_pretrained
    faults = calls.faults(names, lambda **own: load(**({"path_or_id": tmp_path / "model"} | own)))
    assert faults == [], chr(10).join(faults)
