# SPDX-License-Identifier: MIT
"""Single-file LDM and SGM checkpoints: names, configs, schedulers, and what is refused."""

import gzip
import json
import random
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from support import checkpoints, clip_words
from support.ldm_shapes import (
    TINY_PLAYGROUND,
    TINY_REFINER,
    TINY_V1,
    TINY_V2,
    TINY_XL,
    V1,
    V2,
    XL,
    shapes,
)

from jaxgen.stable_diffusion import few_steps, loading
from jaxgen.weights import (
    diffusers,
    hub,
    ldm_configs,
    ldm_kinds,
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
    parts, strays = ldm_names.rename(
        _shapes_only(ldm), ldm_kinds.kind_of(_shapes_only(ldm), "file")
    )
    assert parts.keys() == STORED[ldm.kind].keys()
    assert strays == []
    for name, part in STORED[ldm.kind].items():
        wanted = {n: tuple(shape) for n, shape in part["shapes"].items()}
        assert {n: t.shape for n, t in parts[name].items()} == wanted, name


@pytest.mark.parametrize("ldm", [V1, V2, XL], ids=["v1", "v2", "xl"])
def test_configs_of_full_size_files_are_the_published_ones(ldm):
    parts, _ = ldm_names.rename(_shapes_only(ldm), ldm.kind)
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
    parts, _ = ldm_names.rename(_shapes_only(V1._replace(in_channels=9)), "v1")
    assert ldm_configs.infer("UNet2DConditionModel", parts["unet"], "v1")["in_channels"] == 9


@pytest.mark.parametrize(
    "ldm", [TINY_V1, TINY_V2, TINY_XL, TINY_REFINER, TINY_PLAYGROUND], ids=lambda ldm: ldm.kind
)
def test_every_number_of_the_file_is_used_once(ldm):
    """All parts together hold the file's numbers, but for the projection that SD 2 leaves out."""
    arrays = _arrays(ldm)
    parts, strays = ldm_names.rename(
        {n: tensors.from_array(a) for n, a in arrays.items()}, ldm.kind
    )
    ours = np.concatenate([t.read().ravel() for part in parts.values() for t in part.values()])
    unused = [
        n for n in arrays
        if ldm_names.IGNORED.fullmatch(n) or (ldm.kind == "v2" and n.endswith("text_projection"))
    ]  # fmt: skip
    assert strays == []
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


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"modelspec.title": "SDXL Turbo", "ss_output_name": "x"}, "turbo"),
        ({"modelspec.title": " ", "ss_output_name": "my_xl_lightning"}, "lightning"),
        ({"modelspec.title": "a lighthouse"}, None),
        (None, None),
    ],
)
def test_a_renamed_file_is_known_by_the_title_inside(words, tmp_path, metadata, kind):
    path = tmp_path / "renamed.safetensors"
    safetensors.numpy.save_file(_arrays(TINY_V1), path, metadata)
    assert few_steps.kind_of(single_file.read(path, words)) == kind


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_weights_of_8_bits_are_their_values_in_float32(words, tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    arrays = {name: x.astype(dtype) for name, x in _arrays(TINY_V1).items()}
    tensors.write_file(path, {name: tensors.from_array(x) for name, x in arrays.items()})
    stored = single_file.read(path, words).components["unet"].tensors
    ours = stored["time_embedding.linear_1.weight"].read().astype(np.float32)
    theirs = arrays["model.diffusion_model.time_embed.0.weight"].astype(np.float32)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.scale_weight", "scaled_fp8"])
def test_weights_with_scales_beside_them_are_refused(words, save, name):
    with pytest.raises(ValueError, match=r"its weights have scales .* plain fp8 file"):
        single_file.read(save(_arrays(TINY_V1) | {name: np.ones(1, np.float32)}), words)


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


STRAYS = {
    "model_ema.diffusion_modelinput_blocks00weight": None,
    "scale_factor": None,
    "embedding_manager.string_to_param_dict.*": "text embeddings",
    "lora_unet_down_blocks_0.lora_up.weight": "a LoRA",
    "control_model.input_blocks.0.0.weight": "a ControlNet",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight": "an IP-",
    "model.diffusion_model.input_blocks.1.0.novelty.weight": None,
    "model.diffusion_model.input_blocks.1.1.motion_modules.0.weight": "a motion module",
    "first_stage_model.encoder.down.0.attn.0.q.weight": None,
    "first_stage_model.loss.discriminator.main.0.weight": None,
    "cond_stage_model.visual.proj": None,
    "\x1b[2J\u202e": None,
}


@pytest.mark.parametrize("name", STRAYS)
def test_stray_tensors_are_passed_over_and_said_in_one_line(save, words, name):
    path = save(_arrays(TINY_V1) | {name: np.zeros(3), "more": np.zeros(3)})
    with pytest.warns(UserWarning, match="passed over 2 tensors that are no part") as caught:
        checkpoint = hub.open_checkpoint(path, tokenizer=words)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.isprintable()
    assert (STRAYS[name] or "passed over") in message
    assert ("among them" in message) == (STRAYS[name] is not None)
    plain = single_file.read(save(_arrays(TINY_V1)), words)
    for part, component in plain.components.items():
        assert checkpoint.components[part].config == component.config
        assert checkpoint.components[part].tensors.keys() == component.tensors.keys()
    assert plain.notes == ()


def test_two_tensors_for_one_place_are_an_error(save, words):
    row = "model.diffusion_model.output_blocks.1."
    extras = {f"{row}{i}.conv.weight": np.zeros(3) for i in (1, 2)}
    with pytest.raises(ValueError, match="two tensors have the place up_blocks"):
        single_file.read(save(_arrays(TINY_V1) | extras), words)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["lora_unet_down.lora_up.weight"], "it is a LoRA"),
        (["control_model.input_blocks.0.0.weight"], "it is a ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one component in diffusers' layout"),
        (["model.diffusion_model.double_blocks.0.x"], "it is Flux"),
        (["model.diffusion_model.joint_blocks.0.x"], "it is Stable Diffusion 3"),
        (["model.diffusion_model.out.0.weight"], "is not the UNet of Stable Diffusion"),
        (["first_stage_model.decoder.conv_in.weight"], "it has no UNet"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "an autoencoder alone"),
        (["something"], "it is no pipeline"),
    ],
)
def test_other_files_are_recognised(save, words, names, match):
    with pytest.raises(ValueError, match=match):
        single_file.read(save({n: np.zeros(3, np.float32) for n in names}), words)


