# SPDX-License-Identifier: MIT
# ruff: noqa: E402, imports follow importorskip
"""The networks beside PyTorch diffusers and transformers, with PyTorch's own random weights."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.models import attention, resnet
from diffusers.models import transformers as transformer_models
from diffusers.models.autoencoders import vae as torch_vae
from support.networks import (
    CLIP_ONLY_OURS,
    CLIPS,
    TINY,
    UNETS,
    VAE,
    make_clip,
    make_tiny,
    make_unet,
    make_vae,
    norm_epsilons,
    relative_error,
    shapes_of,
    token_ids,
    unet_inputs,
)
from torch_weights import from_torch, nchw, nhwc, perturb, torch_module

from jaxgen.nn import embeddings, linear
from jaxgen.nn.stable_diffusion import autoencoder_kl, transformer
from jaxgen.nn.stable_diffusion import resnet as resnets
from jaxgen.weights import layout

pytestmark = pytest.mark.oracle

TWO_LEVELS = UNETS["sd1"] | {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
BLOCK_ERROR = 1e-5  # issue 3: relative, float32
NETWORK_ERROR = 1e-4


def array(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run(ours, theirs, *inputs):
    """Our module's output with the weights of their module."""
    params = from_torch(theirs.state_dict(), shapes_of(ours, *inputs))
    return jax.jit(ours.apply)({"params": params}, *inputs)


def seeded(make):
    torch.manual_seed(0)
    return perturb(make())


@pytest.mark.parametrize("channels", [32, 48])
def test_resnet_block_equals_torch(channels):
    x, emb = array(0, 2, 8, 6, 32) + 3, array(1, 2, 40)
    theirs = seeded(
        lambda: resnet.ResnetBlock2D(
            in_channels=32, out_channels=channels, temb_channels=40, groups=8, eps=1e-5
        )
    )
    ours = run(resnets.ResnetBlock2D(channels, 8, 1e-5), theirs, x, emb)
    expected = nhwc(theirs(nchw(x), torch.from_numpy(emb)))
    assert relative_error(ours, expected) < BLOCK_ERROR


@pytest.mark.parametrize(
    ("torch_padding", "padding"), [(1, linear.SAME), (0, autoencoder_kl.AFTER)]
)
@pytest.mark.parametrize("size", [8, 7])
def test_downsample_equals_torch(torch_padding, padding, size):
    x = array(0, 2, size, size + 2, 16)
    theirs = seeded(
        lambda: resnet.Downsample2D(16, use_conv=True, padding=torch_padding, name="op")
    )
    ours = run(resnets.Downsample2D(padding), theirs, x)
    assert relative_error(ours, nhwc(theirs(nchw(x)))) < BLOCK_ERROR


@pytest.mark.parametrize("size", [(10, 14), (9, 13)])
def test_upsample_equals_torch(size):
    x = array(0, 2, 5, 7, 16)
    theirs = seeded(lambda: resnet.Upsample2D(16, use_conv=True))
    params = from_torch(theirs.state_dict(), shapes_of(resnets.Upsample2D(), x))
    ours = resnets.Upsample2D().apply({"params": params}, x, size)
    assert relative_error(ours, nhwc(theirs(nchw(x), output_size=size))) < BLOCK_ERROR


def test_time_embedding_equals_torch():
    t = np.array([0.0, 1.0, 20.5, 500.0, 946.42, 999.0], np.float32)
    theirs = seeded(lambda: diffusers.models.embeddings.TimestepEmbedding(32, 64))
    for flip, shift in ((True, 0), (False, 1)):
        sinusoid = diffusers.models.embeddings.get_timestep_embedding(
            torch.from_numpy(t), 32, flip, shift
        )
        ours = embeddings.sinusoid(t, 32, flip_sin_to_cos=flip, freq_shift=shift)
        assert relative_error(ours, sinusoid) < BLOCK_ERROR
        ours = run(embeddings.TimestepEmbedding(64), theirs, ours)
        assert relative_error(ours, theirs(sinusoid).detach()) < BLOCK_ERROR


