# SPDX-License-Identifier: MIT
"""Folders in diffusers' layout: what is read, what is written, and what is refused, and how."""

import dataclasses
import json
import math
import os
import random
import shutil
import struct
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from support import checkpoints

from jaxgen import files
from jaxgen.nn.stable_diffusion import autoencoder_kl, autoencoder_tiny, clip, controlnet, unet
from jaxgen.weights import (
    config_tables,
    configs,
    diffusers,
    hub,
    layout,
    model_index,
    tensors,
    weight_files,
)
from jaxgen.weights.model_index import NETWORKS, TOKENIZERS

UNET = checkpoints.UNETS["sd1"]


@pytest.fixture(scope="module")
def original():
    return checkpoints.checkpoint()


@pytest.fixture
def folder(original, tmp_path):
    diffusers.write(tmp_path / "model", original)
    return tmp_path / "model"


def _arrays(checkpoint):
    return {
        name: {n: t.read() for n, t in component.tensors.items()}
        for name, component in checkpoint.components.items()
    }


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _weights_file(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


# What is read and written


def test_written_pipeline_is_read_equal(original, folder):
    again = diffusers.read(folder)
    _assert_equal(_arrays(again), _arrays(original))
    assert again.scheduler == original.scheduler
    assert again.index["_class_name"] == "StableDiffusionPipeline"
    assert again.index["requires_safety_checker"] is False
    assert again.tokenizers["tokenizer"][:4] == original.tokenizers["tokenizer"][:4]
    for name, component in again.components.items():
        assert component.config == original.components[name].config
        layout.load(component.tensors, checkpoints.shapes(component))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_written_when_asked(original, tmp_path, dtype):
    diffusers.write(tmp_path / "half", original, dtype)
    cast = jax.tree.map(lambda a: a.astype(dtype), _arrays(original))
    _assert_equal(_arrays(diffusers.read(tmp_path / "half")), cast)


def test_nothing_but_the_folder_is_left_behind(folder):
    assert list(folder.parent.iterdir()) == [folder]


def test_existing_folder_is_never_overwritten(original, folder):
    with pytest.raises(ValueError, match="exists; choose a new folder"):
        diffusers.write(folder, original)


def test_interrupted_writing_leaves_nothing(original, tmp_path):
    def explode():
        raise RuntimeError("the device is gone")

    broken = {"conv_in.weight": tensors.Tensor((3,), np.dtype(np.float32), explode)}
    unet = original.components["unet"]._replace(tensors=broken)
    components = {**original.components, "unet": unet}
    with pytest.raises(RuntimeError, match="gone"):
        diffusers.write(tmp_path / "model", original._replace(components=components))
    assert list(tmp_path.iterdir()) == []


def test_sharded_weights_are_written_and_read(original, folder):
    path = folder / "unet"
    _weights_file(folder).unlink()
    stem = "diffusion_pytorch_model"
    values = original.components["unet"].tensors
    weight_files.write_component(path, stem, values, None, max_bytes=5000)
    shards = sorted(path.glob("*-of-*.safetensors"))
    assert len(shards) > 2
    for shard in map(tensors.open_file, shards):
        held = sum(tensors.stored_bytes(tensor) for tensor in shard.values())
        assert held <= 5000 or len(shard) == 1  # a tensor above the limit has its own file
    total = json.loads((path / f"{stem}.safetensors.index.json").read_text())["metadata"]
    assert total["total_size"] == sum(tensors.stored_bytes(t) for t in values.values())
    _assert_equal(_arrays(diffusers.read(folder)), _arrays(original))


def test_variants_are_taken_when_asked_or_alone(original, folder):
    plain = _weights_file(folder)
    half = {n: a.astype(np.float16) for n, a in _arrays(original)["unet"].items()}
    fp16 = plain.with_name("diffusion_pytorch_model.fp16.safetensors")
    safetensors.numpy.save_file(half, fp16)
    other = plain.with_name("diffusion_pytorch_model.non_ema.safetensors")
    other.write_bytes(b"never opened")

    def stored_type():
        return diffusers.read(folder).components["unet"].tensors["conv_in.bias"].dtype

    assert stored_type() == np.float32
    plain.unlink()
    assert stored_type() == np.float16
    checkpoint = diffusers.read(folder, variant="fp16")
    assert checkpoint.components["unet"].tensors["conv_in.bias"].dtype == np.float16
    assert checkpoint.components["vae"].tensors["encoder.conv_in.bias"].dtype == np.float32
    assert checkpoint.notes == (
        "took the plain weights of vae, text_encoder, which has no variant 'fp16'",
    )
    with pytest.raises(ValueError, match=r"has no weights of the variant 'bf16', only diffusion"):
        diffusers.read(folder, variant="bf16")
    stored = weight_files.open_component(folder / "unet", "diffusion_pytorch_model", "fp16")
    assert stored["conv_in.bias"].dtype == np.float16
    fp16.unlink()
    with pytest.raises(ValueError, match=r"only diffusion_pytorch_model\.non_ema\.safetensors"):
        diffusers.read(folder)


def test_text_encoders_without_their_prefix_are_understood(original, folder):
    path = folder / "text_encoder" / "model.safetensors"
    arrays = _arrays(original)["text_encoder"]
    bare = {n.removeprefix("text_model."): np.ascontiguousarray(a) for n, a in arrays.items()}
    safetensors.numpy.save_file(bare, path)  # as transformers 5.6 and later write it
    _assert_equal(_arrays(diffusers.read(folder)), _arrays(original))


# What a config says


def test_absent_keys_take_diffusers_defaults():
    assert configs.autoencoder_kl_fields({})["scaling_factor"] == 0.18215
    assert configs.autoencoder_kl_fields({"scaling_factor": 0.13025})["scaling_factor"] == 0.13025
    fields = configs.unet_fields({"_class_name": "UNet2DConditionModel", "sample_size": 64})
    assert fields["block_out_channels"] == (320, 640, 1280, 1280)
    assert fields["use_linear_projection"] is False
    assert configs.clip_text_fields({})["hidden_act"] == "quick_gelu"


@pytest.mark.parametrize(
    "module",
    [
        autoencoder_kl.AutoencoderKL, autoencoder_tiny.AutoencoderTiny, clip.CLIPTextModel,
        controlnet.ControlNetModel, unet.UNet2DConditionModel,
    ],
)  # fmt: skip
def test_both_homes_of_the_default_of_a_field_agree(module):
    # the rooms do not import each other: what an absent key means is written in weights
    table = config_tables.TABLES[module.__name__].fields
    own = {field.name: field.default for field in dataclasses.fields(module)}
    assert {key: own[key] for key in table} == {key: table[key].default for key in table}


def test_published_configs_are_accepted():
    configs.unet_fields(
        UNET
        | {
            "block_out_channels": [320, 640, 1280], "norm_num_groups": 32, "layers_per_block": 2,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "_diffusers_version": "0.19.0.dev0", "addition_embed_type": "text_time",
            "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20], "center_input_sample": False,
            "class_embeddings_concat": False, "conv_in_kernel": 3, "cross_attention_norm": None,
            "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None,
            "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1,
            "only_cross_attention": False, "projection_class_embeddings_input_dim": 2816,
            "resnet_out_scale_factor": 1.0, "resnet_time_scale_shift": "default",
            "time_cond_proj_dim": None, "time_embedding_type": "positional",
            "transformer_layers_per_block": [1, 2, 10], "upcast_attention": None,
        }
    )  # fmt: skip
    configs.clip_text_fields(
        {
            "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
            "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
            "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77, "model_type": "clip_text_model",
            "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
            "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
            "vocab_size": 49408,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("read", "key", "value"),
    [
        (configs.unet_fields, "act_fn", "mish"),
        (configs.unet_fields, "resnet_time_scale_shift", "scale_shift"),
        (configs.unet_fields, "class_embed_type", "timestep"),
        (configs.unet_fields, "dual_cross_attention", True),
        (configs.unet_fields, "addition_embed_type", "image"),
        (configs.unet_fields, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        (configs.unet_fields, "down_block_types", ["AttnDownBlock2D"]),
        (configs.unet_fields, "down_block_types", "DownBlock2D"),
        (configs.unet_fields, "quantization_config", {"load_in_8bit": True}),
        (configs.unet_fields, "block_out_channels", 16),
        (configs.unet_fields, "block_out_channels", [320, [640]]),
        (configs.unet_fields, "layers_per_block", [[2]]),
        (configs.unet_fields, "sample_size", [64, 64, 64]),
        (configs.unet_fields, "norm_eps", None),
        (configs.unet_fields, "in_channels", 10**9),
        (configs.unet_fields, "in_channels", 0),
        (configs.unet_fields, "in_channels", True),
        (configs.unet_fields, "in_channels", "4"),
        (configs.unet_fields, "in_channels", None),
        (configs.unet_fields, "block_out_channels", [320, 10**9]),
        (configs.unet_fields, "block_out_channels", [320] * 1000),
        (configs.unet_fields, "block_out_channels", []),
        (configs.unet_fields, "transformer_layers_per_block", [[10**6]]),
        (configs.unet_fields, "layers_per_block", 10**6),
        (configs.unet_fields, "norm_eps", 0),
        (configs.unet_fields, "center_input_sample", 0),
        (configs.autoencoder_kl_fields, "act_fn", "relu"),
        (configs.autoencoder_kl_fields, "scaling_factor", 0.0),
        (configs.autoencoder_kl_fields, "scaling_factor", "0.18215"),
        (configs.autoencoder_kl_fields, "latents_mean", ["a"]),
        (configs.autoencoder_kl_fields, "latent_channels", -4),
        (configs.autoencoder_kl_fields, "latents_std", [0.0, 0.0, 0.0, 0.0]),
        (configs.autoencoder_kl_fields, "latents_std", [1.0, -1.0, 1.0, 1.0]),
        (configs.autoencoder_kl_fields, "layers_per_block", [1]),
        (configs.clip_text_fields, "hidden_act", "gelu_new"),
        (configs.clip_text_fields, "hidden_size", 10**9),
        (configs.clip_text_fields, "num_hidden_layers", 10**9),
        (configs.clip_text_fields, "quantization_config", {"load_in_8bit": True}),
    ],
)
def test_what_is_not_implemented_is_named(read, key, value):
    with pytest.raises(ValueError, match="wrong or not implemented") as caught:
        read({key: value})
    assert f"{key}={repr(value)[:20]}" in str(caught.value)


@pytest.mark.parametrize(
    ("read", "config", "match"),
    [
        (configs.unet_fields, {"norm_num_groups": 7}, "norm_num_groups must divide"),
        (configs.unet_fields, {"attention_head_dim": 7}, "number of heads .* must divide"),
        (configs.unet_fields, {"attention_head_dim": [5, 10]}, "as long as block_out_channels"),
        (configs.unet_fields, {"block_out_channels": [320, 640]}, "as long as block_out_channels"),
        (configs.unet_fields, {"layers_per_block": [2, 2]}, "as long as block_out_channels"),
        (configs.unet_fields, {"transformer_layers_per_block": [1]}, "as long as block_out"),
        (configs.unet_fields, {"up_block_types": ["UpBlock2D"]}, "as long as block_out_channels"),
        (
            configs.unet_fields,
            {"transformer_layers_per_block": [[1], [1, 1], [1, 1], 1]},
            "must have one entry a layer",
        ),
        (configs.unet_fields, {"block_out_channels": [33] * 4, "norm_num_groups": 1}, "even"),
        (configs.autoencoder_kl_fields, {"norm_num_groups": 5}, "norm_num_groups must divide"),
        (configs.autoencoder_kl_fields, {"down_block_types": []}, "expected a list of 1 to 8"),
        (configs.autoencoder_kl_fields, {"block_out_channels": [64, 64]}, "as long as"),
        (configs.autoencoder_kl_fields, {"latents_std": [1.0]}, "one number for each of latent"),
        (configs.autoencoder_kl_fields, {"latents_mean": [1.0] * 5}, "one number for each of"),
        (configs.clip_text_fields, {"num_attention_heads": 7}, "must divide hidden_size"),
        (configs.clip_text_fields, {"eos_token_id": 49408}, "beyond the vocabulary of 49408"),
        (configs.clip_text_fields, {"vocab_size": 9, "eos_token_id": 9}, "beyond the vocabulary"),
    ],
)
def test_values_that_do_not_fit_each_other_are_one_error(read, config, match):
    with pytest.raises(ValueError, match=match):
        read(config)


def test_an_end_token_that_is_not_asked_for_may_lie_beyond_the_vocabulary():
    assert configs.clip_text_fields({"vocab_size": 60})["vocab_size"] == 60
    with pytest.raises(ValueError, match="beyond the vocabulary of 60"):
        configs.clip_text_fields({"vocab_size": 60}, projected=True)


STRANGE = [None, True, -1, 0, 5, 2.5, 10**400, "x", "\x1b[2J\u202e", [], [[]], [0], {}, {"a": [1]}]


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
@pytest.mark.slow
def test_any_json_value_under_any_key_is_read_or_one_printable_error(original, name):
    """Whatever is accepted builds a network whose shapes can be worked out."""
    component = original.components[name]
    table, built = configs.TABLES[component.class_name], set()
    for key in [*table.fields, *table.options]:
        for value in STRANGE:
            changed = component._replace(config={**component.config, key: value})
            fault = _fault(changed)
            if fault is None:
                if (fields := repr(diffusers.fields(changed))) not in built:
                    checkpoints.shapes(changed)
                    built.add(fields)
            else:
                assert fault.isprintable()
                assert len(fault) < 500


def _fault(component):
    """What a config is refused with, None if it is not."""
    try:
        diffusers.fields(component)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("name", "config"), [("unet", UNET), ("vae", {}), ("text_encoder", {})], ids=str
)
def test_unknown_keys_are_passed_over_and_said_in_one_line(original, folder, name, config):
    extras = {"tensor_format": "pt", "predict_epsilon": True, "an_option_of_tomorrow": [1]}
    _edit(folder / name / "config.json", **extras, **{"\x1b[2J": None})
    checkpoint = diffusers.read(folder)
    _assert_equal(_arrays(checkpoint), _arrays(original))
    assert len(checkpoint.notes) == 1
    assert checkpoint.notes[0].isprintable()
    assert f"{name}/config.json: passed over 4 unknown keys" in checkpoint.notes[0]
    with pytest.warns(UserWarning, match="passed over 4 unknown keys") as caught:
        hub.open_checkpoint(folder)
    assert len(caught) == 1


def test_the_index_decides_which_class_the_scheduler_has(folder):
    _edit(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    _edit(folder / "scheduler" / "scheduler_config.json", _class_name="EulerDiscreteScheduler")
    checkpoint = diffusers.read(folder)
    assert checkpoint.scheduler["_class_name"] == "DDIMScheduler"
    assert len(checkpoint.notes) == 1
    assert "took the scheduler DDIMScheduler of model_index.json" in checkpoint.notes[0]


def test_flaxs_names_of_classes_are_those_of_torch(original, folder):
    index = json.loads((folder / "model_index.json").read_text())
    parts = {
        name: [value[0], f"Flax{value[1]}"]
        for name, value in index.items()
        if isinstance(value, list) and value[1] and name != "tokenizer"
    }
    _edit(folder / "model_index.json", **parts, _class_name="FlaxStableDiffusionPipeline")
    _edit(folder / "scheduler" / "scheduler_config.json", _class_name="FlaxDDIMScheduler")
    again = diffusers.read(folder)
    assert again.scheduler == original.scheduler
    assert again.notes == ()


def test_one_value_for_every_level_may_be_a_list(original, folder):
    lists = {"cross_attention_dim": [24, 24], "only_cross_attention": [False, False]}
    _edit(folder / "unet" / "config.json", **lists)
    assert diffusers.fields(diffusers.read(folder).components["unet"]) == diffusers.fields(
        original.components["unet"]
    )
    _edit(folder / "unet" / "config.json", cross_attention_dim=[24, 32])
    with pytest.raises(ValueError, match=r"cross_attention_dim=\[24, 32\], expected an integer"):
        diffusers.read(folder)


def test_a_whole_clip_serves_as_text_encoder(original, folder):
    path = folder / "text_encoder"
    config = json.loads((path / "config.json").read_text())
    whole = {"model_type": "clip", "text_config": config, "vision_config": {"hidden_size": 8}}
    (path / "config.json").write_text(json.dumps(whole))
    assert diffusers.read(folder).components["text_encoder"].config == config


def test_the_advice_for_other_weights_works(folder):
    path = _weights_file(folder)
    path.rename(path.with_name("model.safetensors"))
    with pytest.raises(ValueError, match="only model.safetensors; if that is it, rename it"):
        diffusers.read(folder)
    path.with_name("model.safetensors").rename(path.with_name("diffusion_flax_model.msgpack"))
    with pytest.raises(ValueError, match=r"only as diffusion_flax_model\.msgpack") as refused:
        diffusers.read(folder)
    assert "from_flax=True" in str(refused.value)
    assert "use_safetensors" not in str(refused.value)


def test_unimplemented_config_is_found_before_weights_are_read(folder):
    _edit(folder / "unet" / "config.json", act_fn="mish")
    with pytest.raises(ValueError, match=r"unet.config\.json: .*act_fn='mish'"):
        diffusers.read(folder)


# What is missing or broken


def test_parts_that_the_pipeline_does_not_have_are_passed_over(original, folder):
    _edit(folder / "model_index.json", preprocessor=["diffusers", "VaeImageProcessor"])
    checkpoint = diffusers.read(folder)
    _assert_equal(_arrays(checkpoint), _arrays(original))
    assert checkpoint.notes == ("passed over the parts preprocessor",)


def test_a_pipeline_that_is_code_is_not_called_a_part(folder):
    _edit(folder / "model_index.json", _class_name=["pipeline", "MyPipeline"])
    with pytest.raises(ValueError, match="'MyPipeline'.* is code that comes with the model") as e:
        diffusers.read(folder)
    assert "part" not in str(e.value)


def test_a_folder_without_an_autoencoder_takes_one(original, folder, tmp_path):
    diffusers.write(tmp_path / "other", original)
    shutil.rmtree(folder / "vae")
    _edit(folder / "model_index.json", vae=[None, None])
    with pytest.raises(ValueError, match="names no vae .give an autoencoder with vae="):
        hub.open_checkpoint(folder)
    checkpoint = hub.open_checkpoint(folder, vae=tmp_path / "other" / "vae")
    _assert_equal(_arrays(checkpoint)["vae"], _arrays(original)["vae"])


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop"])
@pytest.mark.parametrize(
    "file",
    [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json",
    ],
)  # fmt: skip
def test_only_regular_files_are_read(folder, tmp_path, file, kind):
    (folder / file).unlink()
    if kind == "fifo":
        os.mkfifo(tmp_path / "pipe")
    target = {"fifo": tmp_path / "pipe", "device": "/dev/zero", "folder": tmp_path}
    (folder / file).symlink_to(target.get(kind, folder / file))
    start = time.monotonic()
    with pytest.raises(ValueError, match="is not a regular file|missing|has no|no tokenizer"):
        diffusers.read(folder)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "is a PyTorch pickle"),
        (b"\x80\x02}q\x00(X\x05\x00" + bytes(100), "is a PyTorch pickle"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "is a quantised GGUF file"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (struct.pack("<Q", 2**24 + 8) + bytes(2**24 + 100), "has a header of 16777224 bytes"),
        (b"", "is not a complete safetensors file"),
        (struct.pack("<Q", 640) + bytes(100), "is not a complete safetensors file"),
    ],
)
def test_other_files_under_the_name_are_recognised(folder, content, match):
    _weights_file(folder).write_bytes(content)
    with pytest.raises(ValueError, match=rf"diffusion_pytorch_model\.safetensors {match}"):
        diffusers.read(folder)


def test_many_equal_keys_take_no_quadratic_time(folder):
    keys = [f'"k{i}": 1' for i in range(60_000)]
    path = folder / "tokenizer" / "vocab.json"
    path.write_text("{" + ",".join([*keys, keys[-1]]) + "}")
    start = time.monotonic()
    with pytest.raises(ValueError, match="'k59999' is given twice"):
        diffusers.read(folder)
    assert time.monotonic() - start < 2


def test_foreign_text_is_escaped_and_short(folder):
    name = "\x1b[2J\u202e" + "x" * 100_000
    _edit(folder / "model_index.json", unet=["diffusers", name])
    with pytest.raises(ValueError, match="unet is a") as caught:
        diffusers.read(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (KeyError("x"), "it is damaged .KeyError"),
        (OverflowError("int too large"), "it is damaged .OverflowError"),
        (RecursionError(), "asks for more memory"),
        (ValueError("bad \x1b[2J"), r"^a file: bad \\x1b\[2J$"),
        (ValueError("a file is bad"), "^a file is bad$"),
    ],
)
def test_every_fault_becomes_one_error_that_names_the_file(error, match):
    with pytest.raises(ValueError, match=match), files.one_error("a file"):
        raise error


