# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""Adapters beside diffusers and PEFT, on small checkpoints and files that the tests write."""

import copy
import json
import warnings

import jax
import numpy as np
import pytest
from support import adapters, checkpoints, networks, pipeline_cases
from support.adapters import TEXT, draw
from support.pipeline_cases import BASE, XL, ours, relative_error

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

import make_pipeline_values

from jaxgen.adapters import ldm_stems, lora_file, low_rank
from jaxgen.weights import layout

pytestmark = pytest.mark.oracle
diffusers.utils.logging.set_verbosity_error()

RANK, ALPHA = 2, 3.0
KOHYA = (".lora_down.weight", ".lora_up.weight")
DIFFUSERS = (".lora.down.weight", ".lora.up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")
LINEAR = ("attn1.to_q", "attn2.to_k", "attn2.to_v", "attn1.to_out.0")
PREFIXES = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def targets(kind):
    """{(component, module): shape of its weight in PyTorch} of the modules that get a LoRA."""
    result = {}
    for component, part in checkpoints.checkpoint(kind).components.items():
        for name, tensor in part.tensors.items():
            module, _, leaf = name.rpartition(".")
            if leaf != "weight" or component == "vae":
                continue
            if module.endswith(LINEAR) or module == TEXT:
                result[component, module] = tensor.shape
    return result


def factors(places, seed=0):
    rng = np.random.default_rng(seed)
    return {
        place: (0.5 * draw(rng, RANK, shape[1]), 0.5 * draw(rng, shape[0], RANK))
        for place, shape in places.items()
    }


def kohya(kind):
    """A file of kohya's scripts; XL's UNet in LDM's names, as there."""
    modules = [m for c, m in targets(kind) if c == "unet"]
    every = [n.rpartition(".")[0] for n in checkpoints.checkpoint(kind).components["unet"].tensors]
    ldm = ldm_stems.of_unet(every) if kind == "xl" else {m: m for m in modules}
    values = {}
    for (component, module), (down, up) in factors(targets(kind)).items():
        prefix = PREFIXES[component] if kind == "xl" and component != "unet" else "lora_te_"
        name = ldm[module] if component == "unet" else module
        stem = ("lora_unet_" if component == "unet" else prefix) + name.replace(".", "_")
        values |= {stem + KOHYA[0]: down, stem + KOHYA[1]: up, f"{stem}.alpha": np.float32(ALPHA)}
    return values, None


def dotted(kind, ends, old=False):
    values = {}
    for (component, module), (down, up) in factors(targets(kind)).items():
        name = module
        if component == "unet" and old:
            module, _, projection = module.removesuffix(".0").rpartition(".")
            name = f"{module}.processor.{projection}_lora"
        if component != "unet" and ends == DIFFUSERS:
            name += ".lora_linear_layer"
        end = (".down.weight", ".up.weight") if old or component != "unet" else ends
        if component != "unet" and ends == PEFT:
            end = PEFT
        values |= {f"{component}.{name}{end[0]}": down, f"{component}.{name}{end[1]}": up}
    return values


def with_metadata(kind):
    """What `save_lora_weights` of diffusers writes today: PEFT's names and configuration."""
    config = {}
    for component in {component for component, _ in targets(kind)}:
        modules = [m for c, m in targets(kind) if c == component]
        own = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": True, "target_modules": modules}
        config |= {f"{component}.{key}": value for key, value in own.items()}
    return dotted(kind, PEFT), {"lora_adapter_metadata": json.dumps(config)}


def dora(kind):
    """PEFT's DoRA of the UNet; the text encoders' LoRA stays plain."""
    values = dotted(kind, PEFT)
    rng = np.random.default_rng(3)
    for module, shape in ((m, s) for (c, m), s in targets(kind).items() if c == "unet"):
        norms = rng.uniform(0.5, 1.5, shape[0])
        values[f"unet.{module}.lora_magnitude_vector"] = norms
    return values, None


STABLE = ALPHA / np.sqrt(RANK)
FILES = {  # kind of model, the file's tensors and metadata, and the scale that they say
    "kohya": ("sd1", kohya, ALPHA / RANK),
    "kohya of XL": ("xl", kohya, ALPHA / RANK),
    "diffusers": ("sd1", lambda kind: (dotted(kind, DIFFUSERS), None), 1.0),
    "diffusers, old": ("sd1", lambda kind: (dotted(kind, DIFFUSERS, old=True), None), 1.0),
    "PEFT": ("sd1", lambda kind: (dotted(kind, PEFT), None), 1.0),
    "PEFT, rank-stabilised, of XL": ("xl", with_metadata, STABLE),
    "DoRA": ("sd1", dora, 1.0),
}