def test_attention_equals_torch():
    x, text = array(0, 2, 24, 32), array(1, 2, 9, 20)
    theirs = seeded(lambda: attention.Attention(32, cross_attention_dim=20, heads=4, dim_head=8))
    ours = transformer.Attention(32, 4)
    shapes = jax.eval_shape(
        lambda key: ours.init(key, x, text, method=lambda m, x, t: m(x, m.keys_values(t))),
        jax.random.key(0),
    )["params"]
    params = {"params": from_torch(theirs.state_dict(), shapes)}
    keys_values = ours.apply(params, text, method="keys_values")
    expected = theirs(torch.from_numpy(x), encoder_hidden_states=torch.from_numpy(text))
    assert relative_error(ours.apply(params, x, keys_values), expected.detach()) < BLOCK_ERROR


def test_feed_forward_equals_torch():
    x = 3 * array(0, 2, 24, 32)
    theirs = seeded(lambda: attention.FeedForward(32, activation_fn="geglu"))
    ours = run(transformer.FeedForward(), theirs, x)
    assert relative_error(ours, theirs(torch.from_numpy(x)).detach()) < BLOCK_ERROR


@pytest.mark.parametrize("linear", [False, True])
def test_transformer_2d_equals_torch(linear):
    x, text = 1e-2 * array(0, 2, 6, 4, 32), array(1, 2, 9, 20)
    theirs = seeded(
        lambda: transformer_models.Transformer2DModel(
            4, 8, 32, num_layers=2, norm_num_groups=8, cross_attention_dim=20,
            use_linear_projection=linear,
        )
    )  # fmt: skip
    ours = transformer.Transformer2DModel(32, 4, 2, 8)

    def both(module, x, text):
        return module(x, module.text_context(text))

    shapes = jax.eval_shape(lambda key: ours.init(key, x, text, method=both), jax.random.key(0))
    params = from_torch(theirs.state_dict(), shapes["params"])
    actual = ours.apply({"params": params}, x, text, method=both)
    expected = theirs(nchw(x), encoder_hidden_states=torch.from_numpy(text), return_dict=False)[0]
    assert relative_error(actual, nhwc(expected)) < BLOCK_ERROR


def test_pixel_attention_equals_torch():
    x = array(0, 2, 6, 4, 32)
    theirs = seeded(
        lambda: torch_vae.UNetMidBlock2D(
            in_channels=32, temb_channels=None, resnet_groups=8, attention_head_dim=32
        )
    )
    ours = run(autoencoder_kl.MidBlock(32, 8, True), theirs, x)
    assert relative_error(ours, nhwc(theirs(nchw(x)))) < BLOCK_ERROR


@pytest.mark.parametrize("name", ["sd1", "xl"])  # projections by convolutions and by products
def test_unet_equals_diffusers_where_levels_have_odd_sizes(name):
    """Even sizes of all kinds are in test_unet.py, beside stored outputs."""
    config = UNETS[name]
    sample = array(3, 2, 13, 18, config.get("in_channels", 4))  # 13 and 18 are no multiples of 8
    check_unet(config, (sample, *unet_inputs(config)[1:]))


@pytest.mark.parametrize("name", UNETS)
def test_every_norm_of_the_unet_has_the_epsilon_of_diffusers(name):
    theirs = diffusers.UNet2DConditionModel(**UNETS[name])
    expected = {n: m.eps for n, m in theirs.named_modules() if hasattr(m, "eps")}
    ours = norm_epsilons(make_unet(UNETS[name])[0], *unet_inputs(UNETS[name]))
    assert {torch_module(path): epsilon for path, epsilon in ours.items()} == expected


