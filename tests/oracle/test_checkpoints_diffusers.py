# SPDX-License-Identifier: MIT
"""Checkpoints against PyTorch diffusers and transformers: what they write we read, and back."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers_torch = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

import safetensors.numpy  # noqa: E402
from diffusers.loaders import single_file_utils  # noqa: E402
from support import checkpoints, ldm_shapes  # noqa: E402

from jaxgen.nn.stable_diffusion import autoencoder_kl, clip, unet  # noqa: E402
from jaxgen.weights import (  # noqa: E402
    autoencoder,
    diffusers,
    layout,
    ldm_configs,
    ldm_kinds,
    ldm_names,
    open_clip,
    single_file,
    tensors,
    tokenizer,
)

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("default"),  # other libraries' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LETTERS = [chr(c) for c in range(33, 127)]
VOCAB = {
    token: i
    for i, token in enumerate(
        [*LETTERS, *[c + "</w>" for c in LETTERS], "<|startoftext|>", "<|endoftext|>"]
    )
}
CLIP = {
    "vocab_size": len(VOCAB), "intermediate_size": 32, "num_attention_heads": 2,
    "num_hidden_layers": 2, "bos_token_id": len(VOCAB) - 2, "eos_token_id": len(VOCAB) - 1,
}  # fmt: skip
UNET = {
    "sample_size": 8, "block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def _tokens(pad="<|endoftext|>"):
    return tokenizer.build(VOCAB, [], {"pad_token": pad})


def _torch_tokenizer(folder, pad="<|endoftext|>"):
    folder.mkdir()
    tokenizer.write(folder, _tokens(pad))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def _vae():
    return diffusers_torch.AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["sd1", "sd2", "xl"])
def pipeline(request, tmp_path_factory):
    """A small random torch pipeline of each family."""
    torch.manual_seed(0)
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    config = transformers.CLIPTextConfig(
        hidden_size=16, hidden_act="gelu" if kind == "sd2" else "quick_gelu", **CLIP
    )
    parts = {
        "vae": _vae(),
        "text_encoder": transformers.CLIPTextModel(config),
        "tokenizer": _torch_tokenizer(
            folder / "tokenizer", "!" if kind == "sd2" else "<|endoftext|>"
        ),
        "scheduler": diffusers_torch.EulerDiscreteScheduler(
            beta_schedule="scaled_linear", steps_offset=1
        ),
    }
    if kind != "xl":
        parts["unet"] = diffusers_torch.UNet2DConditionModel(
            cross_attention_dim=16,
            use_linear_projection=kind == "sd2",
            attention_head_dim=2,
            **UNET,
        )
        return diffusers_torch.StableDiffusionPipeline(
            safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts
        )
    config = transformers.CLIPTextConfig(
        hidden_size=24, projection_dim=20, hidden_act="gelu", **CLIP
    )
    return diffusers_torch.StableDiffusionXLPipeline(
        unet=diffusers_torch.UNet2DConditionModel(
            cross_attention_dim=40, use_linear_projection=True, attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2), addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 20, **UNET,
        ),
        text_encoder_2=transformers.CLIPTextModelWithProjection(config),
        tokenizer_2=_torch_tokenizer(folder / "tokenizer_2", "!"),
        **parts,
    )  # fmt: skip


def _states(pipe):
    """component -> {name: array}, text encoders under text_model as in the published files."""
    states = {}
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            state = {n: t.detach().float().numpy() for n, t in part.state_dict().items()}
            if name.startswith("text_encoder") and not any(
                n.startswith("text_model.") for n in state
            ):
                state = {f"text_model.{n}": t for n, t in state.items()}
            states[name] = state
    return states


def _assert_states_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].keys() == theirs[name].keys(), name
        for key, value in theirs[name].items():
            np.testing.assert_array_equal(ours[name][key], value, err_msg=f"{name} {key}")


def _params(component):
    """A component as jaxgen's module and its parameters, loaded by the checked bijection."""
    fields = diffusers.fields(component)
    if component.class_name == "UNet2DConditionModel":
        module = unet.UNet2DConditionModel(**fields)
        inputs = [
            jnp.zeros((1, 8, 8, 4)),
            jnp.zeros(1),
            jnp.zeros((1, 7, fields["cross_attention_dim"])),
        ]
        if fields["addition_embed_type"]:
            inputs += [jnp.zeros((1, 20)), jnp.zeros((1, 6))]
    elif component.class_name == "AutoencoderKL":
        module, inputs = autoencoder_kl.AutoencoderKL(**fields), [jnp.zeros((1, 16, 16, 3))]
    else:
        module, inputs = clip.CLIPTextModel(**fields), [jnp.zeros((1, 77), jnp.int32)]
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return module, layout.load(component.tensors, abstract)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_torch_pipeline_is_read_and_written_back_equal(pipeline, variant, tmp_path):
    pipeline.save_pretrained(tmp_path / "theirs", variant=variant)
    checkpoint = diffusers.read(tmp_path / "theirs")

    changed = {}
    for name, component in checkpoint.components.items():
        _, params = _params(component)
        changed[name] = diffusers.with_params(component, params)
    diffusers.write(tmp_path / "ours", checkpoint._replace(components=changed))

    again, info = _load_with_info(pipeline, tmp_path / "ours")
    assert info == []
    _assert_states_equal(_states(again), _states(pipeline))
    assert type(again.scheduler) is type(pipeline.scheduler)
    public = [
        {k: v for k, v in p.scheduler.config.items() if k[0] != "_"} for p in (again, pipeline)
    ]
    assert public[0] == public[1]
    text = "a photo, of the Cat! <|endoftext|> 8"
    for name in ("tokenizer", "tokenizer_2"):
        if hasattr(pipeline, name):
            ids = [
                getattr(p, name)(text, padding="max_length").input_ids for p in (again, pipeline)
            ]
            assert (
                ids[0]
                == ids[1]
                == tokenizer.tokenize(checkpoint.tokenizers[name], [text])[0].tolist()
            )


