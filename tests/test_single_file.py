# SPDX-License-Identifier: MIT
"""Single-file LDM and SGM checkpoints: names, configs, schedulers, and what is refused."""

import gzip
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from support import clip_words
from support.ldm_shapes import TINY_V1, TINY_V2, TINY_XL, V1, V2, XL, shapes

from jaxgen.weights import (
    diffusers,
    hub,
    ldm_configs,
    ldm_names,
    open_clip,
    single_file,
    tensors,
    tokenizer,
)

STORED = json.loads(
    gzip.decompress((Path(__file__).parent / "data" / "state_shapes.json.gz").read_bytes())
)["models"]


def _arrays(ldm, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes(ldm).items()}


def _shapes_only(ldm):
    return {n: tensors.Tensor(s, np.dtype(np.float32), None) for n, s in shapes(ldm).items()}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.write(folder, tokenizer.build(*clip_words.small_vocabulary()))
    return folder


@pytest.fixture
def save(tmp_path):
    def saved(arrays):
        safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return saved


@pytest.mark.parametrize("ldm", [V1, V2, XL], ids=["v1", "v2", "xl"])
def test_full_size_files_have_every_name_and_shape_of_torch(ldm):
    parts = ldm_names.rename(_shapes_only(ldm), ldm_names.kind_of(shapes(ldm), "file"))
    assert parts.keys() == STORED[ldm.kind].keys()
    for name, part in STORED[ldm.kind].items():
        wanted = {n: tuple(shape) for n, shape in part["shapes"].items()}
        assert {n: t.shape for n, t in parts[name].items()} == wanted, name


@pytest.mark.parametrize("ldm", [V1, V2, XL], ids=["v1", "v2", "xl"])
def test_configs_of_full_size_files_are_the_published_ones(ldm):
    parts = ldm_names.rename(_shapes_only(ldm), ldm.kind)
    for name, class_name in ldm_configs.CLASSES[ldm.kind].items():
        config = ldm_configs.infer(class_name, parts[name], ldm.kind)
        published = {"unet": {}, "vae": {"layers_per_block": 2}}.get(
            name, {"hidden_act": "quick_gelu"}
        )
        for key, value in (published | STORED[ldm.kind][name]["config"]).items():
            if key != "projection_dim" or name == "text_encoder_2":
                assert config[key] == value, (name, key)
        diffusers.fields(diffusers.Component(class_name, config, {}))
    scaling = ldm_configs.infer("AutoencoderKL", parts["vae"], ldm.kind)["scaling_factor"]
    assert scaling == (0.13025 if ldm.kind == "xl" else 0.18215)


def test_inpainting_files_have_nine_channels():
    parts = ldm_names.rename(_shapes_only(V1._replace(in_channels=9)), "v1")
    assert ldm_configs.infer("UNet2DConditionModel", parts["unet"], "v1")["in_channels"] == 9


@pytest.mark.parametrize("ldm", [TINY_V1, TINY_V2, TINY_XL], ids=["v1", "v2", "xl"])
def test_every_number_of_the_file_is_used_once(ldm):
    """Values are kept: all parts together hold the file's numbers, but for what SD 2 leaves out."""
    arrays = _arrays(ldm)
    parts = ldm_names.rename({n: tensors.from_array(a) for n, a in arrays.items()}, ldm.kind)
    ours = np.concatenate([t.read().ravel() for part in parts.values() for t in part.values()])
    last = f"resblocks.{ldm.open_clip[2] - 1}."
    unused = [
        n for n in arrays
        if ldm_names.IGNORED.fullmatch(n)
        or (ldm.kind == "v2" and (last in n or n.endswith("text_projection")))
    ]  # fmt: skip
    theirs = np.concatenate([a.ravel() for n, a in arrays.items() if n not in unused])
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))