def test_unet_with_depths_per_attention_equals_diffusers():
    depths = {
        "transformer_layers_per_block": (1, (2, 1), (1, 3)),
        "reverse_transformer_layers_per_block": ((1, 1, 2), (2, 1, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": 2,
    }
    check_unet(UNETS["xl"] | depths, unet_inputs(UNETS["xl"]))


def test_unet_without_mid_block_equals_diffusers():
    check_unet(TWO_LEVELS | {"mid_block_type": None}, unet_inputs(TWO_LEVELS))


def test_unet_with_guidance_embedding_equals_diffusers():
    config = TWO_LEVELS | {"time_cond_proj_dim": 12}
    inputs = unet_inputs(config)
    check_unet(config, (*inputs, None, None, array(5, 2, 12)))


def check_unet(config, inputs):
    theirs = seeded(lambda: diffusers.UNet2DConditionModel(**config))
    unet, shapes = make_unet(config)
    params = from_torch(theirs.state_dict(), shapes)
    actual = jax.jit(unet.apply)({"params": params}, *inputs)

    sample, *rest = inputs
    t, text, pooled, sizes, cond = (
        torch.from_numpy(x) if x is not None else None for x in (*rest, None, None, None)[:5]
    )
    with torch.no_grad():
        expected = theirs(
            nchw(sample), t, text, timestep_cond=cond,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        ).sample  # fmt: skip
    assert relative_error(actual, nhwc(expected)) < NETWORK_ERROR


@pytest.mark.parametrize(
    "flags",
    [{}, {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False}],
)
def test_autoencoder_equals_diffusers(flags):
    config = VAE | flags
    theirs = seeded(lambda: diffusers.AutoencoderKL(**config))
    vae, shapes = make_vae(config)
    params = {"params": from_torch(theirs.state_dict(), shapes)}
    x, z = array(0, 2, 24, 16, 3), array(1, 2, 3, 2, 4)

    mean, logvar = jax.jit(lambda x: vae.apply(params, x, method="encode"))(x)
    image = jax.jit(lambda z: vae.apply(params, z, method="decode"))(z)
    with torch.no_grad():
        posterior = theirs.encode(nchw(x)).latent_dist
        expected = nhwc(theirs.decode(nchw(z)).sample)
    assert relative_error(mean, nhwc(posterior.mean)) < NETWORK_ERROR
    assert relative_error(logvar, nhwc(posterior.logvar)) < NETWORK_ERROR
    assert relative_error(image, expected) < NETWORK_ERROR


@pytest.mark.parametrize("name", CLIPS)
def test_text_encoder_equals_transformers(name):
    config = {k: v for k, v in CLIPS[name].items() if k not in CLIP_ONLY_OURS}
    projected = "with_projection" in CLIPS[name]
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    theirs = seeded(lambda: kind(transformers.CLIPTextConfig(**config)))
    clip, shapes = make_clip(CLIPS[name])
    # transformers 5 keeps the prefix in files only
    state = {n if projected else "text_model." + n: t for n, t in theirs.state_dict().items()}
    params = {"params": from_torch(state, shapes)}

    ids = token_ids()
    actual = jax.jit(clip.apply)(params, ids)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids).long(), output_hidden_states=True)
    for ours, other in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(ours, other) < NETWORK_ERROR
    assert relative_error(actual.context, expected.last_hidden_state) < NETWORK_ERROR
    pooled = expected.text_embeds if projected else expected.pooler_output
    assert relative_error(actual.pooled, pooled) < NETWORK_ERROR


def test_the_tiny_autoencoder_equals_torch():
    theirs = seeded(lambda: diffusers.AutoencoderTiny(**TINY))
    ours, shapes = make_tiny(TINY)
    params = {"params": from_torch(theirs.state_dict(), shapes)}
    x, z = array(3, 2, 24, 16, 3), 3 * array(4, 2, 6, 4, 4)
    with torch.no_grad():
        latents, image = theirs.encode(nchw(x)).latents, theirs.decode(nchw(z)).sample
    found, _ = ours.apply(params, x, method="encode")
    assert relative_error(found, nhwc(latents)) < BLOCK_ERROR
    found = ours.apply(params, z, method="decode")
    assert relative_error(found, nhwc(image)) < BLOCK_ERROR


def test_the_published_tiny_autoencoder_has_the_names_and_shapes_of_torchs():
    with torch.device("meta"):
        stored = diffusers.AutoencoderTiny().state_dict()
    ours, shapes = make_tiny({})
    assert ours.factor == 8
    expected = {name: tuple(value.shape) for name, value in stored.items()}
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    wanted = {tuple(k.key for k in keys): leaf.shape for keys, leaf in flat}
    assert len(layout.match(expected, wanted)) == len(expected)
    halves = [
        sum(leaf.size for leaf in jax.tree.leaves(shapes[half])) for half in ("encoder", "decoder")
    ]
    assert halves == [1_222_532, 1_222_531]
