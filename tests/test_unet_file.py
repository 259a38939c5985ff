# SPDX-License-Identifier: MIT
"""A UNet by itself takes the place of a checkpoint's own, and says what it was distilled for."""

import numpy as np
import pytest
from support import checkpoints
from support.adapters import write

from jaxgen import files
from jaxgen.adapters import ldm_stems, unet_file
from jaxgen.stable_diffusion import few_steps
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers

KIND = "xl"


@pytest.fixture(scope="module")
def base():
    return checkpoints.checkpoint(KIND)


def arrays(base):
    """The base's own UNet with every number one larger, by name."""
    return {n: t.read().astype(np.float32) + 1 for n, t in base.components["unet"].tensors.items()}


def in_ldm_names(values):
    modules = {name.rpartition(".")[0] for name in values}
    names = ldm_stems.of_unet(modules)
    assert names.keys() == modules
    return {
        f"model.diffusion_model.{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value
        for name, value in values.items()
    }


def folder(path, values, config):
    path.mkdir(parents=True)
    (path / "config.json").write_text(files.dumps(config))
    write(path / "diffusion_pytorch_model.safetensors", values)
    return path


def check(checkpoint, values):
    found = {n: t.read() for n, t in checkpoint.components["unet"].tensors.items()}
    assert found.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[name].reshape(value.shape), value)


def test_a_file_as_lightning_publishes_it_is_taken_and_sets_the_steps(base, tmp_path):
    values = arrays(base)
    file = write(tmp_path / "sdxl_lightning_4step_unet.safetensors", values)
    checkpoint = unet_file.with_unet(base, file)
    check(checkpoint, values)
    assert checkpoint.components["vae"] is base.components["vae"]
    assert few_steps.of_checkpoint(checkpoint)[:3] == ("lightning", 4, 1.0)


def test_names_of_ldm_and_folders_give_the_same(base, tmp_path):
    values, config = arrays(base), base.components["unet"].config
    sources = [
        write(tmp_path / "ldm.safetensors", in_ldm_names(values)),
        folder(tmp_path / "alone", values, config),
        folder(tmp_path / "pipeline" / "unet", values, config).parent,
    ]
    for source in sources:
        check(unet_file.with_unet(base, source), values)


def test_a_folder_brings_its_own_config(base, tmp_path):
    config = base.components["unet"].config | {"time_cond_proj_dim": 8}
    values = arrays(base) | {"time_embedding.cond_proj.weight": np.ones((16, 8), np.float32)}
    diffusers.write(tmp_path / "model", base)
    own = folder(tmp_path / "lcm-sdxl", values, config)
    pipe = StableDiffusion.from_pretrained(tmp_path / "model", unet=own)
    assert pipe.networks.unet.time_cond_proj_dim == 8
    assert pipe.defaults == (4, 8.5)
    found = pipe.params["unet"]["time_embedding"]["cond_proj"]["kernel"]
    np.testing.assert_array_equal(found, np.ones((8, 16)))


def test_what_is_passed_over_is_said_in_one_warning(base, tmp_path):
    values = arrays(base)
    extras = {name: np.ones(2) for name in ("lora_unet_x.alpha", "vae.decoder.x", "loss.logvar")}
    file = write(tmp_path / "ldm.safetensors", in_ldm_names(values) | extras)
    config = base.components["unet"].config | {"novelty": 3}
    passed_over = {
        file: "passed over 2 tensors that are no part .*among them is a LoRA",
        folder(tmp_path / "alone", values, config): r"passed over 1 unknown keys .novelty.",
    }
    for source, message in passed_over.items():
        with pytest.warns(UserWarning, match=message) as caught:
            checkpoint = unet_file.with_unet(base, source)
        assert len(caught) == 1
        check(checkpoint, values)


def test_what_does_not_fit_is_refused(base, tmp_path):
    other = arrays(checkpoints.checkpoint("sd1"))
    file = write(tmp_path / "other.safetensors", other)
    with pytest.raises(ValueError, match=r"is no UNet for this model: \d+ tensors differ"):
        unet_file.with_unet(base, file)
    vae = {n: t.read() for n, t in base.components["vae"].tensors.items()}
    alone = folder(tmp_path / "vae", vae, base.components["vae"].config)
    with pytest.raises(ValueError, match="holds a AutoencoderKL; jaxgen implements UNet2D"):
        unet_file.with_unet(base, alone)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither it nor its folder unet has a config.json"):
        unet_file.with_unet(base, tmp_path / "empty")
    (tmp_path / "x.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="jaxgen opens safetensors only"):
        unet_file.with_unet(base, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="no such file or folder"):
        unet_file.with_unet(base, tmp_path / "none.safetensors")
    half = write(tmp_path / "half.safetensors", dict(list(arrays(base).items())[:-1]))
    with pytest.raises(ValueError, match="1 tensors differ from its own, first"):
        unet_file.with_unet(base, half)
