# SPDX-License-Identifier: MIT
"""LoRA training: the added path, the loss, the three parallel modes, the script, its files."""

import functools
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.sharding import PartitionSpec as P
from PIL import Image
from support import checkpoints, scripts, systems

from jaxgen.adapters import adapter_file, lora_file, low_rank, merge
from jaxgen.miniature import tuning
from jaxgen.nn import linear
from jaxgen.nn.stable_diffusion import resnet
from jaxgen.runs import checkpoint
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.train import parallel, step
from jaxgen.weights import diffusers, layout

EVERY_KIND = (
    "to_q", "to_out.0", "net.0.proj", "proj_in", "conv1", "conv_shortcut", "downsamplers.0.conv",
    "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
TINY = ("--num-devices", "1", "--batch-size", "2", "--draw-every", "0", "--log-every", "1")


def model(checkpoint):
    nets = loading.networks(checkpoint)
    return checkpoint, nets, loading.load(checkpoint, nets)


def random_factors(params, targets, rank=2, seed=0):
    """Factors of these layers whose change is not 0."""
    tree = low_rank.init(jax.random.key(seed), low_rank.layers(params, targets, "it"), rank)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), tree)


class Layers(nn.Module):
    """One layer of each kind that takes a path."""

    @nn.compact
    def __call__(self, x):
        x = linear.Conv3x3(6, name="conv1")(x)
        x = resnet.Downsample2D(linear.SAME, name="down")(nn.silu(x))
        return linear.Dense(5, name="proj")(x.reshape(x.shape[0], -1, x.shape[-1]))


def test_a_path_and_its_gradient_equal_those_of_merged_weights():
    x = jnp.float32(np.random.default_rng(1).normal(size=(2, 7, 7, 3)))
    params = jax.jit(Layers().init)(jax.random.key(0), x)["params"]
    factors = random_factors(params, ["conv1", "conv", "proj"])

    @jax.jit
    def added(factors):
        with low_rank.added(0.7):
            return jnp.sum(Layers().apply({"params": params, "low_rank": factors}, x) ** 2)

    def merged(factors):
        whole = low_rank.merged(params, factors, 0.7)
        return jnp.sum(Layers().apply({"params": whole}, x) ** 2)

    value, grads = jax.jit(jax.value_and_grad(added))(factors)
    expected, expected_grads = jax.jit(jax.value_and_grad(merged))(factors)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), grads, expected_grads)
    assert abs(value - added(jax.tree.map(jnp.zeros_like, factors))) > 1  # it does change


@pytest.mark.slow
def test_paths_of_a_whole_unet_equal_merged_weights():
    _, nets, base = model(checkpoints.checkpoint())
    unet, params = nets.unet, base["unet"]
    rng = np.random.default_rng(1)
    x, text = rng.normal(size=(2, 8, 8, 4)), rng.normal(size=(2, 5, unet.cross_attention_dim))
    inputs = jnp.float32(x), jnp.asarray([3.0, 700.0]), jnp.float32(text)
    factors = random_factors(params, EVERY_KIND)

    @jax.jit
    def added(params, factors):
        with low_rank.added(0.7):
            return unet.apply({"params": params, "low_rank": factors}, *inputs)

    nothing = jax.tree.map(jnp.zeros_like, factors)
    found, plain = added(params, factors), added(params, nothing)
    expected = added(low_rank.merged(params, factors, 0.7), nothing)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    assert np.abs(plain - expected).max() > 0.1


def test_gradient_checkpointing_gives_the_same_gradient():
    _, nets, base = model(checkpoints.small())
    unet, params = nets.unet, base["unet"]
    factors = random_factors(params, ["to_q", "conv2"])

    def loss(factors, unet):
        variables = {"params": params, "low_rank": factors}
        with low_rank.added(0.7):
            out = unet.apply(variables, jnp.ones((1, 4, 4, 4)), jnp.ones(1), jnp.ones((1, 3, 24)))
        return jnp.sum(out**2)

    plain, again = (jax.grad(partial(loss, unet=unet.clone(remat=on))) for on in (False, True))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        jax.jit(plain)(factors),
        jax.jit(again)(factors),
    )
    assert "remat" in str(jax.make_jaxpr(again)(factors))


def example_of(base, ids):
    latent = jnp.float32(np.random.default_rng(2).normal(size=(4, 8, 8, 8)))
    frozen = {name: own for name, own in base.items() if name != "vae"}
    return {"posterior": latent, "ids": jnp.asarray(ids), tuning.BASE: frozen}


