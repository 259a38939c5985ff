# SPDX-License-Identifier: MIT
"""safetensors <-> parameter trees: layouts, the checked bijection, casts, placement, memory."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen.nn.stable_diffusion import autoencoder_kl, clip, unet
from jaxgen.weights import configs, diffusers, layout, tensors

SHAPES = json.loads(
    gzip.decompress((Path(__file__).parent / "data" / "state_shapes.json.gz").read_bytes())
)["models"]


class Net(nn.Module):
    """One of each kind of layer, with names as the ported networks have them."""

    @nn.compact
    def __call__(self, x, ids):
        x = nn.Conv(6, (3, 2), name="conv_in")(x)
        x = nn.GroupNorm(2, name="norm")(x)
        x = nn.Dense(5, name="linear_1")(x)
        x = nn.Dense(4, use_bias=False, name="attentions_0")(x)
        x = nn.Dense(4, name="conv_shortcut")(x)
        return x, nn.Embed(7, 3, name="token_embedding")(ids)


def _abstract(module=None, *inputs):
    inputs = inputs or (jnp.zeros((1, 4, 4, 2)), jnp.zeros(1, jnp.int32))
    return jax.eval_shape((module or Net()).init, jax.random.key(0), *inputs)["params"]


def _stored(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "conv_in.weight": (6, 2, 3, 2),
        "conv_in.bias": (6,),
        "norm.weight": (6,),
        "norm.bias": (6,),
        "linear_1.weight": (5, 6),
        "linear_1.bias": (5,),
        "attentions.0.weight": (4, 5),
        "conv_shortcut.weight": (4, 4, 1, 1),
        "conv_shortcut.bias": (4,),
        "token_embedding.weight": (7, 3),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _lazy(arrays):
    return {name: tensors.from_array(array) for name, array in arrays.items()}


def _assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_layers_compute_what_their_torch_tensors_say():
    stored = _stored()
    params = layout.load(_lazy(stored), _abstract())
    x = np.random.default_rng(1).normal(size=(1, 4, 4, 2)).astype(np.float32)
    w, b = stored["conv_in.weight"], stored["conv_in.bias"]

    conv = nn.Conv(6, (3, 2), padding="VALID").apply({"params": params["conv_in"]}, x)
    # torch's definition: out[o, y, x] = b[o] + sum_{i,h,w} in[i, y+h, x+w] w[o, i, h, w]
    windows = np.lib.stride_tricks.sliding_window_view(x[0], (3, 2), axis=(0, 1))  # [Y, X, I, H, W]
    np.testing.assert_allclose(conv[0], np.einsum("yxihw,oihw->yxo", windows, w) + b, atol=1e-5)

    h = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)
    dense = nn.Dense(5).apply({"params": params["linear_1"]}, h)
    linear = h @ stored["linear_1.weight"].T + stored["linear_1.bias"]
    np.testing.assert_allclose(dense, linear, atol=1e-5)
    np.testing.assert_array_equal(params["norm"]["scale"], stored["norm.weight"])
    embedded = params["token_embedding"]["embedding"]
    np.testing.assert_array_equal(embedded, stored["token_embedding.weight"])


def test_saved_tree_is_the_loaded_tensors(tmp_path):
    stored = _stored()
    params = layout.load(_lazy(stored), _abstract())
    tensors.write_file(tmp_path / "w.safetensors", layout.to_tensors(params))
    again = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    assert again.keys() == stored.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    loaded = layout.load(tensors.open_file(tmp_path / "w.safetensors"), _abstract())
    _assert_trees_equal(loaded, params)


def test_one_by_one_convolutions_and_linear_layers_fill_each_other():
    stored = _stored()
    swapped = dict(stored)
    swapped["conv_shortcut.weight"] = stored["conv_shortcut.weight"][:, :, 0, 0]
    swapped["linear_1.weight"] = stored["linear_1.weight"][:, :, None, None]
    abstract = _abstract()
    _assert_trees_equal(layout.load(_lazy(swapped), abstract), layout.load(_lazy(stored), abstract))

    conv = jax.eval_shape(nn.Conv(5, (1, 1)).init, jax.random.key(0), jnp.zeros((1, 1, 1, 6)))
    linear = {n: stored[f"linear_1.{n}"] for n in ("weight", "bias")}
    params = layout.load(_lazy({f"c.{n}": a for n, a in linear.items()}), {"c": conv["params"]})
    np.testing.assert_array_equal(params["c"]["kernel"][0, 0], stored["linear_1.weight"].T)


def test_all_faults_are_one_error():
    stored = _stored()
    stored["extra.weight"] = np.zeros((2, 3), np.float32)
    stored["norm.running_mean"] = np.zeros(6, np.float32)
    stored["linear_1.weight"] = np.zeros((5, 7), np.float32)
    del stored["norm.bias"], stored["conv_in.weight"]
    with pytest.raises(ValueError, match="does not fit") as caught:
        layout.load(_lazy(stored), _abstract())
    message = str(caught.value)
    assert "2 unknown tensors (in the file, not in the model): extra.weight [2, 3]" in message
    assert "norm.running_mean [6]" in message
    assert "2 missing tensors" in message
    assert "norm/bias [6]" in message
    assert "conv_in/kernel [3, 2, 2, 6]" in message
    assert "linear_1.weight: [5, 7] in the file, but linear_1/kernel is [6, 5]" in message


def test_long_lists_of_faults_are_counted():
    stored = {f"blocks.{i}.weight": np.zeros(1, np.float32) for i in range(1000)}
    with pytest.raises(ValueError, match=r"1000 unknown .* and 988 more") as caught:
        layout.load(_lazy(stored), _abstract())
    assert len(str(caught.value)) < 2000


def test_nothing_is_read_before_all_names_and_shapes_are_right():
    def explode():
        raise AssertionError("read")

    stored = {n: tensors.Tensor(a.shape, a.dtype, explode) for n, a in _stored().items()}
    stored["surplus.weight"] = tensors.Tensor((1,), np.dtype(np.float32), explode)
    with pytest.raises(ValueError, match="surplus"):
        layout.load(stored, _abstract())


def test_square_kernels_are_transposed_too():
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    abstract = {"to_q": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    params = layout.load(_lazy({"to_q.weight": square}), abstract)
    np.testing.assert_array_equal(params["to_q"]["kernel"], square.T)


def test_two_tensors_for_one_leaf_are_an_error():
    leaf = {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
    abstract = {"encoder": {"mid_block": {"attentions_0": {"to_q": leaf}}}}
    name, square = "encoder.mid_block.attentions.0.", np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match="1 tensors for the same place"):
        layout.load(_lazy({name + "to_q.weight": square, name + "query.weight": square}), abstract)


def test_old_attention_names_and_position_ids_are_understood():
    leaf = {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
    inner = dict.fromkeys(("to_q", "to_k", "to_v", "to_out_0"), leaf)
    abstract = {"decoder": {"mid_block": {"attentions_0": inner}}}
    stored = {
        f"decoder.mid_block.attentions.0.{name}.weight": np.full((4, 4), i, np.float32)
        for i, name in enumerate(("query", "key", "value", "proj_attn"))
    }
    stored["text_model.embeddings.position_ids"] = np.arange(77)[None]
    params = layout.load(_lazy(stored), abstract)["decoder"]["mid_block"]["attentions_0"]
    assert {n: float(leaf["kernel"][0, 0]) for n, leaf in params.items()} == {
        "to_q": 0, "to_k": 1, "to_v": 2, "to_out_0": 3,
    }  # fmt: skip


def test_old_names_mean_nothing_outside_attention():
    abstract = {"query": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
    params = layout.load(_lazy({"query.weight": np.ones((4, 4), np.float32)}), abstract)
    assert params["query"]["kernel"].shape == (4, 4)


@pytest.mark.parametrize("source", [np.float16, np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("target", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_weights_are_cast_as_numpy_casts_them(tmp_path, source, target):
    stored = {name: array.astype(source) for name, array in _stored().items()}
    safetensors.numpy.save_file(stored, tmp_path / "w.safetensors")
    params = layout.load(tensors.open_file(tmp_path / "w.safetensors"), _abstract(), target)
    kernel = params["linear_1"]["kernel"]
    assert kernel.dtype == target
    np.testing.assert_array_equal(kernel, stored["linear_1.weight"].astype(target).T)


def test_integers_are_not_weights():
    stored = _stored()
    stored["norm.bias"] = np.zeros(6, np.int32)
    with pytest.raises(ValueError, match=r"floating point.*norm\.bias \(int32\)"):
        layout.load(_lazy(stored), _abstract())


def test_every_leaf_goes_where_its_sharding_says():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("model"))

    def by_path(path, shape):
        return split if path[-1] == "kernel" and shape[0] % 2 == 0 else everywhere

    plain = layout.load(_lazy(_stored()), _abstract())
    sharded = layout.load(_lazy(_stored()), _abstract(), sharding=by_path)
    _assert_trees_equal(sharded, plain)
    assert sharded["linear_1"]["kernel"].sharding == split
    assert sharded["linear_1"]["bias"].sharding == everywhere


def _networks():
    return [(kind, name) for kind, parts in SHAPES.items() for name in parts]


@pytest.mark.parametrize(("kind", "name"), _networks())
@pytest.mark.slow
def test_full_size_networks_are_matched_leaf_for_leaf(kind, name):
    """Names and shapes of PyTorch's networks, stored, against jaxgen's: a bijection, both ways."""
    part = SHAPES[kind][name]
    stored = {n: tuple(shape) for n, shape in part["shapes"].items()}
    key_counts = {"vae": 248, "v1unet": 686, "v2unet": 686, "xlunet": 1680}
    assert len(stored) == key_counts.get(name, key_counts.get(kind + name, len(stored)))
    class_name = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}.get(
        name, "CLIPTextModelWithProjection" if name == "text_encoder_2" else "CLIPTextModel"
    )
    config = {"_class_name": class_name, **part["config"]}
    fields = diffusers.fields(diffusers.Component(class_name, config, {}))
    if name == "unet":
        module = unet.UNet2DConditionModel(**fields)
        inputs = [(1, 8, 8, 4), (1,), (1, 1, fields["cross_attention_dim"])]
        inputs += [(1, 1280), (1, 6)] if fields["addition_embed_type"] else []
    elif name == "vae":
        module, inputs = autoencoder_kl.AutoencoderKL(**fields), [(1, 8, 8, 3)]
    else:
        module, inputs = clip.CLIPTextModel(**fields), [(1, 1)]
    dtype = jnp.int32 if name.startswith("text") else jnp.float32
    abstract = _abstract(module, *(jax.ShapeDtypeStruct(shape, dtype) for shape in inputs))

    leaves, _ = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {tuple(k.key for k in keys): leaf.shape for keys, leaf in leaves}
    plan = layout.match(stored, wanted)
    assert sorted(plan.values()) == sorted(stored)
    back = layout.to_tensors(abstract, configs.conv_1x1(config))
    assert {n: tensor.shape for n, tensor in back.items()} == stored


def test_leaf_without_a_place_in_diffusers_cannot_be_saved():
    with pytest.raises(ValueError, match="no place in a diffusers checkpoint"):
        layout.to_tensors({"dense": {"gamma": jnp.zeros(3)}})


def test_interrupted_writing_leaves_no_file(tmp_path):
    def explode():
        raise RuntimeError("the device is gone")

    broken = {"a": tensors.Tensor((3,), np.dtype(np.float32), explode)}
    with pytest.raises(RuntimeError, match="gone"):
        tensors.write_file(tmp_path / "w.safetensors", broken)
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize("code", [code for code in tensors.DTYPES if "F" in code])
def test_what_is_not_finite_is_told_from_bits(code):
    """Of types of 8 and 16 bits every pattern, of the others random ones; NumPy is the judge."""
    dtype = tensors.DTYPES[code]
    bits = np.random.default_rng(0).integers(0, 256, 2**17, np.uint8).view(f"u{dtype.itemsize}")
    if dtype.itemsize <= 2:
        bits = np.arange(2 ** (8 * dtype.itemsize), dtype=bits.dtype)
    values = bits.view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(values.astype(np.float64))
    assert 0 < finite.mean() < 1
    assert tensors.all_finite(values[finite])
    for one in np.flatnonzero(~finite)[:: max(1, (~finite).sum() // 200)]:
        assert not tensors.all_finite(values[one : one + 1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named_with_its_file(value, tmp_path):
    stored = _stored()
    stored["norm.bias"][3] = value
    tensors.write_file(tmp_path / "w.safetensors", _lazy(stored))
    lazy = tensors.open_file(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: the tensor norm\.bias holds NaN or inf"):
        layout.load(lazy, _abstract())


def test_a_value_beyond_the_type_asked_for_is_named():
    stored = _stored()
    stored["linear_1.weight"][1, 2] = 1e5
    with pytest.raises(ValueError, match="linear_1.weight holds values that float16 cannot"):
        layout.load(_lazy(stored), _abstract(), jnp.float16)
    layout.load(_lazy(stored), _abstract(), jnp.bfloat16)


MEASURE = """
import sys, threading, time
import jax, jax.numpy as jnp
from jaxgen.weights import layout, tensors
jax.block_until_ready(jnp.ones(8) + 1)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

tensors_ = tensors.open_file(__import__("pathlib").Path(sys.argv[1]))
abstract = {n.split(".")[0]: {"kernel": jax.ShapeDtypeStruct(t.shape[::-1], jnp.float32)}
            for n, t in tensors_.items()}
before, peak, done = resident(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
params = layout.load(tensors_, abstract)
done.set(); thread.join()
print(max(peak[0], resident()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory in /proc")
def test_loading_takes_at_most_a_fifth_more_memory_than_the_file(tmp_path):
    """On a host that is its own device, so the parameters themselves are 1.0 of it."""
    rng = np.random.default_rng(0)
    arrays = {f"layer{i}.weight": rng.random((512, 1024), np.float32) for i in range(100)}
    path = tmp_path / "w.safetensors"
    tensors.write_file(path, _lazy(arrays))
    size = path.stat().st_size
    del arrays
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).resolve().parents[1]
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True, text=True, check=True, cwd=root, env=environment,
    )  # fmt: skip
    assert int(out.stdout) <= 1.2 * size