def test_partial_folder_is_one_error_with_all_that_is_missing(folder):
    (folder / "unet" / "config.json").unlink()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    _edit(
        folder / "model_index.json",
        vae=["diffusers", "AsymmetricAutoencoderKL"],
        tokenizer=[None, None],
        controlnet=["diffusers", "ControlNetModel"],
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        _class_name="StableDiffusionControlNetPipeline",
    )
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        diffusers.read(folder)
    for words in (
        "unet/config.json is missing",
        "scheduler/scheduler_config.json is missing",
        "model_index.json names no tokenizer",
        "is a StableDiffusionControlNetPipeline, and jaxgen does not implement its parts control",
        "vae is a AsymmetricAutoencoderKL; jaxgen implements AutoencoderKL",
    ):
        assert words in str(caught.value)
    assert "safety_checker" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_every_encoder_of_texts_needs_its_tokenizer(name, tmp_path):
    index = {part: [library, classes[0]] for part, (library, _, classes) in NETWORKS.items()}
    index |= {own: ["transformers", "CLIPTokenizer"] for own in TOKENIZERS}
    del index[name]
    with pytest.raises(ValueError, match=f"names no {name};"):
        model_index.check_complete(tmp_path, index, has_vae=False)


def test_missing_folders_and_files_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        diffusers.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no model_index\.json.*it holds config\.json"):
        diffusers.read(folder / "unet")
    _weights_file(folder).unlink()
    with pytest.raises(ValueError, match=r"no diffusion_pytorch_model\.safetensors; is the folder"):
        diffusers.read(folder)