@functools.cache
def trained(how, devices):
    """Factors before and after a step of SGD, and its loss."""
    checkpoint, nets, base = model(checkpoints.small())
    captions = ["a photo", "an astronaut", "", "a cat"]
    batch = example_of(base, tuning.token_ids(checkpoint, nets, captions))
    loss = tuning.low_rank_loss(
        nets, tuning.training_schedule(checkpoint),
        tuning.token_ids(checkpoint, nets, [""])[0], 16, 1.0, 0.5,
    )  # fmt: skip
    factors = jax.device_get({"unet": random_factors(base["unet"], ["to_q"])})
    one = step.gradient_step(loss, optax.sgd(0.1), shared=(tuning.BASE,))
    mesh = parallel.data_mesh(devices)
    spec = {"posterior": parallel.EXAMPLES, "ids": parallel.EXAMPLES, tuning.BASE: P()}
    state = parallel.put(step.init_state(factors, optax.sgd(0.1)), mesh)
    state, metrics = parallel.parallelize(one, mesh, how, spec)(
        state, parallel.put(batch, mesh, spec), parallel.put(jax.random.key(0), mesh)
    )
    return factors, *jax.device_get((state.params, metrics["loss"]))


FAULT_OF_ERFC = pytest.mark.xfail(
    jax.__version_info__ >= (0, 12),
    raises=ValueError,
    reason="lax.erfc of jax 0.12.0 refuses values that vary over a mesh (docs/run_on.md)",
)


@pytest.mark.parametrize("how", ["jit", "pmap", pytest.param("shard_map", marks=FAULT_OF_ERFC)])
@pytest.mark.slow
def test_all_parallel_modes_train_the_same_factors(how):
    start, *expected = trained("jit", 1)
    _, *found = trained(how, 2)
    assert systems.largest_difference(found, expected) < 1e-6
    assert systems.largest_difference(expected[0], start) > 1e-4


@pytest.mark.slow
def test_xl_trains_both_text_encoders_beside_the_unet():
    checkpoint, nets, base = model(checkpoints.small("xl"))
    ids = tuning.token_ids(checkpoint, nets, ["a photo"])
    example = {k: v[0] for k, v in example_of(base, ids).items() if k != tuning.BASE}
    example[tuning.BASE] = base
    factors = {"unet": random_factors(base["unet"], ["attn2.to_k"])}
    factors["text_encoder"] = random_factors(base["text_encoder"], ["q_proj"])
    factors["text_encoder_2"] = random_factors(base["text_encoder_2"], ["fc1", "text_projection"])
    loss = tuning.low_rank_loss(nets, tuning.training_schedule(checkpoint), ids[0], 16, 1.0, 0.0)
    grads = jax.jit(jax.grad(lambda f: loss(f, example, jax.random.key(0))[0]))(factors)
    assert grads.keys() == {"unet", "text_encoder", "text_encoder_2"}
    for name, tree in grads.items():  # of the first encoder not the last layer, which XL leaves out
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree)) > 0, name


def in_torchs_layout(factor):
    return factor.transpose(3, 2, 0, 1) if factor.ndim == 4 else factor.T


