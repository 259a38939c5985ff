# SPDX-License-Identifier: MIT
"""LoRA and its relatives: every spelling, the arithmetic in float64, and no program recompiled."""

import itertools
import json
import re

import jax
import numpy as np
import pytest
from support import checkpoints, compilations
from support.adapters import KOHYA, LDM, RESNET, TEXT, UNET, draw, weight, write

from jaxgen.adapters import ldm_stems, peft_config, spec, spellings
from jaxgen.stable_diffusion import placement
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers, layout, ldm_names

RANK, ALPHA = 3, 1.5
CALL = {"num_steps": 2, "sampler": "euler", "height": 16, "width": 16, "output": "latent"}


@pytest.fixture(scope="module")
def pipe():
    return StableDiffusion(checkpoints.checkpoint("sd1"))


@pytest.fixture(autouse=True)
def restored(pipe):
    yield
    pipe.set_adapters([])


def factors(pipe, component, module, rank=RANK, seed=0):
    """Random down [r, I] and up [O, r] for a module's weight."""
    rng = np.random.default_rng([seed, len(module)])
    shape = weight(pipe, component, module).shape
    return draw(rng, rank, *shape[1:]), draw(rng, shape[0], rank, *(1,) * (len(shape) - 2))


def pairs(stems, values, down, up, alpha=None):
    """The tensors of a file that names modules by `stems` and factors by `down` and `up`."""
    result = {}
    for stem, (first, second) in zip(stems, values, strict=True):
        result |= {stem + down: first, stem + up: second}
        if alpha is not None:
            result[f"{stem}.alpha"] = np.float32(alpha)
    return result