@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".msgpack"])
def test_unsafe_weights_are_refused_with_the_way_to_convert_them(folder, ending):
    _weights_file(folder).rename(_weights_file(folder).with_suffix(ending))
    with pytest.raises(ValueError, match=rf"(?s)diffusion_pytorch_model\{ending}.*can run code"):
        diffusers.read(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_weights_are_one_clear_error(folder, keep):
    path = _weights_file(folder)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors.*Fetch the file"):
        diffusers.read(folder)


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xfe",
        [{**HEADER, "b": HEADER["a"]}],  # overlap
        [{"a": {**HEADER["a"], "shape": [2**40, 2**40]}}],
        [{"a": {**HEADER["a"], "shape": [-2]}}],
        [{"a": {**HEADER["a"], "dtype": "OBJECT"}}],
        [{"a": {**HEADER["a"], "data_offsets": [8, 0]}}],
        [{"a": {**HEADER["a"], "data_offsets": [0, 2**60]}}],
        [{"a": 3}],
        [{"a": HEADER}],
        [{"a": ["F32", [2], [0, 8]]}],
        [{"a": {**HEADER["a"], "shape": [1] * 69 + [2]}}],
        [{"a": {**HEADER["a"], "shape": [0, 2**63], "data_offsets": [0, 0]}}],
        [{"x" * 2000: HEADER["a"]}],
        ['{"a": %s, "a": %s}' % ((json.dumps(HEADER["a"]),) * 2)],
        ['{"a":' * 20000 + "1" + "}" * 20000],
        ["[" * 200000],
    ],
)
def test_hostile_headers_are_refused_at_once(tmp_path, content):
    if isinstance(content, list):
        text = content[0] if isinstance(content[0], str) else json.dumps(content[0])
        content = struct.pack("<Q", len(text)) + text.encode() + bytes(8)
    (tmp_path / "w.safetensors").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        tensors.open_file(tmp_path / "w.safetensors")
    assert time.monotonic() - start < 1


