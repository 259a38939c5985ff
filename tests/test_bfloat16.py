# SPDX-License-Identifier: MIT
"""Training in bfloat16: every leaf's gradient against float64's, whole runs against float32's."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import networks, scripts

from jaxgen.nn import autoencoder, classifier, gan, linear
from jaxgen.nn.stable_diffusion import controlnet
from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.nn.stable_diffusion.clip import CLIPTextModel
from jaxgen.nn.stable_diffusion.unet import UNet2DConditionModel
from jaxgen.runs import outputs
from jaxgen.train import parallel

SHAPE = (16, 16, 1)
LEVEL = {
    "block_out_channels": (16,), "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
}  # fmt: skip
UNET = networks.UNETS["sd1"] | LEVEL | {"up_block_types": ("UpBlock2D",)}
CONTROL = networks.UNETS["sd1"] | LEVEL | {"conditioning_embedding_out_channels": (4, 8)}
VAE = networks.VAE | {
    "block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
}  # fmt: skip


UNET_INPUTS = networks.unet_inputs(UNET)


def images(count):
    return np.random.default_rng(3).uniform(-1, 1, (count, *SHAPE)).astype(np.float32)


def latents(count):
    return np.random.default_rng(4).standard_normal((count, 4)).astype(np.float32)


def random_maps(count):
    return np.random.default_rng(6).standard_normal((count, 4, 4, 4)).astype(np.float32)


def labels(count):
    return np.arange(count, dtype=np.int32) % 3


# What sees single examples in training does so here, under vmap.
SINGLE = {
    "dense encoder": (autoencoder.DenseEncoder(4, (32,), 3), images(2048), labels(2048)),
    "dense decoder": (autoencoder.DenseDecoder(SHAPE, (32,), 3), latents(2048), labels(2048)),
    "dense generator": (gan.DenseGenerator(SHAPE, (32,), 3), latents(2048), labels(2048)),
    "dense discriminator": (gan.DenseDiscriminator((8,), 5, 3), images(2048), labels(2048)),
    "conv encoder": (autoencoder.ConvEncoder(4, 8, 16, "group", 3), images(64), labels(64)),
    "conv decoder": (autoencoder.ConvDecoder(SHAPE, 8, 16, "batch", 3), latents(64), labels(64)),
    "conv generator": (gan.ConvGenerator(SHAPE, 4, num_classes=3), latents(64), labels(64)),
    "map encoder": (autoencoder.MapEncoder(4, 8), images(64)),
    "map decoder": (autoencoder.MapDecoder(1, 8), random_maps(64)),
    "gaussian layer": (autoencoder.GaussianLayer(4, (16,)), latents(2048)),
    "logit layer": (autoencoder.LogitLayer(SHAPE, (16,)), latents(2048)),
    "conv discriminator": (gan.ConvDiscriminator(8, 3, True), images(64), labels(64)),
}
WHOLE = {
    "classifier": (classifier.Classifier(3, 8), images(64)),
    "text encoder": (
        CLIPTextModel(**networks.CLIPS["clip_l"] | {"num_hidden_layers": 1}),
        networks.token_ids(64, 16),
    ),
    "autoencoder": (AutoencoderKL(**VAE), images(4).repeat(3, axis=-1)),
    "unet": (UNet2DConditionModel(**UNET), *UNET_INPUTS),
    "controlnet": (
        controlnet.ControlNetModel(**CONTROL),
        *UNET_INPUTS,
        abs(images(8).reshape(2, 32, 32, 1)).repeat(3, axis=-1),
    ),
}
# The largest relative errors: of biases, scales and embeddings, and of kernels. What rounding of
# activations leaves is two to three times less on one processor, and differs between versions of
# XLA; sums in bfloat16 gave the third number, of biases, scales and embeddings.
BOUNDS = {
    "dense encoder": (0.004, 0.03),  # 0.009
    "dense decoder": (0.003, 0.01),  # 0.004
    "dense generator": (0.003, 0.01),  # 0.005
    "dense discriminator": (0.01, 0.06),  # 0.20
    "conv encoder": (0.017, 0.03),  # 0.021
    "conv decoder": (0.01, 0.02),  # 0.51
    "conv generator": (0.1, 0.12),  # 0.88
    "conv discriminator": (0.015, 0.06),  # 0.045
    "map encoder": (0.03, 0.06),  # 0.22
    "map decoder": (0.03, 0.06),  # 0.56
    "gaussian layer": (0.004, 0.01),  # 0.006
    "logit layer": (0.004, 0.01),  # 0.005
    "classifier": (0.1, 0.2),  # 0.18
    "text encoder": (0.03, 0.12),  # 0.10
    "autoencoder": (0.2, 0.2),  # 0.45
    "unet": (0.03, 0.08),  # 0.40
    "controlnet": (0.07, 0.07),  # 0.30
}


def gradient(module, params, inputs, single):
    """The gradient of a loss whose slopes do not cancel: sums of them grow with their length."""

    def call(params, inputs):
        def one(*inputs):
            return module.apply({"params": params}, *inputs)

        return jax.tree.leaves((jax.vmap(one) if single else one)(*inputs))

    def loss(params, inputs, weights):
        outputs = [out.astype(weights[0].dtype) for out in call(params, inputs)]
        return sum(
            jnp.mean(w * (out**2 / 2 + out)) for w, out in zip(weights, outputs, strict=True)
        )

    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(call, params, inputs)
    weights = [rng.uniform(0.5, 1.5, out.shape).astype(jnp.float32) for out in shapes]
    traced = jax.jit(jax.grad(loss)).trace(params, inputs, weights)
    if jnp.float32 is jnp.float64:
        assert "f32[" not in str(traced.jaxpr)
    return traced.lower().compile()(params, inputs, weights)


def float64_gradient(module, params, inputs, single, monkeypatch):
    """The same in float64: everything that the networks cast to float32 is cast to that instead."""

    def widened(x):
        return x.astype(np.float64) if x.dtype == np.float32 else x

    with jax.enable_x64(True), monkeypatch.context() as patch:
        patch.setattr(jnp, "float32", jnp.float64)
        wide = jax.tree.map(widened, (params, inputs))
        return jax.device_get(gradient(module.clone(dtype=jnp.float64), *wide, single))


@pytest.mark.parametrize("name", BOUNDS)
def test_bfloat16_gradients_are_float64s_up_to_the_rounding_of_activations(name, monkeypatch):
    module, *inputs = (SINGLE | WHOLE)[name]
    example = [x[0] for x in inputs] if name in SINGLE else inputs
    params = networks.weights_by_path(networks.shapes_of(module, *example))
    exact = float64_gradient(module, params, inputs, name in SINGLE, monkeypatch)
    half = gradient(module.clone(dtype=jnp.bfloat16), params, inputs, name in SINGLE)

    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(exact))
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(exact), jax.tree.leaves(half), strict=True
    ):
        assert other.dtype == jnp.float32
        if np.abs(leaf).max() < 1e-6 * largest:  # zero but for rounding: a bias before a norm
            assert np.abs(other).max() < 1e-3 * largest
            continue
        bound = BOUNDS[name][path[-1].key == "kernel"]
        assert networks.relative_error(other, leaf) < bound, jax.tree_util.keystr(path)


def test_networks_have_no_layers_of_flax_that_sum_gradients_in_bfloat16():
    flaxs = re.compile(r"\bnn\.(Dense|DenseGeneral|Conv|ConvTranspose|Embed)\b")
    folder = Path(linear.__file__).parent
    assert not [path.name for path in folder.glob("*.py") if flaxs.search(path.read_text())]


@pytest.mark.parametrize("first", ["layers", "images"])
def test_a_bias_is_summed_over_the_devices_of_a_shard_map(first):
    """jax adds gradients of what is the same on all devices; `first` is what has a gradient."""
    mesh = parallel.data_mesh(4)
    layer = linear.Dense(3, dtype=jnp.bfloat16)
    x = jnp.asarray(images(1024).reshape(1024, -1))
    params = layer.init(jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(layer.apply(params, x).astype(jnp.float32) + 0.5)

    which = ("layers", "images").index(first)
    specs = (P(), P("data"))
    slopes = jax.shard_map(
        jax.grad(loss, which), mesh=mesh, in_specs=specs, out_specs=specs[which]
    )(params, x)  # fmt: skip
    expected = jax.grad(loss, which)(params, x)
    close = partial(np.testing.assert_allclose, rtol=1e-2, atol=0.1)  # kernels: parts are rounded
    jax.tree.map(close, slopes, expected)
    if first == "layers":
        np.testing.assert_array_equal(slopes["params"]["bias"], 1024)  # bfloat16 counts to 256


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "metric"), [("autoencoder", "loss"), ("vae", "neg_elbo_nats"), ("gan", "d_loss")]
)
def test_bfloat16_runs_end_within_the_noise_of_float32s(script, metric, tmp_path, monkeypatch):
    """Noise: what another seed changes, in the mean of the last steps."""
    for drawing in ("_draw", "_close_pictures"):
        monkeypatch.setattr(outputs, drawing, lambda *_: None)

    def end(dtype, seed):
        folder = tmp_path / f"{dtype}-{seed}"
        flags = ["--network", "conv", "--width", 4, "--batch-size", 32, "--steps", 60]
        flags += ["--draw-every", 0, "--num-devices", 1, "--run-dir", folder]
        scripts.call(script, *flags, "--log-every", 1, "--dtype", dtype, "--seed", seed)
        return np.mean([row[metric] for row in scripts.rows(folder)[-20:]])

    first, second, half = end("float32", 1), end("float32", 2), end("bfloat16", 1)
    assert abs(half - first) < max(abs(second - first), 0.01 * abs(first)), (first, second, half)