def test_missing_parts_are_named(save, words):
    arrays = {n: a for n, a in _arrays(TINY_V1).items() if not n.startswith("cond_stage_model")}
    with pytest.raises(ValueError, match="model without its text encoder"):
        single_file.read(save(arrays), words)
    arrays = {n: a for n, a in _arrays(TINY_V1).items() if not n.startswith("first_stage_model")}
    with pytest.raises(ValueError, match="has no autoencoder: pass vae= a folder, a file or a Hub"):
        single_file.read(save(arrays), words)


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("ldm", "extras", "lacking", "match"),
    [
        (TINY_XL._replace(context=1024), {}, None, r"is SD 2\.1 unCLIP"),
        (TINY_XL, {}, f"{UNET}middle_block.1.", "distilled XL model such as SSD-1B"),
        (TINY_V1._replace(in_channels=8), {}, None, "is an InstructPix2Pix model"),
        (TINY_V2._replace(in_channels=7), {}, None, "is an upscaler"),
        (TINY_V2._replace(in_channels=5), {}, None, "is a depth-to-image model"),
    ],
)
def test_models_that_are_not_implemented_are_named(save, words, ldm, extras, lacking, match):
    arrays = {n: a for n, a in _arrays(ldm).items() if not lacking or not n.startswith(lacking)}
    with pytest.raises(ValueError, match=match):
        single_file.read(save(arrays | extras), words)


def _with_transformers_names(arrays):
    """An SD 2 file whose text encoder was renamed from OpenCLIP's to transformers' names."""
    old = "cond_stage_model.model."
    inner = {n.removeprefix(old): tensors.from_array(a) for n, a in arrays.items() if old in n}
    part, _ = open_clip.convert(inner, projected=False)
    rest = {n: a for n, a in arrays.items() if old not in n}
    return rest | {f"cond_stage_model.transformer.{n}": t.read() for n, t in part.items()}


@pytest.mark.parametrize("layers", [2, 23, 24, 25])
@pytest.mark.parametrize("names", ["open_clip", "transformers"])
def test_layers_of_sd_2_are_those_that_are_used(save, words, layers, names):
    arrays = _arrays(TINY_V2._replace(open_clip=(60, 16, layers)))
    if names == "transformers":
        arrays = _with_transformers_names(arrays)
    checkpoint = single_file.read(save(arrays), words)
    component = checkpoint.components["text_encoder"]
    fields = diffusers.fields(component)
    assert fields["num_hidden_layers"] == min(layers, 23)
    assert fields["hidden_act"] == "gelu"
    assert len(checkpoint.notes) == (layers > 24)
    kept = {n.split(".")[3] for n in component.tensors if ".layers." in n}
    assert kept == {str(i) for i in range(min(layers, 23))}
    assert checkpoint.tokenizers["tokenizer"].pad_id == 0
    assert checkpoint.scheduler["prediction_type"] == "v_prediction"
    assert checkpoint.components["unet"].config["sample_size"] == 96