def test_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(100, np.float32)}, path)
    stored = tensors.open_file(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="ended early"):
        stored["a"].read()


def test_types_that_are_no_weights_are_named(tmp_path):
    text = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ValueError, match="a has type F8_E8M0; jaxgen reads"):
        tensors.open_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1]", "expected an object"),
        ("{", "not valid JSON"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        ('{"a": NaN}', "NaN is not"),
        ('{"a": -Infinity}', "not a JSON number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": %s}' % ("9" * 5000), "not valid JSON"),
        ('{"a": %s1%s}' % ("[" * 65, "]" * 65), "nested deeper"),  # noqa: UP031
        ("[" * 300000, "nested deeper|not valid"),
        ('{"a":' * 100000, "nested deeper|not valid"),
        (" " * (2**20 + 1), "larger than 1048576 bytes"),
    ],
)
def test_hostile_json_is_one_clear_error(folder, text, match):
    (folder / "unet" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        diffusers.read(folder)


def _shard(folder, weight_map):
    """Turn the UNet of a folder into one shard with an index that says `weight_map`."""
    plain = _weights_file(folder)
    shard = plain.with_name("diffusion_pytorch_model-00001-of-00001.safetensors")
    if plain.exists():
        plain.rename(shard)
    names = dict.fromkeys(tensors.open_file(shard), shard.name)
    index = {"metadata": {}, "weight_map": weight_map(names)}
    (plain.parent / f"{plain.name}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        (lambda names: names | {"x": "../secret.safetensors"}, "points at '../secret"),
        (lambda names: names | {"x": "/etc/passwd"}, "points at '/etc/passwd"),
        (lambda names: names | {"x": "a/b.safetensors"}, "in the same folder"),
        (lambda names: names | {"x": "a\x00.safetensors"}, "points at"),
        (lambda names: names | {"x": "pytorch_model.bin"}, r"points at 'pytorch_model\.bin"),
        (lambda names: names | {"x": "a" * 999 + ".safetensors"}, "points at"),
        (lambda names: names | {"x": ["list"]}, "points at"),
        (lambda names: names | {"x": "other.safetensors"}, r"needs other\.safetensors, which is"),
        (lambda names: names | {"x": next(iter(names.values()))}, "disagree on 1 tensors"),
        (lambda names: dict(list(names.items())[1:]), "disagree on 1 tensors"),
        (lambda names: {}, "no weight_map"),
        (lambda names: [names], "no weight_map"),
    ],
)
def test_hostile_index_is_one_clear_error(folder, weight_map, match):
    (folder / "secret.safetensors").write_bytes(b"")
    _shard(folder, weight_map)
    with pytest.raises(ValueError, match=match):
        diffusers.read(folder)