def _load_with_info(pipeline, folder):
    """The torch pipeline of a folder, and the keys it missed or did not expect."""
    again = type(pipeline).from_pretrained(folder, local_files_only=True)
    odd = []
    for name, part in again.components.items():
        if isinstance(part, torch.nn.Module):
            _, info = type(part).from_pretrained(folder / name, output_loading_info=True)
            odd += [
                k
                for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
                for k in info[kind]
            ]
    return again, odd


def test_networks_read_from_a_torch_folder_compute_alike(pipeline, tmp_path):
    """Names, layouts and config fields together: one evaluation of each network."""
    pipeline.save_pretrained(tmp_path / "theirs")
    components = diffusers.read(tmp_path / "theirs").components
    rng = np.random.default_rng(0)

    for name in ("text_encoder", "text_encoder_2"):
        if name in components:
            module, params = _params(components[name])
            ids = rng.integers(0, len(VOCAB), (2, 9)).astype(np.int32)
            ids[:, 7] = len(VOCAB) - 1
            ours = jax.jit(module.apply)({"params": params}, jnp.asarray(ids))
            with torch.no_grad():
                theirs = getattr(pipeline, name)(torch.from_numpy(ids).long())
            _assert_close(ours.context, theirs.last_hidden_state)
            if name == "text_encoder_2":
                _assert_close(ours.pooled, theirs.text_embeds)

    module, params = _params(components["unet"])
    x, t = rng.normal(size=(2, 8, 8, 4)).astype(np.float32), np.array([3.0, 700.0], np.float32)
    text = rng.normal(size=(2, 7, module.cross_attention_dim)).astype(np.float32)
    added, kwargs = [], {}
    if module.addition_embed_type:
        added = [rng.normal(size=(2, 20)).astype(np.float32), np.full((2, 6), 8, np.float32)]
        names = ("text_embeds", "time_ids")
        kwargs = dict(zip(names, map(torch.from_numpy, added), strict=True))
    ours = jax.jit(module.apply)({"params": params}, *map(jnp.asarray, (x, t, text, *added)))
    with torch.no_grad():
        theirs = pipeline.unet(
            torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t), torch.from_numpy(text),
            added_cond_kwargs=kwargs,
        ).sample  # fmt: skip
    _assert_close(ours, theirs.permute(0, 2, 3, 1))


def _assert_close(ours, theirs):
    theirs = theirs.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-5 * np.abs(theirs).max())


