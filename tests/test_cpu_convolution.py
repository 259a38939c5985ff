# SPDX-License-Identifier: MIT
"""Convolutions as XLA's CPU backend is given them: the same sums, in loops as outside of them."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support import compilations, systems

from jaxgen.cpu import convolution, winograd

OPTIMIZED = pytest.mark.optimized  # for what looks at compiled programs; sums need it not
CANONICAL = "b01f_01io->b01f"
NHWC = ("NHWC", "HWIO", "NHWC")


TUNED = """
import os, jax, jax.numpy as jnp
from jaxgen.cpu import tune
tune.tune_cpu()
convolved = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers={})
lowered = jax.jit(convolved).lower(jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32)))
asynchronous = jax.config.read("jax_cpu_enable_async_dispatch")
print("ynn" in lowered.compile().as_text(), asynchronous, os.environ["XLA_FLAGS"])
"""


@pytest.fixture(scope="module", autouse=True)
def registered():
    with compilations.lowered_by(convolution.register):
        yield


def by_definition(x, kernel, stride, padding, x_dilation, kernel_dilation, groups, batch_groups):
    """The sums of the definition, in float64: x [B, H, W, C], kernel [h, w, C / groups, F]."""
    x, kernel = _spread(x, x_dilation, (1, 2)), _spread(kernel, kernel_dilation, (0, 1))
    x = np.pad(x, ((0, 0), *np.maximum(padding, 0), (0, 0)))
    (top, bottom), (left, right) = -np.minimum(padding, 0)
    x = x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]
    b, c, features = x.shape[0] // batch_groups, x.shape[3] // groups, kernel.shape[3]
    sides = [(x.shape[i + 1] - kernel.shape[i]) // stride[i] + 1 for i in range(2)]
    out = np.zeros((b, *sides, features))
    for f, i, j in np.ndindex(features, *sides):
        group = f * groups // features
        first = (f * batch_groups // features) * b
        y0, x0 = i * stride[0], j * stride[1]
        patch = x[first : first + b, y0 : y0 + kernel.shape[0], x0 : x0 + kernel.shape[1]]
        patch = patch[..., group * c : (group + 1) * c]
        out[:, i, j, f] = np.sum(patch * kernel[..., f], axis=(1, 2, 3))
    return out


def _spread(x, dilation, axes):
    """x with zeros between its entries."""
    for axis, by in zip(axes, dilation, strict=True):
        shape = list(x.shape)
        shape[axis] = (shape[axis] - 1) * by + 1
        wide = np.zeros(shape)
        wide[(slice(None),) * axis + (slice(None, None, by),)] = x
        x = wide
    return x


LAYOUTS = [  # image, kernel, result: JAX's own, channels first, those of the two gradients, mixed
    ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "HWOI", "NHWC"),
    ("CHWN", "IHWO", "HWNC"), ("NCHW", "IHWO", "HWNC"), ("CHWN", "OIHW", "NHWC"),
]  # fmt: skip
CASES = {
    "plain": {},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": ((1, 2), (0, 3))},
    # not (-1, 1): jaxlib 0.10 and 0.11 read beyond the image there, in every layout and lowering
    "cropping": {"padding": ((-1, 0), (0, -1))},
    "input gradient of a stride": {"x_dilation": (2, 3), "padding": ((2, 1), (2, 2))},
    "input gradient of a stride, cropping": {"x_dilation": (2, 2), "padding": ((-1, 0), (3, -3))},
    "input gradient of a stride beyond the kernel": {
        "x_dilation": (2, 4), "padding": ((0, 1), (2, 3)), "sides": (1, 2),
    },
    "input gradient of a stride, as many taps in every phase": {
        "x_dilation": (2, 2), "padding": ((2, 3), (-1, 1)), "sides": (4, 2),
    },
    "input gradient of a stride, one tap": {
        "x_dilation": (2, 3), "padding": ((0, 1), (2, -1)), "sides": (1, 1),
    },
    "kernel gradient of a stride": {"kernel_dilation": (2, 1)},
    "groups": {"groups": 2, "channels": 4},
    "batch groups": {"batch_groups": 2},
    "few features": {"features": 2, "channels": 12, "padding": ((1, 2), (0, -1))},
    "kernel gradient": {"features": 1, "sides": (7, 6), "padding": ((2, 1), (0, 2))},
    "kernel larger than the image": {"sides": (8, 7), "padding": ((2, 1), (1, 2))},
    "one channel": {"channels": 1, "features": 6, "stride": (2, 1), "padding": ((1, 0), (0, -1))},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_layout_gives_the_sums_of_the_definition(name):
    case = {
        "stride": (1, 1), "padding": ((0, 0), (0, 0)), "x_dilation": (1, 1),
        "kernel_dilation": (1, 1), "groups": 1, "batch_groups": 1,
    } | CASES[name]  # fmt: skip
    channels, features = case.pop("channels", 3), case.pop("features", 4)
    sides = case.pop("sides", (3, 2))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 6, channels))
    kernel = rng.standard_normal((*sides, channels // case["groups"], features))
    expected = by_definition(x, kernel, **case)

    for spec in LAYOUTS:
        inputs = _arranged(x, "NHWC", spec[0]), _arranged(kernel, "HWIO", spec[1])
        out = jax.jit(_convolve, static_argnums=(2, 3))(*inputs, spec, tuple(case.values()))
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(_arranged(out, spec[2], "NHWC"), expected, rtol=1e-4, atol=1e-4)


def _convolve(x, kernel, spec, case):
    stride, padding, x_dilation, kernel_dilation, groups, batch_groups = case
    return lax.conv_general_dilated(
        x, kernel, stride, padding, x_dilation, kernel_dilation, dimension_numbers=spec,
        feature_group_count=groups, batch_group_count=batch_groups,
    )  # fmt: skip


def _arranged(x, axes, wanted):
    return np.asarray(x, np.float32).transpose([axes.index(name) for name in wanted])


@pytest.mark.parametrize(
    ("images", "loops"),
    [
        (3, 0),
        (2, 1),  # two and two: the last one has zeros beside its image
        (1, 1),
        (0.5, 2),  # and the rows of each in strips
    ],
)
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((2, 0), (1, 3)), ((-1, 0), (0, -1))])
def test_convolutions_by_tiles_give_the_sums_of_the_definition(padding, images, loops, monkeypatch):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((3, 9, 8, 5)), rng.standard_normal((3, 3, 5, 4))
    expected = by_definition(x, kernel, (1, 1), padding, (1, 1), (1, 1), 1, 1)
    tiles = np.prod([-(-size // 2) for size in expected.shape[1:3]])
    monkeypatch.setattr(winograd, "_PART_BYTES", int(images * tiles * 16 * 4 * 5))
    own = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    lowered = jax.jit(partial(winograd.by_tiles, padding)).lower(*own)
    assert lowered.as_text().count("stablehlo.while") == loops
    np.testing.assert_allclose(lowered.compile()(*own), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("taps", "stride", "shape", "features", "dtype", "tiled"),
    [
        (3, 1, (1, 16, 16, 128), 128, "float32", True),
        (3, 2, (1, 16, 16, 128), 128, "float32", False),
        (5, 1, (1, 16, 16, 128), 128, "float32", False),
        (3, 1, (1, 16, 16, 128), 128, "bfloat16", False),
        (3, 1, (1, 16, 16, 512), 128, "float32", False),  # few places
        (3, 1, (2, 16, 16, 512), 128, "float32", True),
        (3, 1, (4, 14, 14, 64), 64, "float32", True),
        (3, 1, (4, 14, 14, 64), 32, "float32", False),  # few features
        (3, 1, (4, 7, 7, 128), 256, "float32", True),
        (3, 1, (4, 7, 7, 64), 128, "float32", False),  # a quarter of its tiles' places is cut
    ],
)
def test_convolutions_are_computed_by_tiles_where_that_saves_more_than_sums_cost(
    taps, stride, shape, features, dtype, tiled
):
    x = jax.ShapeDtypeStruct(shape, dtype)
    kernel = jax.ShapeDtypeStruct((taps, taps, shape[-1], features), dtype)
    convolve = partial(
        lax.conv_general_dilated, window_strides=(stride, stride), padding="SAME",
        dimension_numbers=NHWC,
    )  # fmt: skip
    text = jax.jit(convolve).lower(x, kernel).as_text()
    assert ("stablehlo.convolution" in text) != tiled


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_numbers_of_dimensions(dimensions):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, *(5,) * dimensions)).astype(np.float32)  # channels first
    kernel = rng.standard_normal((4, 3, *(1,) * dimensions)).astype(np.float32)
    out = jax.jit(lambda x, kernel: lax.conv(x, kernel, (1,) * dimensions, "VALID"))(x, kernel)
    expected = np.einsum("bc...,fc->bf...", x, kernel.reshape(4, 3))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.complex64])
def test_results_keep_their_type(dtype):
    x = jnp.arange(2 * 5 * 5).reshape(1, 5, 5, 2).astype(dtype)
    kernel = jnp.ones((2, 2, 2, 1), dtype)
    out = jax.jit(
        lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=NHWC)
    )(x, kernel)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.arange(50).reshape(5, 5, 2), (2, 2), (0, 1)
    )
    assert out.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(out[0, ..., 0], np.complex64), windows.sum((2, 3, 4)), rtol=1e-2
    )


@OPTIMIZED
def test_gradients_inside_a_loop_are_convolutions_that_xla_runs_with_threads():
    def loss(kernel, x):
        return jnp.sum(
            lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=NHWC) ** 2
        )

    def step(carry, _):
        return jax.tree.map(
            lambda v, slope: v - 0.1 * slope, carry, jax.grad(loss, (0, 1))(*carry)
        ), None

    carry = jnp.ones((4, 4, 8, 16)), jnp.ones((4, 16, 16, 8))
    compiled = jax.jit(lambda carry: lax.scan(step, carry, length=3)[0]).lower(carry).compile()
    layouts = re.findall(r"convolution\([^\n]*dim_labels=([\w>-]+)", compiled.as_text())
    assert layouts == [CANONICAL] * 3


@OPTIMIZED
@pytest.mark.parametrize(
    ("shape", "features", "found"),
    [
        ((4, 16, 16, 32), 4, "dot_general"),
        ((4, 16, 16, 32), 8, "convolution"),
        ((4, 16, 16, 32), 64, "convolution"),
    ],
)
def test_few_features_are_one_product(shape, features, found):
    convolved = partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC
    )
    text = jax.jit(convolved).lower(jnp.ones(shape), jnp.ones((3, 3, 32, features))).as_text()
    assert re.findall(r"stablehlo\.(dot_general|convolution)", text) == [found]


@OPTIMIZED
def test_one_channel_is_one_product():
    convolved = partial(
        lax.conv_general_dilated, window_strides=(2, 2), padding="SAME", dimension_numbers=NHWC
    )
    text = jax.jit(convolved).lower(jnp.ones((4, 16, 16, 1)), jnp.ones((4, 4, 1, 32))).as_text()
    assert re.findall(r"stablehlo\.(dot_general|convolution)", text) == ["dot_general"]


def _compiled_gradients(shape, kernel_shape, stride, padding):
    """The optimised program of the gradients of both operands."""

    def slopes(x, kernel, seen):
        convolved = partial(
            lax.conv_general_dilated, window_strides=(stride, stride), padding=padding,
            dimension_numbers=NHWC,
        )  # fmt: skip
        return jax.vjp(convolved, x, kernel)[1](seen)

    x, kernel = jnp.ones(shape), jnp.ones(kernel_shape)
    seen = jax.eval_shape(
        lambda x, k: lax.conv_general_dilated(
            x, k, (stride, stride), padding, dimension_numbers=NHWC
        ), x, kernel,
    )  # fmt: skip
    return jax.jit(slopes).lower(x, kernel, jnp.ones(seen.shape)).compile().as_text()


@OPTIMIZED
@pytest.mark.parametrize(("side", "convolutions"), [(1, 1), (3, 1), (4, 2)])
def test_an_images_gradient_multiplies_with_no_zeros(side, convolutions):
    text = _compiled_gradients((4, 16, 16, 8), (side, side, 8, 16), 2, "SAME")
    assert text.count(CANONICAL) == convolutions  # else a product, beside the kernel's gradient
    assert "lhs_dilate" not in text


@OPTIMIZED
@pytest.mark.parametrize("padding", ["VALID", "SAME", ((2, 2), (2, 2))])
@pytest.mark.parametrize(("channels", "features"), [(32, 8), (8, 32)])
def test_xla_does_not_exchange_operands_by_itself(padding, channels, features):
    text = _compiled_gradients((16, 8, 8, channels), (3, 3, channels, features), 1, padding)
    assert text.count(CANONICAL) == 2
    assert "reversal" not in text


@OPTIMIZED
def test_the_narrower_side_of_a_kernels_gradient_is_the_image():
    def slope(x, seen):
        convolved = lambda kernel: lax.conv_general_dilated(  # noqa: E731
            x, kernel, (1, 1), "SAME", dimension_numbers=NHWC
        )
        return jax.vjp(convolved, jnp.ones((3, 3, x.shape[-1], seen.shape[-1])))[1](seen)

    for channels, features in ((32, 4), (4, 32)):
        shapes = jnp.ones((5, 16, 16, channels)), jnp.ones((5, 16, 16, features))
        text = jax.jit(slope).lower(*shapes).as_text()
        (image,) = re.findall(r"stablehlo\.convolution[^\n]*: \(tensor<(\d+)x", text)
        assert int(image) == 4


def test_a_gradient_penalty_is_differentiated_twice():
    def penalty(kernel, x):
        out = lambda x: jnp.sum(  # noqa: E731
            jnp.tanh(lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=NHWC))
        )
        return jnp.sum(jax.grad(out)(x) ** 2)

    kernel = 0.3 * jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 2))
    slope = jax.jit(jax.grad(penalty))(kernel, x)
    towards = jax.random.normal(jax.random.key(2), kernel.shape)
    h = 2e-3
    risen, fallen = (penalty(kernel + s * h * towards, x) for s in (1, -1))
    np.testing.assert_allclose(jnp.vdot(slope, towards), (risen - fallen) / (2 * h), rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", systems.NAMES)
def test_scanned_steps_of_convolutional_networks_equal_looped_ones(name):
    looped, _ = systems.run(name, chunks=(1,) * 4, network="conv")

    scanned, _ = systems.run(name, chunks=(4,), network="conv")

    # fusions, not convolutions, round differently
    assert systems.largest_difference(scanned, looped) < 1e-6


@pytest.mark.parametrize("how", ["pmap", "shard_map", "jit"])
def test_eight_devices_train_as_one(how):
    alone, _ = systems.run("vae", "jit", 1, (2,), network="conv")

    together, _ = systems.run("vae", how, 8, (2,), network="conv")

    assert systems.largest_difference(together, alone) < 1e-5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--xla_cpu_max_isa=AVX2", "False False --xla_cpu_max_isa=AVX2 --{}="),
        ("--{}=LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION", "True False {given}"),
    ],
)
@pytest.mark.slow
def test_tuning_adds_its_flag_unless_the_user_gave_it(given, expected):
    flag = "xla_cpu_experimental_ynn_fusion_type"
    given = given.format(flag)
    done = subprocess.run(
        [sys.executable, "-c", TUNED.format(NHWC)], capture_output=True, text=True, check=True,
        env=os.environ | {"XLA_FLAGS": given, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.stdout.strip() == expected.format(flag, given=given)