def test_tensor_in_two_shards_is_an_error(folder):
    _shard(folder, lambda names: names)
    assert diffusers.read(folder)
    two = folder / "unet" / "two.safetensors"
    safetensors.numpy.save_file({"conv_in.bias": np.zeros(8, np.float32)}, two)
    _shard(folder, lambda names: names | {"conv_in.bias": two.name})
    with pytest.raises(ValueError, match=r"conv_in\.bias is also in an earlier file"):
        diffusers.read(folder)


# Random damage


def _damage(data, rng):
    """Bytes flipped, repeated, dropped or swapped for troublemakers, mostly near the front."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = min(int(rng.expovariate(3 / max(1, min(len(data), 4000)))), max(0, len(data) - 1))
        match rng.randrange(5):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at:at] = rng.choice(TROUBLE)
            case 2:
                del data[at : at + rng.choice([1, 7, 100])]
            case 3:
                data[at : at + 6] = rng.choice(TROUBLE)
            case _:
                data[at:at] = data[at : at + rng.choice([1, 20, 300])]
    return bytes(data)


TROUBLE = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"true", b"-1", b"1e999", b"NaN", b"\x00",
    b"\xff\xff\xff\xff", b"\\ud800", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"../", b"0", b'""',
    b"[]", b"{}", b"18446744073709551616", b"\xc3", b"F64", b"BF16", b"__metadata__",
]  # fmt: skip

FILES = [
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model-00001-of-00001.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "scheduler/scheduler_config.json",
]


@pytest.mark.parametrize("file", FILES)
def test_damaged_files_are_read_or_refused_but_never_crash(folder, file):
    _shard(folder, lambda names: names)
    path = folder / file
    whole = path.read_bytes()
    rng = random.Random(file)
    refused, longest = 0, 0
    for _ in range(30):
        path.write_bytes(_damage(whole, rng))
        start = time.monotonic()
        try:
            _arrays(diffusers.read(folder))
        except ValueError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        assert time.monotonic() - start < 5
    assert refused > 5  # the damage is real
    assert longest < 5000


def test_damaged_safetensors_are_refused_or_keep_their_shapes(tmp_path):
    path = tmp_path / "w.safetensors"
    rng = random.Random(0)
    safetensors.numpy.save_file({f"t{i}": np.zeros((i, 3), np.float32) for i in range(9)}, path)
    whole = path.read_bytes()
    for _ in range(200):
        path.write_bytes(_damage(whole, rng))
        try:
            stored = tensors.open_file(path)
        except ValueError:
            continue
        assert all(t.read().shape == t.shape for t in stored.values())


def test_json_text_is_what_was_written(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"ü": "x"}}
    (tmp_path / "a.json").write_text(files.dumps(value))
    assert files.read_object(tmp_path / "a.json") == value


def test_weights_of_a_folder_reach_the_device_as_asked(folder):
    component = diffusers.read(folder).components["vae"]
    params = layout.load(component.tensors, checkpoints.shapes(component), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_a_scheduler_config_holds_infinities_as_diffusers_writes_them(folder, tmp_path):
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"lambda_min_clipped": -math.inf}
    path.write_text(json.dumps(config))
    assert "-Infinity" in path.read_text()
    checkpoint = diffusers.read(folder)
    assert checkpoint.scheduler["lambda_min_clipped"] == -math.inf
    diffusers.write(tmp_path / "again", checkpoint)
    assert diffusers.read(tmp_path / "again").scheduler == checkpoint.scheduler
