# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""Textual inversion beside diffusers, on small checkpoints and files that the tests write."""

import copy

import numpy as np
import pytest
from support import adapters, pipeline_cases
from support.pipeline_cases import BASE, XL, ours, relative_error

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import make_pipeline_values

pytestmark = pytest.mark.oracle
diffusers.utils.logging.set_verbosity_error()

PROMPTS = ["a photo of <thing> riding a horse", "the <thing>, sunset"]
# several vectors, and one; the file's tensors by text encoder
CASES = {
    "sd1": ("sd1", {"text_encoder": ("<thing>", (3, 24))}),
    "xl": ("xl", {"text_encoder": ("clip_l", (1, 16)), "text_encoder_2": ("clip_g", (1, 24))}),
}


def theirs(kind, values, case, monkeypatch):
    """diffusers' pictures with its own reader of the vectors."""
    parts, config = make_pipeline_values.components(kind)
    parts = copy.deepcopy(parts)
    cls = make_pipeline_values.CLASSES["xl" if kind == "xl" else "sd", "text"]
    options = {"add_watermarker": False} if kind == "xl" else {"requires_safety_checker": False}
    pipe = cls(**parts, **options)
    for encoder, values_of in values.items():
        tokens = encoder.replace("text_encoder", "tokenizer")
        pipe.load_textual_inversion(
            {"<thing>": torch.from_numpy(values_of)},
            token="<thing>",
            text_encoder=parts[encoder],
            tokenizer=parts[tokens],
        )
    monkeypatch.setattr(make_pipeline_values, "components", lambda _: (parts, config))
    return make_pipeline_values.theirs(case)


@pytest.mark.parametrize("name", CASES)
def test_pictures_are_diffusers(name, tmp_path, monkeypatch):
    kind, keys = CASES[name]
    rng = np.random.default_rng(0)
    values = {encoder: adapters.draw(rng, *shape) for encoder, (_, shape) in keys.items()}
    case = BASE | (XL if kind == "xl" else {"sampler": "ddim"})
    case |= {"prompt": PROMPTS, "num_steps": 6}
    expected = theirs(kind, values, case, monkeypatch)
    stored = {key: values[encoder] for encoder, (key, _) in keys.items()}
    file = adapters.write(tmp_path / "a.safetensors", stored)
    pipe = pipeline_cases.pipeline(kind)
    pipeline_cases._with_scheduler.cache_clear()
    try:
        pipe.set_embeddings([(file, "<thing>")])
        assert relative_error(ours(case), expected) < 1e-5
        pipe.set_embeddings([])
        pipeline_cases._with_scheduler.cache_clear()
        assert relative_error(ours(case), expected) > 0.01
    finally:
        pipe.set_embeddings([])
        pipeline_cases._with_scheduler.cache_clear()  # a copy of the pipeline with its words