# What the published models' own model_index.json and scheduler_config.json say, which diffusers
# takes for a single file of their kind. LEADING is how diffusers reads configs without a spacing.
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
PUBLISHED = {
    "v1": (TINY_V1, "", "PNDM", LEADING | {"skip_prk_steps": True}, 64),
    "v1_inpainting": (TINY_V1._replace(in_channels=9), "Inpaint", "DDIM", LEADING, 64),
    "v2": (TINY_V2, "", "DDIM", LEADING | {"prediction_type": "v_prediction"}, 96),
    "v2_inpainting": (
        TINY_V2._replace(in_channels=9), "Inpaint", "PNDM",
        LEADING | {"skip_prk_steps": True, "prediction_type": "epsilon"}, 64,
    ),
    "xl": (TINY_XL, "XL", "EulerDiscrete", LEADING, 128),
    "xl_inpainting": (
        TINY_XL._replace(in_channels=9), "XLInpaint", "EulerDiscrete", LEADING, 128,
    ),
    "refiner": (TINY_REFINER, "XLImg2Img", "EulerDiscrete", LEADING, 128),
    "playground": (
        TINY_PLAYGROUND, "XL", "EDMDPMSolverMultistep",
        {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}, 128,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_pipelines_and_schedulers_are_the_published_ones(save, words, name):
    ldm, pipeline, scheduler, options, size = PUBLISHED[name]
    checkpoint = single_file.read(save(_arrays(ldm)), words)
    assert checkpoint.notes == ()
    assert checkpoint.index["_class_name"] == f"StableDiffusion{pipeline}Pipeline"
    assert checkpoint.scheduler["_class_name"] == f"{scheduler}Scheduler"
    own = {"timestep_spacing": "leading", "prediction_type": "epsilon", **checkpoint.scheduler}
    assert {key: own[key] for key in options} == options
    assert checkpoint.components["unet"].config["sample_size"] == size
    networks = loading.networks(checkpoint._replace(tokenizers={}))
    assert networks.default_size == (2 * size, 2 * size)  # this autoencoder halves once
    assert not networks.is_xl or networks.num_sizes == (5 if name == "refiner" else 6)


def test_playground_has_the_latents_that_it_was_trained_on(save, words):
    config = single_file.read(save(_arrays(TINY_PLAYGROUND)), words).components["vae"].config
    assert config["scaling_factor"] == 0.5
    assert config["latents_mean"] == [-1.6574, 1.886, -1.383, 2.5155]
    assert config["latents_std"] == [8.4927, 5.9022, 6.5498, 5.2299]


@pytest.mark.parametrize("prefix", ["module.", "state_dict.", "model."])
def test_a_name_that_trainers_left_before_all_names_is_passed_over(save, words, prefix):
    arrays = _arrays(TINY_V1)
    plain = _read_whole(save(arrays), words)
    prefixed = save({prefix + name: array for name, array in arrays.items()})
    assert single_file.read(prefixed, words).notes == (
        f"took names without the {prefix!r} before them",
    )
    jax.tree.map(np.testing.assert_array_equal, _read_whole(prefixed, words), plain)


def _read_whole(path, words):
    """The configs and all numbers of a file's components."""
    return {
        name: (component.config, {n: t.read() for n, t in component.tensors.items()})
        for name, component in single_file.read(path, words).components.items()
    }


@pytest.mark.parametrize("ldm", [TINY_V1, TINY_V2, TINY_XL], ids=["v1", "v2", "xl"])
@pytest.mark.parametrize("context", [768, 1024, 2048])
def test_the_width_of_the_text_tells_the_published_kinds(ldm, context):
    stored = _shapes_only(ldm._replace(context=context))
    if ldm.kind == "xl" and context != 1024:
        assert ldm_kinds.kind_of(stored, "file") == "xl"
    elif ldm.kind != "xl" and context != 2048:
        assert ldm_kinds.kind_of(stored, "file") == {768: "v1", 1024: "v2"}[context]


def _autoencoder(form):
    old = "first_stage_model."
    arrays = {n.removeprefix(old): a for n, a in _arrays(TINY_V1, 1).items() if n.startswith(old)}
    if form == "diffusers":
        stored = {f"{old}{n}": tensors.from_array(a) for n, a in arrays.items()}
        parts, _ = ldm_names.rename(stored, "v1")
        return {n: t.read() for n, t in parts["vae"].items()}
    return {form + n: a for n, a in arrays.items()}


@pytest.mark.parametrize("form", ["", "first_stage_model.", "vae.", "diffusers"])
@pytest.mark.parametrize(("ldm", "factor"), [(TINY_V1, 0.18215), (TINY_XL, 0.13025)])
def test_an_autoencoder_of_its_own_file_replaces_the_checkpoints(
    save, words, tmp_path, form, ldm, factor
):
    safetensors.numpy.save_file(_autoencoder(form), tmp_path / "vae.safetensors")
    arrays = {n: a for n, a in _arrays(ldm).items() if not n.startswith("first_stage_model")}
    checkpoint = hub.open_checkpoint(
        save(arrays), tokenizer=words, vae=tmp_path / "vae.safetensors"
    )
    vae = checkpoint.components["vae"]
    assert vae.config["scaling_factor"] == factor
    wanted = _autoencoder("diffusers")
    assert vae.tensors.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(vae.tensors[name].read(), values)
    assert diffusers.fields(vae)["block_out_channels"] == (32, 64)


def test_an_autoencoder_may_come_from_a_folder(save, words, tmp_path):
    folder = tmp_path / "pipeline"
    diffusers.write(folder, checkpoints.checkpoint())
    for path in (folder, folder / "vae"):
        checkpoint = hub.open_checkpoint(save(_arrays(TINY_V1)), tokenizer=words, vae=path)
        wanted = {"scaling_factor": 0.18215, **checkpoints.VAE}
        assert checkpoint.components["vae"].config == wanted
    with pytest.raises(ValueError, match="holds no autoencoder"):
        hub.open_checkpoint(save(_arrays(TINY_V1)), tokenizer=words, vae=folder / "tokenizer")
    with pytest.raises(ValueError, match="holds a UNet2DConditionModel; jaxgen implements Auto"):
        hub.open_checkpoint(save(_arrays(TINY_V1)), tokenizer=words, vae=folder / "unet")


def test_what_is_passed_over_of_an_autoencoder_is_said_with_the_rest(save, words, tmp_path):
    strays = {"lora_te_x.alpha": np.zeros(()), "first_stage_model.decoder.novelty": np.zeros(3)}
    file = tmp_path / "vae.safetensors"
    safetensors.numpy.save_file(_autoencoder("first_stage_model.") | strays, file)
    diffusers.write(tmp_path / "model", checkpoints.checkpoint())
    for path, more in ((tmp_path / "model", {}), (save(_arrays(TINY_V1)), {"tokenizer": words})):
        with pytest.warns(UserWarning, match="vae.safetensors: passed over 2 tensors") as caught:
            checkpoint = hub.open_checkpoint(path, vae=file, **more)
        assert len(caught) == 1
        assert "a LoRA, without effect here" in str(caught[0].message)
        assert "decoder.novelty" not in checkpoint.components["vae"].tensors


def test_thousands_of_numbered_layers_take_no_quadratic_time(save, words):
    extras = {}
    for i in range(10_000):
        extras[f"{UNET}input_blocks.{i}.0.op.weight"] = np.zeros(1, np.float16)
        extras[f"cond_stage_model.transformer.text_model.encoder.layers.{i}.x"] = np.zeros(1)
    path = save(_arrays(TINY_V1) | extras)
    start = time.monotonic()
    with pytest.raises(ValueError, match="UNet2DConditionModel lacks"):
        single_file.read(path, words)
    assert time.monotonic() - start < 10


def test_incomplete_file_is_an_error(save, words):
    arrays = _arrays(TINY_V1)
    del arrays["model.diffusion_model.out.2.weight"]
    with pytest.raises(ValueError, match=r"lacks 'conv_out\.weight'; it is incomplete, or"):
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
    assert 0 < refused < 40  # most damage shows only when the shapes meet the network's


def test_tokenizer_may_come_from_a_whole_pipeline_folder(save, words, tmp_path):
    (tmp_path / "tokenizer").symlink_to(words)
    checkpoint = hub.open_checkpoint(save(_arrays(TINY_XL)), tokenizer=tmp_path)
    assert checkpoint.tokenizers.keys() == {"tokenizer", "tokenizer_2"}


def test_other_formats_are_refused(tmp_path, words):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"(?s)model\.ckpt is not safetensors.*can run code"):
        single_file.read(tmp_path / "model.ckpt", words)


def test_safetensors_under_the_ending_of_pickles_are_to_be_renamed(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="looks like safetensors under another ending; rename it"):
        single_file.read(path, tmp_path)