def test_fused_projection_is_queries_keys_values_in_this_order():
    fused = np.arange(3 * 4 * 4, dtype=np.float32).reshape(12, 4)
    name = "transformer.resblocks.0.attn.in_proj_weight"
    part, unknown = open_clip.convert({name: tensors.from_array(fused)}, projected=True)
    assert unknown == []
    for i, letter in enumerate("qkv"):
        values = part[f"text_model.encoder.layers.0.self_attn.{letter}_proj.weight"].read()
        np.testing.assert_array_equal(values, fused[4 * i : 4 * i + 4])


def test_text_projection_is_transposed():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    part, _ = open_clip.convert({"text_projection": tensors.from_array(matrix)}, projected=True)
    np.testing.assert_array_equal(part["text_projection.weight"].read(), matrix.T)


@pytest.mark.parametrize("ldm", [TINY_V1, TINY_V2, TINY_XL], ids=["v1", "v2", "xl"])
def test_file_becomes_a_folder_with_the_same_numbers(ldm, save, words, tmp_path):
    checkpoint = single_file.read(save(_arrays(ldm)), words)
    diffusers.write(tmp_path / "folder", checkpoint)
    again = diffusers.read(tmp_path / "folder")
    assert again.scheduler == checkpoint.scheduler
    for name, component in checkpoint.components.items():
        wanted = {n: t.read() for n, t in component.tensors.items()}
        found = {n: t.read() for n, t in again.components[name].tensors.items()}
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_kinds_differ_in_padding_and_pipeline(save, words):
    xl = single_file.read(save(_arrays(TINY_XL)), words)
    assert xl.index["_class_name"] == "StableDiffusionXLPipeline"
    assert xl.index["force_zeros_for_empty_prompt"] is True
    ends = xl.tokenizers["tokenizer"].eos_id
    assert xl.tokenizers["tokenizer"].pad_id == ends
    assert xl.tokenizers["tokenizer_2"].pad_id == 0
    v2 = single_file.read(save(_arrays(TINY_V2)), words)
    assert v2.tokenizers["tokenizer"].pad_id == 0
    v1 = single_file.read(save(_arrays(TINY_V1)), words)
    assert v1.tokenizers["tokenizer"].pad_id == ends
    assert v1.scheduler["_class_name"] == "PNDMScheduler"
    assert v1.scheduler["prediction_type"] == "epsilon"


def test_prediction_type_follows_diffusers_rule(save, words):
    arrays = _arrays(TINY_V2)
    assert single_file.read(save(arrays), words).scheduler["prediction_type"] == "v_prediction"
    for step, kind, size in ((875000, "epsilon", 64), (220000, "v_prediction", 96)):
        checkpoint = single_file.read(save(arrays | {"global_step": np.array(step)}), words)
        assert checkpoint.scheduler["prediction_type"] == kind
        assert checkpoint.components["unet"].config["sample_size"] == size
    given = single_file.read(save(arrays), words, prediction_type="epsilon")
    assert given.scheduler["prediction_type"] == "epsilon"
    with pytest.raises(ValueError, match="prediction_type is 'sigma'; use"):
        single_file.read(save(arrays), words, prediction_type="sigma")


def test_xl_files_can_say_that_they_predict_v(save, words):
    marks = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    scheduler = single_file.read(save(_arrays(TINY_XL) | marks), words).scheduler
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is True


def test_training_state_is_ignored(save, words):
    extras = {
        "model_ema.decay": np.zeros(()),
        "model_ema.diffusion_modelinput_blocks00weight": np.zeros(3),
        "sqrt_alphas_cumprod": np.zeros(3),
        "first_stage_model.loss.logvar": np.zeros(()),
        "cond_stage_model.logit_scale": np.zeros(()),
    }
    checkpoint = single_file.read(save(_arrays(TINY_V1) | extras), words)
    assert checkpoint.components.keys() == {"unet", "vae", "text_encoder"}