def test_sharded_torch_pipeline_is_read_equal(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert list((tmp_path / "theirs" / "unet").glob("*.safetensors.index.json"))
    checkpoint = diffusers.read(tmp_path / "theirs")
    ours = {
        n: {k: t.read() for k, t in c.tensors.items()} for n, c in checkpoint.components.items()
    }
    _assert_states_equal(ours, _states(pipeline))


def test_half_precision_pipelines_are_written_as_torch_casts_them(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "theirs")
    for name, ours, theirs in (
        ("h", np.float16, torch.float16),
        ("b", jnp.bfloat16, torch.bfloat16),
    ):
        diffusers.write(tmp_path / name, diffusers.read(tmp_path / "theirs"), dtype=ours)
        again = type(pipeline).from_pretrained(tmp_path / name, torch_dtype=theirs)
        for part in ("unet", "vae", "text_encoder"):
            wanted = getattr(pipeline, part).state_dict()
            for key, value in getattr(again, part).state_dict().items():
                assert value.dtype == theirs
                assert torch.equal(value, wanted[key].to(theirs)), (part, key)


def test_autoencoder_from_an_old_folder_decodes_as_in_torch(tmp_path):
    torch.manual_seed(1)
    model = _vae()
    model.save_pretrained(tmp_path / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in model.state_dict().items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        state[name] = value.numpy()
    safetensors.numpy.save_file(state, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())

    stored = tensors.open_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    module, params = _params(diffusers.Component("AutoencoderKL", config, stored))
    z = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    decode = jax.jit(partial(module.apply, method="decode"))
    ours = decode({"params": params}, jnp.asarray(z))
    with torch.no_grad():
        theirs = model.decode(torch.from_numpy(z.transpose(0, 3, 1, 2))).sample
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "ldm",
    [ldm_shapes.TINY_V1, ldm_shapes.TINY_V2, ldm_shapes.TINY_XL, ldm_shapes.TINY_REFINER],
    ids=lambda ldm: ldm.kind,
)
def test_single_files_convert_as_in_diffusers(ldm):
    rng = np.random.default_rng(0)
    state = {n: rng.normal(size=s).astype(np.float32) for n, s in ldm_shapes.shapes(ldm).items()}
    parts, _ = ldm_names.rename({n: tensors.from_array(a) for n, a in state.items()}, ldm.kind)
    ours = {name: {n: t.read() for n, t in part.items()} for name, part in parts.items()}
    wanted = _diffusers_conversion(ldm, {n: torch.from_numpy(a) for n, a in state.items()}, parts)
    _assert_states_equal(ours, {p: {n: t.numpy() for n, t in s.items()} for p, s in wanted.items()})


@pytest.mark.parametrize(
    "ldm",
    [ldm_shapes.V1, ldm_shapes.V2, ldm_shapes.XL, ldm_shapes.REFINER],
    ids=lambda ldm: ldm.kind,
)
def test_full_size_single_files_have_the_names_and_shapes_of_diffusers(ldm):
    meta = {n: torch.empty(s, device="meta") for n, s in ldm_shapes.shapes(ldm).items()}
    stored = {
        n: tensors.Tensor(tuple(t.shape), np.dtype(np.float32), None) for n, t in meta.items()
    }
    parts, _ = ldm_names.rename(stored, ldm.kind)
    ours = {name: {n: t.shape for n, t in part.items()} for name, part in parts.items()}
    wanted = _diffusers_conversion(ldm, meta, parts)
    assert ours == {p: {n: tuple(t.shape) for n, t in s.items()} for p, s in wanted.items()}

    for name, class_name in ldm_configs.CLASSES[ldm.kind].items():
        config = ldm_configs.infer(class_name, parts[name], ldm.kind)
        with torch.device("meta"):
            if name.startswith("text"):
                model = getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
            else:
                model = getattr(diffusers_torch, class_name).from_config(config)
        shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
        flat = {n.removeprefix("text_model."): s for n, s in ours[name].items()}
        assert flat == {n.removeprefix("text_model."): s for n, s in shapes.items()}, name


def _renamed_text_encoder(state):
    """An SD 2 file whose text encoder was saved in transformers' names, all layers included."""
    old, new = "cond_stage_model.model.", "cond_stage_model.transformer."
    inner = {n.removeprefix(old): tensors.from_array(a) for n, a in state.items() if old in n}
    part, _ = open_clip.convert(inner, projected=False)
    rest = {n: a for n, a in state.items() if old not in n}
    return rest | {new + n: np.ascontiguousarray(t.read()) for n, t in part.items()}


V2 = ldm_shapes.TINY_V2
FORMS = {
    "v1": ldm_shapes.TINY_V1,
    "v1_inpainting": ldm_shapes.TINY_V1._replace(in_channels=9),
    "v2_23_layers": V2._replace(open_clip=(60, 16, 23)),
    "v2_24_layers": V2._replace(open_clip=(60, 16, 24)),
    "v2_transformers_names_23": V2._replace(open_clip=(60, 16, 23)),
    "v2_transformers_names_24": V2._replace(open_clip=(60, 16, 24)),
    "v2_inpainting": V2._replace(in_channels=9),
    "xl": ldm_shapes.TINY_XL,
    "xl_inpainting": ldm_shapes.TINY_XL._replace(in_channels=9),
    "refiner": ldm_shapes.TINY_REFINER,
    "playground": ldm_shapes.TINY_PLAYGROUND,
}
# the kinds of diffusers, each of which stands for one published model and its configs
KINDS = {
    "v1": ldm_shapes.V1,
    "inpainting": ldm_shapes.V1._replace(in_channels=9),
    "v2": ldm_shapes.V2,
    "inpainting_v2": ldm_shapes.V2._replace(in_channels=9),
    "xl_base": ldm_shapes.XL,
    "xl_inpaint": ldm_shapes.XL._replace(in_channels=9),
    "xl_refiner": ldm_shapes.REFINER,
    "playground-v2-5": ldm_shapes.XL._replace(kind="playground"),
}


@pytest.mark.parametrize("theirs", KINDS)
def test_full_size_files_are_of_the_kinds_that_diffusers_says(theirs):
    ldm = KINDS[theirs]
    shapes = {n: torch.empty(s, device="meta") for n, s in ldm_shapes.shapes(ldm).items()}
    assert single_file_utils.infer_diffusers_model_type(shapes) == theirs
    stored = {n: tensors.Tensor(tuple(t.shape), np.float32, None) for n, t in shapes.items()}
    assert ldm_kinds.kind_of(stored, "file") == ldm.kind
    assert ldm_kinds.is_inpainting(stored) == ("inpaint" in theirs)


@pytest.mark.parametrize("strays", [False, True], ids=["clean", "strays"])
@pytest.mark.parametrize("form", FORMS)
def test_single_files_of_every_form_load_as_from_single_file_does(form, strays, tmp_path):
    """diffusers takes our configs, as it has none for so small a model, and reads the same file."""
    rng = np.random.default_rng(0)
    shapes = ldm_shapes.shapes(FORMS[form])
    state = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    state = _renamed_text_encoder(state) if "transformers" in form else state
    if strays:
        names = (
            "model_ema.decay",
            "scale_factor",
            "lora_unet.lora_up.weight",
            "embedding_manager.x",
        )
        state |= {name: np.ones(3, np.float32) for name in names}
    path, words = tmp_path / "model.safetensors", tmp_path / "tokenizer"
    safetensors.numpy.save_file(state, path)
    words.mkdir()
    tokenizer.write(words, _tokens())

    checkpoint = single_file.read(path, words)
    diffusers.write(tmp_path / "configs", checkpoint)
    pipeline = getattr(diffusers_torch, checkpoint.index["_class_name"])
    theirs = pipeline.from_single_file(
        str(path), config=str(tmp_path / "configs"), local_files_only=True
    )
    parts = checkpoint.components.items()
    ours = {name: {n: t.read() for n, t in part.tensors.items()} for name, part in parts}
    _assert_states_equal(ours, _states(theirs))
    assert len(checkpoint.notes) == strays


@pytest.mark.parametrize("form", ["", "first_stage_model.", "vae."])
def test_autoencoders_alone_convert_as_in_diffusers(form, tmp_path):
    rng, old = np.random.default_rng(0), "first_stage_model."
    shapes = ldm_shapes.shapes(ldm_shapes.TINY_V1)
    state = {
        form + n.removeprefix(old): rng.normal(size=s).astype(np.float32)
        for n, s in shapes.items() if n.startswith(old)
    }  # fmt: skip
    safetensors.numpy.save_file(state, tmp_path / "vae.safetensors")
    component = autoencoder.read(tmp_path / "vae.safetensors")
    torch_state = {n: torch.from_numpy(a) for n, a in state.items()}
    wanted = single_file_utils.convert_ldm_vae_checkpoint(torch_state, component.config)
    ours = {n: t.read() for n, t in component.tensors.items()}
    _assert_states_equal({"vae": ours}, {"vae": {n: t.numpy() for n, t in wanted.items()}})


@pytest.mark.parametrize("version", ["0.6.0", "0.8.1", "0.9.0.dev0", "0.30.0"])
def test_latent_sizes_of_old_configs_are_corrected_as_in_torch(pipeline, version, tmp_path):
    folder = tmp_path / "theirs"
    pipeline.save_pretrained(folder)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_diffusers_version": version}))
    theirs = type(pipeline).from_pretrained(folder, local_files_only=True)
    ours = diffusers.read(folder).components["unet"].config
    assert ours["sample_size"] == theirs.unet.config.sample_size


OLD_KEYS = {"tensor_format": "pt", "predict_epsilon": True, "trainer": {"lr": 1e-4}}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_torch_passes_over_is_passed_over(pipeline, variant, tmp_path):
    """Old keys, parts that a pipeline does not have, and a variant that only the UNet has."""
    folder = tmp_path / "theirs"
    pipeline.save_pretrained(folder)
    if variant:
        pipeline.unet.save_pretrained(folder / "unet", variant=variant)
    for path in [*folder.glob("*/config.json")]:
        path.write_text(json.dumps(json.loads(path.read_text()) | OLD_KEYS))
    index = json.loads((folder / "model_index.json").read_text())
    index["preprocessor"] = ["diffusers", "VaeImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    checkpoint = diffusers.read(folder, variant)
    theirs = type(pipeline).from_pretrained(folder, variant=variant, local_files_only=True)
    parts = checkpoint.components.items()
    ours = {name: {n: t.read() for n, t in part.tensors.items()} for name, part in parts}
    _assert_states_equal(ours, _states(theirs))
    text = "; ".join(checkpoint.notes)
    assert "passed over the parts preprocessor" in text
    assert "unet/config.json: passed over 3 unknown keys (predict_epsilon, tensor_format" in text
    assert ("took the plain weights of vae, text_encoder" in text) == (variant is not None)


@pytest.mark.parametrize("pipeline", ["sd1"], indirect=True)
def test_odd_folders_are_read_as_torch_reads_them(pipeline, tmp_path):
    """A whole CLIP as text encoder, and strays among the weights of every part."""
    folder = tmp_path / "theirs"
    pipeline.save_pretrained(folder)
    config = folder / "text_encoder" / "config.json"
    whole = {"model_type": "clip", "text_config": json.loads(config.read_text())}
    config.write_text(json.dumps(whole))
    for path in folder.glob("*/*.safetensors"):
        arrays = safetensors.numpy.load_file(path) | {"visual_projection.weight": np.ones((2, 2))}
        safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    theirs = type(pipeline).from_pretrained(folder, local_files_only=True)

    checkpoint = diffusers.read(folder)

    states = _states(theirs)
    for name in ("text_encoder", "vae"):
        part = checkpoint.components[name]
        own, strays = diffusers.without_strays(part.tensors, checkpoints.shapes(part))
        assert strays == ["visual_projection.weight"]
        ours = {n: t.read() for n, t in own.items()}
        _assert_states_equal({name: ours}, {name: states[name]})


@pytest.mark.parametrize("own", ["DDPMScheduler", "PNDMScheduler"])
def test_the_index_decides_on_the_class_of_the_scheduler_as_in_torch(pipeline, own, tmp_path):
    """A trainer's config beside an index of another class, with a value that only some know."""
    folder = tmp_path / "theirs"
    pipeline.save_pretrained(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    changed = {"_class_name": own, "clip_sample": False, "thresholding": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    ours = diffusers.read(folder).scheduler
    theirs = type(pipeline).from_pretrained(folder, local_files_only=True).scheduler
    assert ours["_class_name"] == type(theirs).__name__ == "DDIMScheduler"
    assert ours["clip_sample"] is theirs.config.clip_sample is False


def _diffusers_conversion(ldm, state, parts):
    """The same state dict through diffusers' own converters, with our inferred configs."""
    configured = {
        n: ldm_configs.infer(c, parts[n], ldm.kind)
        for n, c in ldm_configs.CLASSES[ldm.kind].items()
    }
    convert = single_file_utils
    result = {
        "unet": convert.convert_ldm_unet_checkpoint(dict(state), configured["unet"]),
        "vae": convert.convert_ldm_vae_checkpoint(dict(state), configured["vae"]),
    }
    if ldm.kind in ("v1", "xl"):
        result["text_encoder"] = convert.convert_ldm_clip_checkpoint(dict(state))
    if ldm.kind != "v1":
        name = "text_encoder" if ldm.kind == "v2" else "text_encoder_2"
        with torch.device("meta"):
            config = transformers.CLIPTextConfig(**configured[name])
            model = transformers.CLIPTextModelWithProjection(config)
        prefix = {
            "v2": "cond_stage_model.model.",
            "xl": "conditioner.embedders.1.model.",
            "refiner": "conditioner.embedders.0.model.",
        }[ldm.kind]
        result[name] = convert.convert_open_clip_checkpoint(model, dict(state), prefix=prefix)
    return {p: {n: t for n, t in s.items() if "position_ids" not in n} for p, s in result.items()}


def test_unsafe_only_folder_names_its_files(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "theirs", safe_serialization=False)
    for path in (tmp_path / "theirs").glob("text_encoder*/*.safetensors"):
        path.rename(path.with_suffix(".bin"))  # transformers 5 writes safetensors in any case
    with pytest.raises(ValueError, match=r"(?s)only as \w+\.bin.*save_pretrained"):
        diffusers.read(tmp_path / "theirs")
    shutil.rmtree(tmp_path / "theirs")