def theirs(kind, values, metadata, scale, strength, folder):
    """diffusers' parts of a pipeline with an adapter merged: the UNet's by diffusers and PEFT.

    The text encoders' is added by hand: diffusers 0.42 loads none into those of transformers 5.
    """
    parts, config = make_pipeline_values.components(kind)
    parts = copy.deepcopy(parts)
    cls = make_pipeline_values.CLASSES["xl" if kind == "xl" else "sd", "text"]
    options = {"add_watermarker": False} if kind == "xl" else {"requires_safety_checker": False}
    own = {
        name: value
        for name, value in values.items()
        if "text" not in name and not name.startswith("lora_te")
    }
    if metadata:
        config_of_unet = json.loads(metadata["lora_adapter_metadata"])
        own_config = {k: v for k, v in config_of_unet.items() if k.startswith("unet.")}
        metadata = {"lora_adapter_metadata": json.dumps(own_config)}
    file = adapters.write(folder / "pytorch_lora_weights.safetensors", own, metadata)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        pipe = cls(**parts, **options)
        pipe.load_lora_weights(str(file))
        pipe.fuse_lora(components=["unet"], lora_scale=strength)
        pipe.unload_lora_weights()
        for (component, module), (down, up) in factors(targets(kind)).items():
            if component != "unet":
                change = strength * scale * torch.from_numpy(up) @ torch.from_numpy(down)
                weight_in(parts[component], module).add_(change)
    return parts, config


def weight_in(network, module):
    """A weight of a PyTorch network; transformers 5 dropped a prefix in its text encoders."""
    weights = dict(network.named_parameters())
    return weights.get(
        f"{module}.weight", weights.get(f"{module.removeprefix('text_model.')}.weight")
    )


@pytest.mark.parametrize("name", FILES)
def test_weights_and_pictures_are_diffusers(name, tmp_path, monkeypatch):
    kind, make, scale = FILES[name]
    values, metadata = make(kind)
    strength = 1.0 if name == "DoRA" else 0.8  # PEFT scales inside of DoRA's norm
    parts, config = theirs(kind, values, metadata, scale, strength, tmp_path)
    file = adapters.write(tmp_path / "all.safetensors", values, metadata)
    pipe = pipeline_cases.pipeline(kind)
    pipe.set_adapters([(file, strength)])
    pipeline_cases._with_scheduler.cache_clear()
    try:
        for component, module in targets(kind):
            stored = layout.to_tensors(pipe.params[component], conv_1x1=())[f"{module}.weight"]
            expected = weight_in(parts[component], module).detach().numpy()
            np.testing.assert_allclose(stored.read(), expected, atol=1e-6, err_msg=module)
        monkeypatch.setattr(make_pipeline_values, "components", lambda _: (parts, config))
        num_steps = 20 if name.startswith("kohya") else 6  # two whole runs
        case = BASE | (XL if kind == "xl" else {"sampler": "ddim"}) | {"num_steps": num_steps}
        expected = make_pipeline_values.theirs(case)
        assert relative_error(ours(case), expected) < 1e-3
        pipe.set_adapters([])
        pipeline_cases._with_scheduler.cache_clear()
        assert relative_error(ours(case), expected) > 0.01
    finally:
        pipe.set_adapters([])
        pipeline_cases._with_scheduler.cache_clear()  # a copy of the pipeline with its parameters


EVERY_KIND = ("to_q", "to_out.0", "net.0.proj", "proj_in", "conv1", "conv_shortcut", "conv")


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_diffusers_loads_the_files_that_training_writes(kind, tmp_path):
    pipe, rng = pipeline_cases.pipeline(kind), np.random.default_rng(4)
    unet, base = pipe.networks.unet, pipe.base["unet"]
    kernels = low_rank.layers(base, EVERY_KIND, "unet")
    factors = jax.tree.map(
        lambda x: draw(rng, *x.shape), low_rank.init(jax.random.key(0), kernels, RANK)
    )
    parts, _ = make_pipeline_values.components(kind)
    inputs = networks.unet_inputs(checkpoints.UNETS[kind], size=8, tokens=5)
    merged = {"params": low_rank.merged(base, factors, ALPHA / RANK)}
    expected = jax.jit(unet.apply)(merged, *inputs)
    assert relative_error(jax.jit(unet.apply)({"params": base}, *inputs), expected) > 0.01
    components = checkpoints.checkpoint(kind).components
    for write in (lora_file.write_peft, lora_file.write_kohya):
        write(tmp_path / lora_file.PEFT, components, {"unet": factors}, ALPHA)
        theirs_of = copy.deepcopy(parts)
        cls = make_pipeline_values.CLASSES["xl" if kind == "xl" else "sd", "text"]
        options = {"add_watermarker": False} if kind == "xl" else {"requires_safety_checker": False}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            loaded = cls(**theirs_of, **options)
            loaded.load_lora_weights(str(tmp_path / lora_file.PEFT))
            sample, t, text, *more = (torch.from_numpy(np.asarray(x, np.float32)) for x in inputs)
            added = dict(zip(("text_embeds", "time_ids"), more, strict=False))
            found = loaded.unet(
                sample.movedim(-1, 1), t, text, added_cond_kwargs=added
            ).sample.movedim(1, -1)
        assert relative_error(found.numpy(), expected) < 1e-5, write.__name__