def test_unknown_tensors_are_one_error(save, words):
    extras = {
        "model.diffusion_model.input_blocks.1.0.novelty.weight": np.zeros(3),
        "model.diffusion_model.input_blocks.99.0.in_layers.0.weight": np.zeros(3),
        "first_stage_model.encoder.down.0.attn.0.q.weight": np.zeros(3),
        "model.diffusion_model.output_blocks.1.1.conv.weight": np.zeros(3),
        "model.diffusion_model.output_blocks.1.2.conv.weight": np.zeros(3),
        "embedding_manager.weight": np.zeros(3),
    }
    with pytest.raises(ValueError, match="have no place in the model") as caught:
        single_file.read(save(_arrays(TINY_V1) | extras), words)
    taken = [name for name in extras if name not in str(caught.value)]
    # 99 would be a layer of its own, which shows when the model is filled; 1.1 comes before 1.2
    assert taken == [n for n in extras if "99" in n or ".1.1.conv" in n]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["lora_unet_down.lora_up.weight"], "it is a LoRA"),
        (["control_model.input_blocks.0.0.weight"], "it is a ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one component in diffusers' layout"),
        (["model.diffusion_model.double_blocks.0.x"], "it is Flux"),
        (["model.diffusion_model.joint_blocks.0.x"], "it is Stable Diffusion 3"),
        (["model.diffusion_model.out.0.weight"], "it has the UNet only"),
        (["something"], "it is no pipeline"),
    ],
)
def test_other_files_are_recognised(save, words, names, match):
    with pytest.raises(ValueError, match=match):
        single_file.read(save({n: np.zeros(3, np.float32) for n in names}), words)


def test_refiner_and_missing_text_encoder_are_named(save, words):
    arrays = {n: a for n, a in _arrays(TINY_V1).items() if not n.startswith("cond_stage_model")}
    with pytest.raises(ValueError, match="no text encoder"):
        single_file.read(save(arrays), words)
    arrays["conditioner.embedders.0.model.ln_final.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match="it is the XL refiner"):
        single_file.read(save(arrays), words)


def test_incomplete_file_is_an_error(save, words):
    arrays = _arrays(TINY_V1)
    del arrays["model.diffusion_model.out.2.weight"]
    with pytest.raises(ValueError, match=r"lacks 'conv_out\.weight'; it is incomplete"):
        single_file.read(save(arrays), words)


@pytest.mark.parametrize("ldm", [TINY_V1, TINY_V2, TINY_XL], ids=["v1", "v2", "xl"])
def test_damaged_files_are_read_or_refused_but_never_crash(ldm, save, words):
    rng = random.Random(ldm.kind)
    names = list(shapes(ldm))
    refused = 0
    for _ in range(40):
        arrays = {n: np.zeros(s, np.float16) for n, s in shapes(ldm).items()}
        for name in rng.choices(names, k=rng.choice([1, 3, 30])):
            match rng.randrange(4):
                case 0:
                    arrays.pop(name, None)
                case 1:
                    arrays[name.replace(".0.", rng.choice([".9999.", ".", ".x."]))] = np.zeros(2)
                case 2:
                    arrays[name] = np.zeros(rng.choice([(), (0,), (5,), (1, 1, 1, 1, 1), (0, 0)]))
                case _:
                    arrays[name[: rng.randrange(len(name))]] = np.zeros(1)
        try:
            checkpoint = single_file.read(save(arrays), words)
            for component in checkpoint.components.values():
                diffusers.fields(component)
        except ValueError:
            refused += 1
    assert 5 < refused < 40  # some damage shows only when the shapes meet the network's


def test_missing_tokenizer_says_what_to_pass(save):
    with pytest.raises(ValueError, match="carries no tokenizer: pass tokenizer="):
        single_file.read(save(_arrays(TINY_V1)), None)


def test_tokenizer_may_come_from_a_whole_pipeline_folder(save, words, tmp_path):
    (tmp_path / "tokenizer").symlink_to(words)
    checkpoint = hub.open_checkpoint(save(_arrays(TINY_XL)), tokenizer=tmp_path)
    assert checkpoint.tokenizers.keys() == {"tokenizer", "tokenizer_2"}


def test_other_formats_are_refused(tmp_path, words):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"(?s)model\.ckpt is not safetensors.*can run code"):
        single_file.read(tmp_path / "model.ckpt", words)
