# SPDX-License-Identifier: MIT
"""ControlNets in the pipeline: nothing recompiles, a scale of 0 changes no bit, errors."""

from pathlib import Path

import jax
import numpy as np
import pytest
from support import checkpoints, compilations, controlnets
from support.checkpoints import SIZE
from support.networks import relative_error

from jaxgen.adapters import controlnet_file
from jaxgen.stable_diffusion import placement
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers, layout, tensors

STORED = Path(__file__).parent / "data" / "controlnet.npz"
CALL = {"num_steps": 3, "sampler": "euler", "seed": 1, "output": "latent"}


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def plain():
    return StableDiffusion(checkpoints.checkpoint("sd1"))


@pytest.fixture(scope="module")
def pipe():
    return StableDiffusion(
        checkpoints.checkpoint("sd1"), controlnets=[controlnets.component("sd1")]
    )


def test_a_scale_of_zero_changes_no_bit_and_images_scales_and_windows_compile_nothing(plain, pipe):
    expected = plain("a cat", **CALL)
    controlled = pipe("a cat", control_image=picture(), **CALL)
    with compilations.counted() as compiled:
        off = pipe("a cat", control_image=picture(), control_scale=0.0, **CALL)
        others = [
            pipe("a cat", control_image=picture(1), **CALL),
            pipe("a cat", control_image=picture(), control_scale=0.3, **CALL),
            pipe("a cat", control_image=picture(), control_start=0.5, **CALL),
            pipe("a cat", control_image=picture(), control_end=0.5, **CALL),
            pipe("a cat", control_image=picture(), guess_mode=True, **CALL),
            pipe("a cat", control_image=picture(), **{**CALL, "sampler": "ddim", "num_steps": 5}),
        ]
    assert not compiled
    np.testing.assert_array_equal(off, expected)
    assert len({latents.tobytes() for latents in (controlled, off, *others)}) == 8


@pytest.mark.parametrize("i", range(len(controlnets.STORED)))
def test_latents_are_those_that_diffusers_stored(pipe, i):
    expected = np.load(STORED)[str(i)]
    assert relative_error(controlnets.ours(controlnets.STORED[i], pipe), expected) < 1e-3


def test_every_image_of_a_batch_takes_its_own_control(pipe):
    alone = pipe("a cat", control_image=picture(2), **{**CALL, "seed": 5})
    both = pipe(["a cat", "a cat"], control_image=np.stack([picture(1), picture(2)]),
                **{**CALL, "seed": [4, 5]})  # fmt: skip
    np.testing.assert_allclose(both[1], alone[0], atol=2e-4)


@pytest.mark.slow
def test_images_of_a_mesh_follow_their_own_pictures(pipe):
    """Beside perturbed guidance, whose layers lie on all devices, too."""
    on_mesh = StableDiffusion(
        checkpoints.checkpoint("sd1"),
        mesh=placement.mesh_of(2),
        controlnets=[controlnets.component("sd1")],
    )
    call = {**CALL, "num_steps": 2, "seed": [4, 5], "pag_scale": 2.0}
    found, expected = (
        each(["a cat", "a dog"], control_image=np.stack([picture(1), picture(2)]), **call)
        for each in (on_mesh, pipe)
    )
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("spelling", ["folder", "diffusers, one file", "LDM, one file"])
def test_folders_and_single_files_give_the_same_network(spelling, tmp_path):
    component = controlnets.component(  # with the groups and heads of the published models
        "sd1", block_out_channels=[32, 64], norm_num_groups=32, attention_head_dim=8
    )
    if spelling == "folder":
        path = controlnets.write(tmp_path / "net", component)
    else:
        path = tmp_path / "net.safetensors"
        names = controlnets.ldm_names(component) if spelling.startswith("LDM") else {}
        values = {names.get(name, name): tensor for name, tensor in component.tensors.items()}
        tensors.write_file(path, values)
    read = controlnet_file.open_controlnet(path)
    assert diffusers.fields(read) == diffusers.fields(component)
    shapes = controlnets.shapes(component)
    first, second = (layout.load(c.tensors, shapes) for c in (component, read))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "1 ControlNets; give control_image"),
        ({"control_image": np.zeros((SIZE, SIZE + 8, 3), np.uint8), "height": SIZE, "width": SIZE},
         "resize it"),
        ({"control_image": picture(), "control_scale": float("nan")}, "control_scale is nan"),
        ({"control_image": picture(), "control_scale": [1.0, 1.0]}, "one for each ControlNet"),
        ({"control_image": picture(), "control_start": 0.5, "control_end": 0.5}, "the larger"),
        ({"control_image": picture(), "control_end": 1.5}, "between 0 and 1"),
        ({"control_image": picture(), "guess_mode": 1}, "guess_mode is 1"),
        ({"control_image": "missing.png"}, "missing.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_calls_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe("a cat", **CALL, **options)


def test_a_pipeline_without_one_takes_no_control_image(plain):
    with pytest.raises(ValueError, match="load the pipeline with controlnet="):
        plain("a cat", control_image=picture(), **CALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 32}, "attends to 32 features"),
        ({"block_out_channels": [16, 48]}, "has block_out_channels"),
        ({"conditioning_embedding_out_channels": [4, 8, 8]}, "2 times smaller"),
    ],
    ids=str,
)
def test_a_controlnet_of_another_model_is_refused(changes, message):
    component = controlnets.component("sd1", **changes)
    with pytest.raises(ValueError, match=message):
        StableDiffusion(checkpoints.checkpoint("sd1"), controlnets=[component])


def test_what_is_no_controlnet_is_refused(tmp_path):
    tensors.write_file(tmp_path / "a.safetensors", {"x": tensors.from_array(np.zeros(3))})
    with pytest.raises(ValueError, match="holds no ControlNet"):
        controlnet_file.open_controlnet(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no such file"):
        controlnet_file.open_controlnet(tmp_path / "b.safetensors")