@pytest.mark.parametrize("write", [lora_file.write_peft, lora_file.write_kohya])
@pytest.mark.parametrize("kind", ["sd1", "xl", "refiner"])
def test_files_give_back_the_factors_bit_for_bit(write, kind, tmp_path):
    checkpoint, nets, base = model(checkpoints.small(kind))
    kinds = [kind for kind in EVERY_KIND if "samplers" not in kind]  # it has but one level
    factors = {"unet": random_factors(base["unet"], kinds)}
    factors |= {name: random_factors(base[name], ["q_proj"]) for name in nets.encoders}
    file = tmp_path / "lora.safetensors"
    write(file, checkpoint.components, factors, 3.0)

    tensors = {name: layout.to_tensors(base[name]) for name in factors}
    modules = {name: {n.rpartition(".")[0] for n in own} for name, own in tensors.items()}
    stored = adapter_file.read(file, modules).parts
    flat = traverse_util.flatten_dict(factors)
    assert 2 * len(stored) == len(flat)
    for (component, *path, part), factor in flat.items():
        name = layout.tensor_name((*path, "kernel")).removesuffix(".weight")
        values = stored[component, name][part].read()
        np.testing.assert_array_equal(
            values.squeeze(), in_torchs_layout(np.asarray(factor)).squeeze()
        )
        convolves = len(checkpoint.components[component].tensors[f"{name}.weight"].shape) == 4
        assert values.ndim == (4 if convolves else 2)  # as PyTorch's layer wants it

    merged = merge.merge(base, merge.open_all(base, [(file, 0.5)]))
    expected = tuning.with_factors(base, factors, 0.5 * 3.0 / 2)
    assert systems.largest_difference(merged, expected) < 1e-6


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a model and captioned pictures, and a finished run of four steps."""
    folder = tmp_path_factory.mktemp("lora")
    diffusers.write(folder / "model", checkpoints.small())
    pictures(folder / "pictures", 5)
    scripts.call(
        "lora", *TINY, "--model", folder / "model", "--data", folder / "pictures", "--steps", "4",
        "--rank", "2", "--targets", "attn2.to_k", "attn2.to_v", "--text-targets", "q_proj",
        "--checkpoint-every", "2", "--num-steps", "2", "--run-dir", folder / "run",
    )  # fmt: skip
    return folder


def pictures(folder, count, size=40):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{i}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"a photo {i}"}) for i in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_a_run_keeps_the_factors_alone(places):
    digests = scripts.newest_state(places / "run")
    for name in (checkpoint.ROWS, checkpoint.LAST_ROW):
        digests.pop(name)
    # step, and of each factor itself and Adam's two moments, and Adam's count and the schedule's
    count = 2 * sum(len(low_rank.layers(base, targets, "")) for base, targets in layers_of(places))
    assert len(digests) == 1 + 3 * count + 2, sorted(digests)[:5]
    assert [row["step"] for row in scripts.rows(places / "run")] == [1, 2, 3, 4]
    assert scripts.width_of(places / "run" / "samples.png") >= 32


def layers_of(places):
    nets = loading.networks(diffusers.read(places / "model"))
    yield loading.shapes(nets.unet), ["attn2.to_k", "attn2.to_v"]
    yield loading.shapes(nets.encoders["text_encoder"]), ["q_proj"]


def test_a_resumed_run_equals_a_straight_one_bit_for_bit(places, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(places / "run", folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    scripts.call("lora", "--run-dir", folder, "--resume", "--num-devices", "1")
    assert scripts.newest_state(folder) == scripts.newest_state(places / "run")
    rows = [path / "metrics.jsonl" for path in (folder, places / "run")]
    assert rows[0].read_bytes() == rows[1].read_bytes()


def test_the_export_draws_what_the_run_drew(places):
    flags = ("--action", "export", "--output", places / "out", "--no-half")
    said = scripts.call("lora", "--run-dir", places / "run", *flags)
    assert "pytorch_lora_weights.safetensors" in said
    again = scripts.refusal("lora", "--run-dir", places / "run", *flags)
    assert f"{places / 'out'} exists; choose a new folder" in again
    pipe = StableDiffusion.from_pretrained(places / "model")
    plain = pipe.params
    trees = []
    for path in (places / "out", places / "out" / "kohya.safetensors"):
        pipe.set_adapters([path])
        trees.append(jax.device_get(pipe.params))
        assert systems.largest_difference(pipe.params["unet"], plain["unet"]) > 1e-6
    assert systems.identical(*trees)
    pipe.set_adapters([places / "out"])
    drawn = pipe([f"a photo {i}" for i in range(4)], num_steps=2, guidance_scale=5.0)
    with Image.open(places / "run" / "samples.png") as grid:
        width = grid.width
        corner = np.asarray(grid.convert("RGB"))[: drawn.shape[1] + 4, :width]
    found = any(
        (corner[y : y + 32, x : x + 32] == drawn[0]).all() for y in range(4) for x in range(4)
    )
    assert found


BAD = {
    "rank 0": (["--rank", "0"], "--rank is 0; use 1 or more"),
    "an unknown layer": (["--targets", "to_x"], "no layer of unet is called 'to_x'; use ends"),
    "no layer": (["--targets", "--text-targets"], "nothing to train; give --targets"),
    "an alpha of 0": (["--alpha", "0"], "--alpha is 0"),
    "no pictures": (["--data", ""], "which pictures? Give --data a folder"),
    "no captions": (["--data", "MODEL"], "has no metadata.jsonl; expected"),
    "one picture": (["--data", "ONE"], "has one picture; a LoRA needs two or more"),
    "another size": (["--image-size", "31"], "--image-size is 31; use a multiple of 2"),
    "augmentation": (["--augment", "flip"], "--augment changes pictures that are encoded once"),
    "another model": (["--model", "INPAINT"], "the UNet takes 9 channels, as inpainting models do"),
    "no model": (["--model", "PICTURES"], "model_index.json"),
    "a tokenizer of its own": (["--tokenizer", "MODEL"], "tokenizer is for single files"),
    "dropout of 1": (["--caption-dropout", "1"], "--caption-dropout is 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, places, tmp_path):
    flags, message = BAD[name]
    paths = {"MODEL": places / "model", "PICTURES": places / "pictures", "ONE": tmp_path / "one"}
    if "ONE" in flags:
        pictures(paths["ONE"], 1)
    if "INPAINT" in flags:
        paths["INPAINT"] = tmp_path / "inpaint"
        diffusers.write(paths["INPAINT"], checkpoints.checkpoint("inpaint"))
    values = [paths.get(flag, flag) for flag in flags]
    base = ("--model", places / "model", "--data", places / "pictures")
    told = scripts.refusal("lora", *TINY, *base, "--run-dir", tmp_path / "run", *values)
    assert message in told
    assert not (tmp_path / "run").exists()
