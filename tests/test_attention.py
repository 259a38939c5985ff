# SPDX-License-Identifier: MIT
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from support.networks import relative_error

from jaxgen.nn import tpu_attention
from jaxgen.nn.attention import (
    attention,
    choose_implementation,
    chunked_attention,
    for_inference,
    score_block_bytes,
    whole_attention,
)

BF16, F16, F32 = jnp.dtype("bfloat16"), jnp.dtype("float16"), jnp.dtype("float32")
GIB = 2**30


def qkv(t=12, s=7, heads=2, d=4, scale=1.0):
    rng = np.random.default_rng(0)
    shapes = ((3, t, heads, d), (3, s, heads, d), (3, s, heads, d))
    return tuple(jnp.asarray(scale * rng.standard_normal(n), jnp.float32) for n in shapes)


def by_hand(q, k, v, causal=False):
    """The definition in float64, one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        end = i + 1 if causal else k.shape[1]
        scores = k[b, :end, h] @ q[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ v[b, :end, h] / weights.sum()
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_its_definition(causal):
    q, k, v = qkv(t=7)
    out = attention(q, k, v, causal=causal, implementation="xla")
    assert relative_error(out, by_hand(q, k, v, causal)) < 1e-6


@pytest.mark.parametrize("t", [12, 13])  # 13 does not divide into equal chunks
@pytest.mark.parametrize("num_chunks", [1, 4])
def test_chunked_attention_equals_unchunked(t, num_chunks):
    q, k, v = qkv(t=t)
    score_bytes = 4 * q.shape[0] * t * k.shape[1]  # of one head
    chunked = chunked_attention(q, k, v, -(-score_bytes // num_chunks))
    np.testing.assert_allclose(chunked, whole_attention(q, k, v), rtol=1e-6, atol=1e-6)


def test_large_attention_is_chunked_and_never_holds_all_scores():
    t = 4096
    q = jax.ShapeDtypeStruct((1, t, 2, 8), F32)
    text = jax.jit(attention).lower(q, q, q).as_text()
    largest = score_block_bytes("cpu") // (4 * t)
    assert f"{t}x{t}" not in text
    assert f"x{largest}x{t}xf32" in text


def test_half_precision_attention_keeps_a_float32_softmax():
    q, k, v = (x.astype(BF16) for x in qkv(t=40, s=300, scale=3.0))
    out = attention(q, k, v)
    assert out.dtype == BF16
    assert relative_error(out, by_hand(q, k, v)) < 5e-3  # bf16 has 8 bits


def test_large_scores_do_not_overflow():
    q, k, v = qkv(scale=100.0)
    assert relative_error(attention(q, k, v), by_hand(q, k, v)) < 1e-5


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "head_dim", "score_bytes", "causal", "expected"),
    [
        ("cpu", (0, 0), F32, 64, 0, False, "xla"),
        ("cpu", (0, 0), BF16, 64, 0, False, "xla"),
        ("cpu", (0, 0), F32, 64, GIB, False, "chunked"),
        ("tpu", (0, 0), BF16, 64, 0, False, "xla"),
        ("gpu", (0, 0), BF16, 64, 0, False, "xla"),  # not an NVIDIA GPU
        ("gpu", (7, 5), F16, 64, 0, False, "xla"),
        ("gpu", (8, 0), F32, 64, 0, False, "xla"),
        ("gpu", (8, 0), F16, 64, GIB, False, "cudnn"),
        ("gpu", (8, 0), BF16, 40, GIB, False, "cudnn"),  # SD 1.5, highest level
        ("gpu", (8, 0), BF16, 44, 0, False, "xla"),
        ("gpu", (8, 0), BF16, 160, 0, False, "xla"),  # SD 1.5, lowest level
        ("gpu", (8, 9), BF16, 160, GIB, False, "chunked"),
        ("gpu", (9, 0), BF16, 160, GIB, False, "cudnn"),
        ("gpu", (10, 0), BF16, 256, GIB, False, "cudnn"),
        ("gpu", (9, 0), BF16, 512, 0, False, "xla"),  # the autoencoder's one head
        ("gpu", (9, 0), BF16, 512, GIB, False, "chunked"),
        ("gpu", (9, 0), BF16, 64, 0, True, "cudnn"),  # the text encoders
        ("cpu", (0, 0), F32, 64, GIB, True, "xla"),
    ],
)
def test_implementation_follows_from_device_type_and_shape(
    backend, capability, dtype, head_dim, score_bytes, causal, expected
):
    chosen = choose_implementation(backend, capability, dtype, head_dim, score_bytes, causal)
    assert chosen == expected


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "keys", "causal", "expected"),
    [
        ("tpu", BF16, 40, 4096, False, "pallas"),  # SD 1.5, highest level
        ("tpu", BF16, 512, 4096, False, "pallas"),  # the autoencoder's one head
        ("tpu", BF16, 160, 1024, False, "chunked"),  # not whole lanes of 128
        ("tpu", BF16, 64, 0, False, "chunked"),  # may be differentiated
        ("tpu", BF16, 64, 77, False, "chunked"),  # of text: the kernel would move more
        ("tpu", F32, 64, 4096, False, "chunked"),
        ("tpu", BF16, 64, 4096, True, "xla"),
        ("gpu", BF16, 64, 4096, False, "chunked"),
        ("cpu", BF16, 64, 4096, False, "chunked"),
    ],
)
def test_kernel_of_a_tpu_is_for_inference_with_many_keys(
    backend, dtype, head_dim, keys, causal, expected
):
    assert choose_implementation(backend, (0, 0), dtype, head_dim, GIB, causal, keys) == expected


def test_kernel_of_a_tpu_equals_the_definition():
    rng = np.random.default_rng(0)  # neither number of tokens is whole blocks
    q, k, v = (jnp.asarray(rng.standard_normal((1, n, 2, 40)), BF16) for n in (140, 520, 520))
    with pltpu.force_tpu_interpret_mode():
        out = attention(q, k, v, implementation="pallas")
    assert out.dtype == BF16
    assert relative_error(out, by_hand(q, k, v)) < 5e-3  # bf16 has 8 bits


@pytest.mark.parametrize(
    ("tokens", "block"),
    [(77, 128), (576, 128), (640, 128), (1008, 512), (2304, 384), (3952, 512), (4096, 512)],
)
def test_blocks_are_large_and_leave_little_padding(tokens, block):
    assert tpu_attention.block_of(tokens) == block


@pytest.mark.parametrize("heads", [4, 3])  # 3: queries are divided over "model" instead
@pytest.mark.parametrize(("names", "sizes"), [(("data", "model"), (2, 4)), (("model",), (2,))])
@pytest.mark.parametrize(("images", "t"), [(2, 12), (1, 7)])  # 1, 7: nothing can be divided
def test_kernel_is_divided_over_a_mesh(monkeypatch, images, t, heads, names, sizes):
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    shapes = []

    def kernel(q, k, v):
        shapes.append((q.shape[:3], k.shape[:3]))
        return whole_attention(q, k, v)

    monkeypatch.setattr(tpu_attention, "on_one_device", kernel)
    q, k, v = (x[:images] for x in qkv(t=t, heads=heads))
    out = tpu_attention.flash_attention(q, k, v, jax.sharding.Mesh(devices, names))
    np.testing.assert_allclose(out, whole_attention(q, k, v), rtol=1e-6, atol=1e-6)

    data, model = (dict(zip(names, sizes, strict=True)).get(axis, 1) for axis in ("data", "model"))
    b, h = (n // parts if n % parts == 0 else n for n, parts in ((images, data), (heads, model)))
    rows = t // model if h == heads and t % model == 0 else t
    assert set(shapes) == {((b, rows, h), (b, 7, h))}


def test_only_programs_for_inference_use_the_kernel(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    x = jax.ShapeDtypeStruct((1, 512, 2, 64), BF16)
    assert "pallas_call" not in str(jax.make_jaxpr(attention)(x, x, x))
    assert "pallas_call" in str(jax.make_jaxpr(for_inference(attention, None))(x, x, x))
    again = jax.make_jaxpr(lambda *arrays: attention(*arrays))  # not the trace of before
    assert "pallas_call" not in str(again(x, x, x))


def test_unknown_implementation_is_an_error():
    with pytest.raises(ValueError, match="use one of cudnn, pallas, xla, chunked"):
        attention(*qkv(), implementation="flash")


@pytest.mark.parametrize("implementation", ["chunked", "pallas"])
def test_causal_attention_in_blocks_is_an_error(implementation):
    with pytest.raises(ValueError, match="'chunked' and 'pallas' are not causal"):
        attention(*qkv(), causal=True, implementation=implementation)
