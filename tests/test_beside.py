# SPDX-License-Identifier: MIT
"""Adapters that each image of a batch chooses: equal to merging, as data, and refused else."""

import numpy as np
import pytest
from support import adapters, checkpoints, compilations, pipeline_cases

from jaxgen.stable_diffusion import placement
from jaxgen.stable_diffusion.pipeline import StableDiffusion

CALL = {"num_steps": 2, "sampler": "euler", "height": 16, "width": 16, "output": "latent"}
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
# a linear layer, one that is hoisted out of the loop, one stored as a 1x1 convolution,
# convolutions with and without a stride, and the time's projection
MODULES = (
    f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", "up_blocks.1.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv",
    "mid_block.resnets.0.time_emb_proj",
)  # fmt: skip


OF_XL = (
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return pipeline_cases.pipeline("sd1")


@pytest.fixture(autouse=True)
def restored(pipe):
    yield
    pipe.set_adapters([])


def lora(pipe, path, rank=2, modules=MODULES, seed=0, extra=None):
    rng, values = np.random.default_rng(seed), dict(extra or {})
    for module in modules:
        shape = adapters.weight(pipe, "unet", module).shape
        down = adapters.draw(rng, rank, *shape[1:])
        up = adapters.draw(rng, shape[0], rank, *(1,) * (len(shape) - 2))
        values |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}
    return adapters.write(path, values)


@pytest.mark.parametrize("kind", ["sd1", pytest.param("xl", marks=pytest.mark.slow)])
def test_each_image_of_a_batch_takes_its_own_adapters(kind, tmp_path):
    pipe, modules = pipeline_cases.pipeline(kind), MODULES if kind == "sd1" else OF_XL
    files = [lora(pipe, tmp_path / f"{k}.safetensors", 1 + k, modules, seed=k) for k in range(3)]
    strengths = (0.8, 1.0, -0.5)
    rows = [[1, 0, 0], [0.5, 0, 2], [0, 0, 0]]
    prompts = ["a photo", "the lake", "an astronaut"]
    pipe.set_adapters(list(zip(files, strengths, strict=True)), per_image=rows)
    together = pipe(prompts, **CALL)
    assert len({one.tobytes() for one in together}) == len(rows)
    for i, row in enumerate(rows):
        merged = [(f, s * w) for f, s, w in zip(files, strengths, row, strict=True) if w]
        pipe.set_adapters(merged)
        alone = pipe(prompts[i], seed=i, **CALL)[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-5 * np.abs(alone).max())
    pipe.set_adapters([])


def test_other_files_and_weights_compile_nothing(pipe, tmp_path):
    first = [lora(pipe, tmp_path / f"a{k}.safetensors", seed=k) for k in range(2)]
    # another rank, and another layer of the same group
    second = [
        lora(pipe, tmp_path / f"b{k}.safetensors", 5, (MODULES[k], MODULES[3]), k) for k in range(2)
    ]
    pipe.set_adapters(first, per_image=np.eye(2))
    before = pipe(["a", "b"], **CALL)
    pipe.set_adapters(second, per_image=[[0.5, 1], [2, 0]])
    with compilations.counted() as seconds:
        after = pipe(["a", "b"], **CALL)
    assert seconds == []
    assert np.abs(before - after).max() > 1e-3


@pytest.mark.slow
def test_the_images_of_a_mesh_take_their_own(pipe, tmp_path):
    files = [lora(pipe, tmp_path / f"{k}.safetensors", seed=k) for k in range(2)]
    on_mesh = StableDiffusion(checkpoints.checkpoint("sd1"), mesh=placement.mesh_of(2))
    results = []
    for each in (pipe, on_mesh):
        each.set_adapters(files, per_image=np.eye(2))
        results.append(each(["a", "b"], **CALL))
    np.testing.assert_allclose(*results, atol=1e-5 * np.abs(results[0]).max())


def bad_files(pipe, folder):
    """What cannot be beside the weights, and words of its error."""
    shape = adapters.weight(pipe, "unet", MODULES[0]).shape
    norms = {f"unet.{MODULES[0]}.lora_magnitude_vector": np.ones(shape[0])}
    return {
        "DoRA": (lora(pipe, folder / "d.safetensors", extra=norms), "is not of low rank"),
        "text": (
            adapters.write(
                folder / "t.safetensors",
                {
                    f"text_encoder.{adapters.TEXT}.lora_{name}.weight": np.ones(size)
                    for name, size in (("A", (2, 24)), ("B", (24, 2)))
                },
            ),
            "it changes text_encoder, and per_image is for the UNet alone",
        ),
        "time": (
            lora(pipe, folder / "e.safetensors", modules=["time_embedding.linear_1"]),
            "it changes unet.time_embedding.linear_1, which all images share",
        ),
        "difference": (
            adapters.write(folder / "f.safetensors", {f"unet.{MODULES[0]}.diff": np.ones(shape)}),
            "is not of low rank",
        ),
        "norm": (
            adapters.write(
                folder / "n.safetensors",
                {"lora_unet_down_blocks_0_resnets_0_norm1.w_norm": np.ones(16)},
            ),
            "is changed otherwise than by a LoRA",
        ),
    }


def test_what_only_merging_can_do_is_refused_and_named(pipe, tmp_path):
    for file, message in bad_files(pipe, tmp_path).values():
        before = pipe.params, pipe.adapters
        with pytest.raises(ValueError, match=message) as refused:
            pipe.set_adapters([file], per_image=[[1.0]])
        assert "merge it instead" in str(refused.value)
        assert str(file) in str(refused.value)
        assert (pipe.params, pipe.adapters) == before


@pytest.mark.parametrize(
    "per_image", [[], [[]], [1.0], [[1.0, 2.0]], [["a"]], [[1.0], []], [[float("nan")]], 3, "x"]
)
def test_weights_that_fit_no_batch_are_refused(pipe, per_image, tmp_path):
    file = lora(pipe, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"per_image"):
        pipe.set_adapters([file], per_image=per_image)
    assert pipe.adapters is None


def test_another_number_of_images_is_refused(pipe, tmp_path):
    pipe.set_adapters([lora(pipe, tmp_path / "a.safetensors")], per_image=[[1.0], [0.5]])
    with pytest.raises(ValueError, match="the adapters were set for 2 images"):
        pipe(["a", "b", "c"], **CALL)