SPELLINGS = {
    "kohya": (list(KOHYA.values()), ".lora_down.weight", ".lora_up.weight"),
    "kohya, LDM": ([LDM, KOHYA["text_encoder", TEXT]], ".lora_down.weight", ".lora_up.weight"),
    "diffusers": ([f"unet.{UNET}", f"text_encoder.{TEXT}"], ".lora.down.weight", ".lora.up.weight"),
    "diffusers, text": (
        [f"unet.{UNET}", f"text_encoder.{TEXT}"],
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "diffusers, old": (
        [
            "unet." + UNET.replace(".to_k", ".processor.to_k_lora"),
            "text_encoder." + TEXT.replace(".q_proj", ".to_q_lora"),
        ],
        ".down.weight",
        ".up.weight",
    ),
    "PEFT by diffusers": (
        [f"unet.{UNET}", f"text_encoder.{TEXT}"],
        ".lora_A.weight",
        ".lora_B.weight",
    ),
    "PEFT": (
        [f"base_model.model.{UNET}", f"base_model.model.{TEXT}"],
        ".lora_A.default.weight",
        ".lora_B.default.weight",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_all_spellings_merge_to_the_formula(pipe, name, tmp_path):
    stems, down, up = SPELLINGS[name]
    values = [factors(pipe, *place) for place in KOHYA]
    file = write(tmp_path / "a.safetensors", pairs(stems, values, down, up, ALPHA))
    before = [weight(pipe, *place) for place in KOHYA]
    pipe.set_adapters([(file, 0.7)])
    for place, base, (a, b) in zip(KOHYA, before, values, strict=True):
        expected = base + 0.7 * ALPHA / RANK * np.float64(b) @ np.float64(a)
        np.testing.assert_allclose(weight(pipe, *place), expected, atol=1e-6)


@pytest.mark.parametrize("layout_of", ["metadata", "beside"])
def test_the_scale_comes_from_pefts_configuration(pipe, layout_of, tmp_path):
    first, second = factors(pipe, "unet", UNET), factors(pipe, "unet", UNET.replace("to_k", "to_v"))
    config = {
        "r": RANK,
        "lora_alpha": 6,
        "use_rslora": True,
        "alpha_pattern": {"attn2.to_v": 9},
    }
    modules = [UNET, UNET.replace("to_k", "to_v")]
    before = [weight(pipe, "unet", module) for module in modules]
    names = "unet." if layout_of == "metadata" else "base_model.model."
    values = pairs(
        [names + module for module in modules], [first, second], ".lora_A.weight", ".lora_B.weight"
    )
    if layout_of == "metadata":
        text = json.dumps({f"unet.{key}": value for key, value in config.items()})
        path = write(tmp_path / "a.safetensors", values, {"lora_adapter_metadata": text})
    else:
        write(tmp_path / "adapter_model.safetensors", values)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        path = tmp_path
    pipe.set_adapters([path])
    for module, base, (a, b), alpha in zip(modules, before, (first, second), (6, 9), strict=True):
        expected = base + alpha / np.sqrt(RANK) * np.float64(b) @ np.float64(a)
        np.testing.assert_allclose(weight(pipe, "unet", module), expected, atol=1e-6)


LORA_OF_2 = peft_config.Factors("LORA", 2)
PATTERNS = (
    "attn2.to_k",
    UNET,
    "^" + UNET,
    "^to_k",
    r".*attn\d\.to_k",
    r"attn\d+.to_.+",
    "2.to_k",
    "to_k$",
)


@pytest.mark.parametrize("key", PATTERNS)
@pytest.mark.parametrize("name", [UNET, UNET.replace("attn2", "attn12"), "to_k", "a.attnX.to_k"])
def test_patterns_fit_the_names_that_they_fit_in_peft(key, name):
    module = spellings.Module("unet", name)
    config = {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {key: 6, name[1:]: 7}}
    fits = re.match(rf"(.*\.)?({key})$", name)  # get_pattern_key of peft.utils.other
    assert peft_config.scales(config, {module: LORA_OF_2}) == {module: 3 if fits else 2}


def test_a_pattern_of_many_stars_takes_no_time():
    config = {"alpha_pattern": {".*a" * 66: 1}}
    module = spellings.Module("unet", "a" * 200)
    assert peft_config.scales(config, {module: LORA_OF_2._replace(rank=8)}) == {module: 1 / 8}


WRONG_CONFIGS = {
    "a group": ({"alpha_pattern": {"(a+)+b": 4}}, r"the key '\(a\+\)\+b'; expected a name, or one"),
    "a repeated letter": ({"alpha_pattern": {"a*": 4}}, "Write out the names"),
    "an empty key": ({"alpha_pattern": {"": 4}}, "Write out the names"),
    "a long key": ({"alpha_pattern": {"a" * 201: 4}}, "at most 200 characters"),
    "no object": ({"alpha_pattern": ["to_k"]}, "alpha_pattern of unet is .*expected an object"),
    "words": ({"alpha_pattern": {"to_k": "4"}}, 'is "4"; expected a finite number'),
    "infinite": ({"alpha_pattern": {"to_k": float("inf")}}, "expected a finite number"),
    "huge": ({"lora_alpha": 10**400}, "lora_alpha of unet is 1000.*expected a finite number"),
    "a word": ({"use_rslora": "false"}, 'use_rslora is "false"; expected true or false'),
    "no rank": ({"rank_pattern": {"to_k": 0}}, "rank_pattern of 'to_k' is 0; expected a whole"),
    "norms that are gone": ({"use_dora": True, "r": 2}, "no lora_magnitude_vector; fetch or"),
    "ABBA": ({"peft_type": "LOHA", "init_weights": "abba", "r": 2}, "LORA, LOHA, LOKR, without A"),
    "no kind": ({"peft_type": ["LORA"], "r": 2}, "with init_weights None in PEFT"),
    "a capital": ({"peft_type": "LOHA", "init_weights": "ABBA", "r": 2}, "without ABBA"),
    "half a rank": ({"r": 2.5}, "r of unet is 2.5; expected a whole number, at least 1"),
    "another kind": ({"peft_type": "VERA", "r": 2}, "'VERA' with init_weights None in PEFT"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_a_configuration_that_says_nothing_clear_is_refused(name):
    own, message = WRONG_CONFIGS[name]
    config = {f"unet.{key}": value for key, value in own.items()}
    with pytest.raises(ValueError, match=message):
        peft_config.scales(config, {spellings.Module("unet", UNET): LORA_OF_2})


@pytest.mark.parametrize("config", [{"lora_alpha": 4}, {"use_rslora": False, "r": 2}])
def test_alpha_counts_without_the_rank_and_has_pefts_default(config):
    module = spellings.Module("unet", UNET)
    assert peft_config.scales(config, {module: LORA_OF_2}) == {
        module: config.get("lora_alpha", 8) / 2
    }
    null = {"use_rslora": None, "alpha_pattern": None, "use_dora": None, "peft_type": None}
    assert peft_config.scales(config | null, {module: LORA_OF_2}) == {
        module: config.get("lora_alpha", 8) / 2
    }
    assert peft_config.scales({"text_encoder.lora_alpha": 4}, {module: LORA_OF_2}) == {}


@pytest.mark.parametrize("kind", ["LOHA", "LOKR"])
def test_pefts_loha_and_lokr_have_the_scale_of_their_configuration(pipe, kind, tmp_path):
    """PEFT: alpha / r, where r of two whole factors of LoKr is the configuration's."""
    config = {
        "peft_type": kind, "r": 4, "alpha": 16, "alpha_pattern": {"attn2.to_k": 24},
        "rank_pattern": {"to_k": 6},
    }  # fmt: skip
    shapes, rank = (HADA, 2) if kind == "LOHA" else ({"lokr_w1": (4, 4), "lokr_w2": (4, 6)}, 6)
    values = {f"base_model.model.{UNET}.{name}": np.ones(s) for name, s in shapes.items()}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    write(tmp_path / "adapter_model.safetensors", values)
    before = weight(pipe, "unet", UNET)
    pipe.set_adapters([tmp_path])
    change = 4 if kind == "LOHA" else 1  # of ones, before the scale
    np.testing.assert_allclose(weight(pipe, "unet", UNET), before + 24 / rank * change, rtol=1e-5)
    pipe.set_adapters([])


def tucker(core, first, second):
    """sum_ij core[i, j] first[i, o] second[j, c], written out."""
    result = np.zeros((first.shape[1], second.shape[1], *core.shape[2:]))
    for i, j in itertools.product(range(core.shape[0]), range(core.shape[1])):
        outer = np.outer(np.float64(first[i]), np.float64(second[j]))
        result += outer[:, :, None, None] * core[i, j].astype(np.float64)
    return result


def locon(rng, o, i):
    down, up = draw(rng, 2, i, 1, 1), draw(rng, o, 2, 1, 1)
    core = draw(rng, 2, 2, 3, 3)
    change = tucker(core.transpose(0, 1, 2, 3), up[:, :, 0, 0].T, down[:, :, 0, 0])
    return {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": core}, change, 2


def convolution(rng, o, i):
    down, up = draw(rng, 2, i, 3, 3), draw(rng, o, 2, 1, 1)
    change = np.tensordot(up[:, :, 0, 0].astype(np.float64), down, 1)
    return {"lora_down.weight": down, "lora_up.weight": up}, change, 2


def loha(rng, o, i):
    a, b, c, d = draw(rng, o, 2), draw(rng, 2, 9 * i), draw(rng, o, 2), draw(rng, 2, 9 * i)
    change = (a.astype(np.float64) @ b) * (c.astype(np.float64) @ d)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return dict(zip(names, (a, b, c, d), strict=True)), change.reshape(o, i, 3, 3), 2


def loha_with_cores(rng, o, i):
    a, b, c, d = draw(rng, 2, o), draw(rng, 2, i), draw(rng, 2, o), draw(rng, 2, i)
    first, second = draw(rng, 2, 2, 3, 3), draw(rng, 2, 2, 3, 3)
    change = tucker(first, a, b) * tucker(second, c, d)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    return dict(zip(names, (a, b, c, d, first, second), strict=True)), change, 2


def lokr(rng, o, i):
    first, a, b = draw(rng, 2, 4), draw(rng, o // 2, 3), draw(rng, 3, 9 * i // 4)
    second = (a.astype(np.float64) @ b).reshape(o // 2, i // 4, 3, 3)
    change = np.zeros((o, i, 3, 3))
    for x, y in itertools.product(range(o), range(i)):
        change[x, y] = first[x // (o // 2), y // (i // 4)] * second[x % (o // 2), y % (i // 4)]
    return {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b}, change, 3


def lokr_whole(rng, o, i):
    first, second = draw(rng, 2, 4), draw(rng, o // 2, i // 4, 3, 3)
    change = np.zeros((o, i, 3, 3))
    for x, y in itertools.product(range(2), range(4)):
        rows, columns = slice(x * o // 2, (x + 1) * o // 2), slice(y * i // 4, (y + 1) * i // 4)
        change[rows, columns] = first[x, y].astype(np.float64) * second
    return {"lokr_w1": first, "lokr_w2": second}, change, None  # alpha counts for nothing


def full(rng, o, i):
    values = draw(rng, o, i, 3, 3)
    return {"diff": values}, values.astype(np.float64), None


KINDS = (convolution, locon, loha, loha_with_cores, lokr, lokr_whole, full)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_lycoris_kinds_merge_to_the_formula(pipe, kind, tmp_path):
    base = weight(pipe, "unet", RESNET)
    parts, change, rank = kind(np.random.default_rng(5), *base.shape[:2])
    stem = "lora_unet_" + RESNET.replace(".", "_")
    values = {f"{stem}.{role}": array for role, array in parts.items()}
    if kind is not full:
        values[f"{stem}.alpha"] = np.float32(ALPHA)
    pipe.set_adapters([(write(tmp_path / "a.safetensors", values), 0.5)])
    scale = 1.0 if rank is None else ALPHA / rank
    expected = base + 0.5 * scale * change
    np.testing.assert_allclose(weight(pipe, "unet", RESNET), expected, atol=1e-6)


@pytest.mark.parametrize("role", ["dora_scale", "dora_scale of outputs", "lora_magnitude_vector"])
def test_dora_gives_the_norms_that_the_file_says(pipe, role, tmp_path):
    base, (down, up) = weight(pipe, "unet", UNET), factors(pipe, "unet", UNET)
    of_inputs = role == "dora_scale"
    norms = np.random.default_rng(1).uniform(0.5, 2, base.shape[1 if of_inputs else 0])
    shape = {"dora_scale": (1, -1), "dora_scale of outputs": (-1, 1)}.get(role, (-1,))
    values = pairs([f"unet.{UNET}"], [(down, up)], ".lora_down.weight", ".lora_up.weight")
    values[f"unet.{UNET}.{role.split()[0]}"] = norms.reshape(shape)
    file = write(tmp_path / "a.safetensors", values)
    pipe.set_adapters([file])
    adapted = weight(pipe, "unet", UNET)
    found = np.linalg.norm(adapted, axis=0 if of_inputs else 1)
    np.testing.assert_allclose(found, norms, rtol=1e-5)
    raw = base + np.float64(up) @ np.float64(down)
    cosine = np.sum(raw * adapted) / (np.linalg.norm(raw) * np.linalg.norm(adapted))
    assert cosine > 0.8  # each row or column has only another length
    pipe.set_adapters([(file, 0.25)])
    np.testing.assert_allclose(
        weight(pipe, "unet", UNET), base + 0.25 * (adapted - base), atol=1e-6
    )


def test_norms_and_biases_take_differences(pipe, tmp_path):
    norm = "down_blocks.0.resnets.0.norm1"
    before = weight(pipe, "unet", norm), weight(pipe, "unet", norm, "bias")
    rng = np.random.default_rng(2)
    changes = draw(rng, *before[0].shape), draw(rng, *before[1].shape)
    stem = "lora_unet_" + norm.replace(".", "_")
    values = {f"{stem}.w_norm": changes[0], f"{stem}.b_norm": changes[1]}
    pipe.set_adapters([write(tmp_path / "a.safetensors", values)])
    np.testing.assert_allclose(weight(pipe, "unet", norm), before[0] + changes[0], atol=1e-6)
    after = weight(pipe, "unet", norm, "bias")
    np.testing.assert_allclose(after, before[1] + changes[1], atol=1e-6)


def simple(pipe, path, rank=RANK, modules=tuple(KOHYA), seed=0, scale=1.0):
    values = [factors(pipe, *place, rank=rank, seed=seed) for place in modules]
    values = [(scale * down, up) for down, up in values]
    stems = [f"{component}.{module}" for component, module in modules]
    return write(path, pairs(stems, values, ".lora.down.weight", ".lora.up.weight"))


def test_several_add_up_and_the_base_comes_back_bit_for_bit(pipe, tmp_path):
    base, expected = pipe.params, weight(pipe, "unet", UNET)
    paths = [simple(pipe, tmp_path / f"{i}.safetensors", seed=i) for i in (1, 2)]
    for seed, strength in ((1, 0.5), (2, -0.25)):
        down, up = factors(pipe, "unet", UNET, seed=seed)
        expected = expected + strength * np.float64(up) @ np.float64(down)
    for _ in range(2):  # from the base again: strengths never add up
        pipe.set_adapters(list(zip(paths, (0.5, -0.25), strict=True)))
        np.testing.assert_allclose(weight(pipe, "unet", UNET), expected, atol=1e-6)
    touched = jax.tree.map(lambda old, new: old is not new, base, pipe.params)
    assert sum(jax.tree.leaves(touched)) == 2  # all other leaves are shared, not copied
    pipe.set_adapters([])
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (base, pipe.params)), strict=True))


def test_components_take_their_own_strengths(pipe, tmp_path):
    file, text = simple(pipe, tmp_path / "a.safetensors"), weight(pipe, "text_encoder", TEXT)
    unet = weight(pipe, "unet", UNET)
    pipe.set_adapters([(file, 1.0, {"text": 0.0})])
    np.testing.assert_array_equal(weight(pipe, "text_encoder", TEXT), text)
    assert np.abs(weight(pipe, "unet", UNET) - unet).max() > 0.1
    pipe.set_adapters([(file, 1.0, {"unet": 0})])
    np.testing.assert_array_equal(weight(pipe, "unet", UNET), unet)
    assert np.abs(weight(pipe, "text_encoder", TEXT) - text).max() > 0.1


def test_no_file_strength_or_rank_compiles_a_program_anew(pipe, tmp_path):
    places = [("unet", UNET), ("unet", UNET.replace("to_k", "to_v")), ("text_encoder", TEXT)]
    files = [
        simple(pipe, tmp_path / f"{i}.safetensors", rank=rank, modules=tuple(modules), seed=i)
        for i, (rank, modules) in enumerate(
            [(2, places), (40, places[:1]), (7, places[1:]), (1, places[2:]), (33, places)]
        )
    ]
    pipe.set_adapters([files[0]])
    plain = pipe("a red cat", seed=1, **CALL)
    with compilations.counted() as compiled:
        pictures = []
        for i, file in enumerate(files):
            pipe.set_adapters([(file, 0.3 + 0.1 * i)])
            pictures.append(pipe("a red cat", seed=1, **CALL))
        pipe.set_adapters([])
        pictures.append(pipe("a red cat", seed=1, **CALL))
    assert not compiled
    assert len({picture.tobytes() for picture in (plain, *pictures)}) == 7


def test_sharded_parameters_stay_where_they_lie(tmp_path):
    mesh = placement.mesh_of(1, 2)
    one, two = (StableDiffusion(checkpoints.checkpoint("sd1"), mesh=m) for m in (None, mesh))
    module = "mid_block.resnets.0.conv1"
    file = simple(one, tmp_path / "a.safetensors", modules=(("unet", module),))
    path = layout.module_path(module)

    def kernel(pipe):
        node = pipe.params["unet"]
        for name in path:
            node = node[name]
        return node["kernel"]

    placed = kernel(two).sharding
    for pipe in (one, two):
        pipe.set_adapters([(file, 0.5)])
    assert kernel(two).sharding == placed
    assert len(placed.device_set) == 2
    np.testing.assert_allclose(kernel(two), kernel(one), atol=1e-6)


def test_kernels_in_another_order_in_memory_draw_the_same_and_stay_so(pipe, tmp_path):
    laid_out = StableDiffusion(checkpoints.checkpoint("sd1"), kernel_layout="cudnn")
    moved = [
        own.format.layout != plain.format.layout
        for own, plain in zip(*map(jax.tree.leaves, (laid_out.params, pipe.base)), strict=True)
    ]
    assert sum(moved) == sum(leaf.ndim == 4 for leaf in jax.tree.leaves(pipe.base))
    # by the programs of the other, for they are one function of parameters
    expected, latents = (
        each("a red cat", seed=1, **CALL) for each in (pipe, pipe.with_params(laid_out.params))
    )
    np.testing.assert_allclose(latents, expected, atol=1e-5)

    before = jax.tree.map(lambda leaf: (leaf.format, leaf.committed), laid_out.params)
    conv = ("unet", "mid_block.resnets.0.conv1")
    laid_out.set_adapters(
        [simple(pipe, tmp_path / "a.safetensors", modules=(("unet", UNET), conv))]
    )
    after = jax.tree.map(lambda leaf: (leaf.format, leaf.committed), laid_out.params)
    assert after == before


def test_of_xl_both_text_encoders_and_ldms_names_are_found():
    modules = modules_of("xl")
    table = spellings.stems(modules)
    te1 = "lora_te1_" + TEXT.replace(".", "_")
    te2 = "lora_te2_" + TEXT.replace(".", "_")
    assert table[te1].component == "text_encoder"
    assert table[te2].component == "text_encoder_2"
    assert table["lora_te2_text_projection"].name == "text_projection"
    refiner = spellings.stems(modules_of("refiner"))
    assert refiner[te2] == refiner[f"text_encoder_2.{TEXT}"] == ("text_encoder_2", TEXT)
    name = "lora_unet_input_blocks_3_1_transformer_blocks_1_attn1_to_out_0"
    assert table[name].name == "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0"


def modules_of(kind):
    checkpoint = checkpoints.checkpoint(kind)
    return {
        name: [tensor.rpartition(".")[0] for tensor in component.tensors]
        for name, component in checkpoint.components.items()
        if name != "vae"
    }


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_ldms_names_lead_back_to_diffusers_names(kind):
    names = ldm_stems.of_unet(modules_of(kind)["unet"])
    stored = [f"{old}.weight" for old in names.values()]
    back = ldm_names.unet_names(stored)
    assert {back(old) for old in stored} == {f"{new}.weight" for new in names}
    assert set(names) == set(modules_of(kind)["unet"])


PLACE = KOHYA["unet", UNET]  # of a weight [16, 24]
NORM = "lora_unet_" + RESNET.replace(".", "_")  # of one that has a bias


def at_place(**shapes):
    """Ones of these shapes, by what they are in kohya's and LyCORIS' names."""
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
    return {f"{PLACE}.{names.get(k, k)}": np.ones(shape) for k, shape in shapes.items()}


PAIR = {"down": (2, 24), "up": (16, 2)}
HADA = {"hada_w1_a": (16, 2), "hada_w1_b": (2, 24), "hada_w2_a": (16, 2), "hada_w2_b": (2, 24)}
WHOLE, NOT_WHOLE = {"lokr_w1": (4, 4), "lokr_w2": (4, 6)}, "not a whole set"
NO_FACTOR = r"expected lokr_w2_a \[O, r\] and lokr_w2_b \[r, I\]"
REFUSED = {
    "a LoRA and a difference": (at_place(**PAIR, diff=(16, 24)), NOT_WHOLE),
    "norms of a difference": (at_place(diff=(16, 24), dora_scale=(16, 1)), NOT_WHOLE),
    "an alpha alone": (at_place(alpha=()), "has the tensors alpha, not a whole set"),
    "norms alone": (at_place(dora_scale=(16, 1)), NOT_WHOLE),
    "norms beside a bias": (
        {f"{NORM}.{end}": np.ones(16) for end in ("dora_scale", "diff_b")},
        NOT_WHOLE,
    ),
    "one core": (at_place(**HADA, hada_t1=(2, 2, 1, 1)), NOT_WHOLE),
    "a factor twice": (at_place(**WHOLE, lokr_w1_a=(4, 2), lokr_w1_b=(2, 4)), NOT_WHOLE),
    "a core of nothing": (at_place(**WHOLE, lokr_t2=(2, 2, 1, 1)), NOT_WHOLE),
    "half a LoKr": (at_place(lokr_w1=(4, 4)), NOT_WHOLE),
    "two norms": (
        at_place(**PAIR, dora_scale=(16, 1), lora_magnitude_vector=(16,)),
        "two tensors of magnitudes",
    ),
    "a LoHa of one row": (at_place(**HADA | {"hada_w2_a": (1, 2)}), "two products of one shape"),
    "inner sizes of LoHa": (
        at_place(**HADA | {"hada_w2_b": (3, 24)}),
        r"hada_w2_b \[r, I\]. Fetch",
    ),
    "cores of LoHa": (
        at_place(**HADA, hada_t1=(2, 3, 1, 1), hada_t2=(2, 2, 1, 1)),
        r"hada_t1 \[2, 3, 1, 1\].*expected hada_t1 \[r, r, kh, kw\]",
    ),
    "numbers for factors": (at_place(lokr_w1=(4, 4), lokr_w2_a=(), lokr_w2_b=()), NO_FACTOR),
    "inner sizes of LoKr": (
        at_place(lokr_w1=(4, 4), lokr_w2_a=(4, 2), lokr_w2_b=(3, 6)),
        NO_FACTOR,
    ),
    "a number for LoKr": (at_place(lokr_w1=(), lokr_w2=(16, 24)), r"expected w1 \[O1, I1\]"),
    "a product of another shape": (at_place(lokr_w1=(8, 2), lokr_w2=(4, 6)), "the weight is"),
    "a core of another rank": (at_place(**PAIR, mid=(3, 2, 1, 1)), r"expected up \[O, r\], mid"),
    "rank 0": (at_place(down=(0, 24), up=(16, 0)), r"is empty, \[.*a rank of at least 1"),
    "no such module": ({"lora_unet_nothing.lora_down.weight": [[1.0]]}, "fit nothing"),
    "half a pair": ({f"unet.{UNET}.lora.down.weight": np.ones((2, 24))}, "not a whole set"),
    "another width": (
        {
            f"unet.{UNET}.lora.down.weight": np.ones((2, 768)),
            f"unet.{UNET}.lora.up.weight": np.ones((16, 2)),
        },
        r"768.*made for Stable Diffusion 1.x",
    ),
    "not finite": (
        {
            f"unet.{UNET}.lora.down.weight": np.full((2, 24), np.nan),
            f"unet.{UNET}.lora.up.weight": np.ones((16, 2)),
        },
        "lora.down.weight holds NaN or infinity",
    ),
    "beyond all use": (
        {
            f"unet.{UNET}.lora.down.weight": np.full((2, 24), 1e30),
            f"unet.{UNET}.lora.up.weight": np.ones((16, 2)),
        },
        r"are not finite, or beyond 1e\+10; fetch the file again",
    ),
    "twice": (
        {
            f"unet.{UNET}.lora.down.weight": np.ones((2, 24)),
            f"{KOHYA['unet', UNET]}.lora_down.weight": np.ones((2, 24)),
        },
        "two tensors",
    ),
    "OFT": ({f"{KOHYA['unet', UNET]}.oft_blocks": np.ones((2, 2, 2))}, "OFT"),
    "no bias": ({f"{KOHYA['unet', UNET]}.diff_b": np.ones(16)}, "bias"),
    "a checkpoint": ({"model.diffusion_model.out.2.weight": np.ones(3)}, "whole checkpoint"),
    "nothing": ({}, "no tensors"),
}


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_, np.complex64])
@pytest.mark.parametrize("shapes", [PAIR, {"diff": (16, 24)}, {"alpha": (), **PAIR}], ids=list)
def test_numbers_of_another_kind_are_no_factors(pipe, shapes, dtype, tmp_path):
    file = write(tmp_path / "a.safetensors", at_place(**shapes), dtype=dtype)
    with pytest.raises(ValueError, match=r"has the type .*; expected floating point.*float16"):
        pipe.set_adapters([file])


def test_what_belongs_to_no_kind_alone_may_stand_beside_any(pipe, tmp_path):
    for i, extra in enumerate(
        ({"diff": (16, 16, 3, 3)}, {}, {"down": (2, 16, 3, 3), "up": (16, 2)})
    ):
        values = at_place(**extra, alpha=(), diff_b=(16,))
        own = {name.replace(PLACE, NORM): value for name, value in values.items()}
        before = weight(pipe, "unet", RESNET, "bias")
        pipe.set_adapters([write(tmp_path / f"{i}.safetensors", own)])
        np.testing.assert_allclose(weight(pipe, "unet", RESNET, "bias"), before + 1, atol=1e-6)
        pipe.set_adapters([])


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(pipe, name, tmp_path):
    values, message = REFUSED[name]
    good, bad = simple(pipe, tmp_path / "good.safetensors"), tmp_path / "bad.safetensors"
    pipe.set_adapters([good])
    before = pipe.params
    write(bad, values)
    with pytest.raises(ValueError, match=message) as refusal:
        pipe.set_adapters([good, bad])
    assert "bad.safetensors" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert pipe.params is before


def test_a_strength_of_an_encoder_that_the_model_lacks_is_refused(pipe, tmp_path):
    file = simple(pipe, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match="text_encoder_2, which this model does not have; use text"
    ):
        pipe.set_adapters([(file, 1.0, {"text_encoder_2": 0})])


@pytest.mark.parametrize(
    ("adapters_given", "message"),
    [
        ("a.safetensors", "give a list"),
        ([("a.safetensors", float("nan"))], "finite"),
        ([("a.safetensors", "1")], "finite"),
        ([("a.safetensors", True)], "finite"),
        ([("a.safetensors", 1.0, {"vae": 1.0})], "text_encoder_2"),
        ([("a.safetensors", 1.0, {}, 1)], "give a path"),
        ([3], "give a path"),
        (["missing.safetensors"], "no such file or folder.*Expected a LoRA"),
        (["old.pt"], "pickle"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(pipe, adapters_given, message):
    with pytest.raises(ValueError, match=message):
        pipe.set_adapters(adapters_given)


def test_a_made_for_another_model_says_which(pipe, tmp_path):
    values = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": np.ones((2, 24))}
    file = write(tmp_path / "a.safetensors", values, {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(ValueError, match="made for sdxl_base_v1-0"):
        pipe.set_adapters([file])


# The networks of the published models; kohya's scripts print these counts when they train.
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


@pytest.mark.parametrize(("config", "count"), [(SD15, 192), (SDXL, 722)], ids=["sd15", "xl"])
def test_the_published_unets_have_as_many_targets_as_kohya_counts(config, count):
    config = {"_class_name": "UNet2DConditionModel", **config}
    component = diffusers.Component("UNet2DConditionModel", config, {})
    flat, _ = jax.tree_util.tree_flatten_with_path(checkpoints.shapes(component))
    paths = [tuple(str(key.key) for key in keys) for keys, _ in flat]
    names = dict.fromkeys(layout.tensor_name(path).rpartition(".")[0] for path in paths)
    table = spellings.stems({"unet": names})
    kernels = {
        layout.tensor_name(path).rpartition(".")[0] for path in paths if path[-1] == "kernel"
    }
    targets = [name for name in names if ".attentions." in name and name in kernels]
    assert len(targets) == count
    ldm = ldm_stems.of_unet(names)
    for name in targets:
        for stem in (name, ldm[name]):
            assert table["lora_unet_" + stem.replace(".", "_")].name == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("a:-1e-1", ("a", -0.1)),
        ("c:/a.safetensors", ("c:/a.safetensors", 1.0)),
        ("a:b:2", ("a:b", 2.0)),
    ],
)
def test_a_command_line_gives_file_and_strength(text, expected):
    assert spec.from_text(text) == expected
