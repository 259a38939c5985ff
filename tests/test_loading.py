# SPDX-License-Identifier: MIT
"""From checkpoints to networks on devices: types, shardings, and parts that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from support import checkpoints, controlnets, systems

from jaxgen.nn.stable_diffusion.autoencoder_kl import AutoencoderKL
from jaxgen.nn.stable_diffusion.clip import CLIPTextModel
from jaxgen.nn.stable_diffusion.unet import UNet2DConditionModel
from jaxgen.stable_diffusion import loading, placement
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import tensors


def mixed(kind, **parts):
    """A checkpoint with components of others: name=(kind, component)."""
    checkpoint = checkpoints.checkpoint(kind)
    components = dict(checkpoint.components)
    for name, (other, component) in parts.items():
        components[name] = checkpoints.checkpoint(other).components[component]
    return checkpoint._replace(components=components)


def test_parts_of_different_models_are_named_together():
    checkpoint = mixed("sd1", text_encoder=("xl", "text_encoder"))
    with pytest.raises(
        ValueError, match="text encoders give 16 features and the UNet attends to 2"
    ):
        loading.networks(checkpoint)
    checkpoint = mixed("sd1", unet=("xl", "unet"))
    with pytest.raises(ValueError, match="attends to 40; a UNet with pooled text and the text enc"):
        loading.networks(checkpoint)


def test_channels_of_network_and_autoencoder_must_fit():
    checkpoint = checkpoints.checkpoint("sd1")
    unet = checkpoint.components["unet"]
    unet = unet._replace(config=unet.config | {"in_channels": 7, "out_channels": 8})
    checkpoint = checkpoint._replace(components=checkpoint.components | {"unet": unet})
    with pytest.raises(
        ValueError,
        match="takes 7 channels; with this autoencoder 4, or 9 for .* returns 8 channels",
    ):
        loading.networks(checkpoint)


@pytest.mark.parametrize(
    ("name", "field"), [("vae", "in_channels"), ("vae", "out_channels"), (None, "conditioning")]
)
def test_pictures_have_three_channels(name, field):
    checkpoint, controls = checkpoints.checkpoint("sd1"), []
    if name is None:
        controls = [controlnets.component("sd1", conditioning_channels=1)]
    else:
        part = checkpoint.components[name]
        part = part._replace(config=part.config | {field: 4})
        checkpoint = checkpoint._replace(components=checkpoint.components | {name: part})
    with pytest.raises(ValueError, match=rf"has {field}\w* [14]; pictures have 3"):
        loading.networks(checkpoint, controlnets=controls)


def test_a_fault_in_the_weights_names_the_component():
    checkpoint = mixed("sd1", vae=("sd1", "unet"))
    checkpoint = checkpoint._replace(
        components=checkpoint.components
        | {"vae": checkpoint.components["vae"]._replace(
            class_name="AutoencoderKL", config=checkpoints.VAE)}
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^vae: "):
        loading.load(checkpoint, loading.networks(checkpoint))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_parameters_have_the_type_asked_for(dtype):
    checkpoint = checkpoints.checkpoint("sd1")
    networks = loading.networks(checkpoint, loading.check_dtype(dtype))
    params = loading.load(checkpoint, networks)
    found = {name: {x.dtype for x in jax.tree.leaves(tree)} for name, tree in params.items()}
    dtype = jnp.dtype(dtype)
    # XL's autoencoder overflows float16
    vae = jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype
    assert found == {"unet": {dtype}, "vae": {vae}, "text_encoder": {dtype}}


def test_large_kernels_are_divided_by_their_features():
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    sharding = placement.of_parameters(Mesh(devices, ("data", "model")))
    assert sharding(("conv_in", "kernel"), (3, 3, 64, 320)).spec == P(None, None, None, "model")
    assert sharding(("to_q", "kernel"), (320, 320)).spec == P(None, "model")
    for small in ((320,), (16, 16), (320, 321)):
        assert sharding(("kernel",), small).spec == P()
    assert placement.of_parameters(None) is None


def test_kernels_of_convolutions_lie_as_cudnn_reads_them_and_as_wide():
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    place = placement.of_parameters(Mesh(devices, ("data", "model")), (), "cudnn")
    kernel = np.arange(3 * 3 * 64 * 320, dtype=np.float32).reshape(3, 3, 64, 320)
    put = jax.device_put(kernel, place(("conv_in", "kernel"), kernel.shape))
    assert put.format.layout.major_to_minor == (3, 0, 1, 2)
    assert put.sharding.spec == P(None, None, None, "model")
    np.testing.assert_array_equal(put, kernel)
    assert place(("to_q", "kernel"), (320, 320)).spec == P(None, "model")
    alone = placement.of_parameters(None, (), "cudnn")
    assert alone(("to_q", "kernel"), (320, 320)) is None


def test_an_unknown_kernel_layout_is_refused():
    with pytest.raises(ValueError, match="kernel_layout is 'OHWI'; use 'cudnn', or None"):
        StableDiffusion.from_pretrained("no/such/model", kernel_layout="OHWI")


def test_a_network_without_the_sizes_it_is_told_of_says_so():
    with pytest.raises(ValueError, match="'text_time' needs addition_time_embed_dim and a .* None"):
        loading.shapes(UNet2DConditionModel(addition_embed_type="text_time"))


def test_scheduler_keys_that_no_class_knows_are_said_in_one_warning():
    checkpoint = checkpoints.checkpoint("sd1")
    loading.warn_of_scheduler_keys(checkpoint)  # without a warning, which would be an error here
    extras = {"predict_epsilon": True, "\x1b[2J": None}
    checkpoint = checkpoint._replace(scheduler=checkpoint.scheduler | extras)
    with pytest.warns(UserWarning, match="passed over 2 unknown keys") as caught:
        loading.warn_of_scheduler_keys(checkpoint)
    assert len(caught) == 1
    assert str(caught[0].message).isprintable()


@pytest.fixture(scope="module")
def whole():
    """A checkpoint, its networks, and the shapes of their parameters, traced once."""
    checkpoint = checkpoints.checkpoint("sd1")
    networks = loading.networks(checkpoint)
    shapes = {id(m): loading.shapes(m) for m in (networks.unet, networks.vae)}
    encoder = networks.encoders["text_encoder"]
    shapes[id(encoder)] = loading.shapes(encoder)
    return checkpoint, networks, lambda module: shapes[id(module)]


def with_tensors(checkpoint, part, *names):
    component = checkpoint.components[part]
    more = dict.fromkeys(names, tensors.from_array(np.zeros((2, 2), np.float32)))
    component = component._replace(tensors={**component.tensors, **more})
    return checkpoint._replace(components=checkpoint.components | {part: component})


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("unet", ["model_ema.decay"]),
        ("vae", ["loss.logvar"]),
        ("text_encoder", ["vision_model.post_layernorm.weight", "text_projection.weight"]),
    ],
)
def test_tensors_of_no_module_are_passed_over_and_said_in_one_line(whole, part, names):
    checkpoint, networks, shapes = whole
    expected = loading.load(checkpoint, networks, shapes_of=shapes)
    more = with_tensors(checkpoint, part, *names)
    with pytest.warns(UserWarning, match=f"{part}: passed over {len(names)} tensors") as caught:
        params = loading.load(more, networks, shapes_of=shapes)
    assert len(caught) == 1
    assert systems.identical(params, expected)


@pytest.mark.parametrize("name", ["down_blocks.5.resnets.0.conv1.weight", "conv_in.lora_A.weight"])
def test_tensors_inside_a_module_are_not_passed_over(whole, name):
    checkpoint, networks, shapes = whole
    with pytest.raises(ValueError, match=f"unet: .*\n1 unknown tensors .*{name}"):
        loading.load(with_tensors(checkpoint, "unet", name), networks, shapes_of=shapes)


def test_while_tensors_lack_all_others_are_named(whole):
    checkpoint, networks, shapes = whole
    unet = checkpoint.components["unet"]
    renamed = unet._replace(tensors={f"module.{n}": t for n, t in unet.tensors.items()})
    checkpoint = checkpoint._replace(components=checkpoint.components | {"unet": renamed})
    with pytest.raises(ValueError, match=r"unknown tensors .* module\.(.|\n)* missing tensors"):
        loading.load(checkpoint, networks, shapes_of=shapes)


def test_a_tokenizer_of_another_vocabulary_is_refused():
    checkpoint = checkpoints.checkpoint("sd1")
    encoder = checkpoint.components["text_encoder"]
    size = encoder.config["vocab_size"] - 1
    smaller = encoder._replace(config=encoder.config | {"vocab_size": size, "eos_token_id": 5})
    components = checkpoint.components | {"text_encoder": smaller}
    with pytest.raises(ValueError, match=f"tokenizer gives ids up to {size}, and text_encoder has"):
        loading.networks(checkpoint._replace(components=components))


@pytest.mark.parametrize(
    ("kind", "lengths", "message"),
    [
        ("sd1", (100,), "rows of 100 tokens, and text_encoder has 77 positions"),
        ("xl", (77, 64), "rows of 77 and 64 tokens, which must be equally long"),
    ],
)
def test_rows_of_a_tokenizer_are_those_of_its_encoder(kind, lengths, message):
    checkpoint = checkpoints.checkpoint(kind)
    tokenizers = {
        name: tokens._replace(max_length=length)
        for (name, tokens), length in zip(checkpoint.tokenizers.items(), lengths, strict=True)
    }
    with pytest.raises(ValueError, match=message):
        loading.networks(checkpoint._replace(tokenizers=tokenizers))


@pytest.mark.parametrize(
    ("backend", "heads", "divided"),
    [("gpu", (8, 16), True), ("gpu", (8, 12), False), ("tpu", (12,), True), ("gpu", (), True)],
)
def test_on_gpus_queries_are_divided_only_by_whole_heads(monkeypatch, backend, heads, divided):
    """Otherwise cuDNN's attention does not compile: jax cannot name such a division."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    sharding = placement.of_parameters(Mesh(np.array(jax.devices()), ("model",)), heads)
    assert (sharding(("attn1", "to_q", "kernel"), (768, 768)).spec == P(None, "model")) == divided
    assert sharding(("attn1", "to_out_0", "kernel"), (768, 768)).spec == P(None, "model")


def test_the_heads_of_every_network_are_known():
    heads = loading.attention_heads
    assert heads(UNet2DConditionModel(attention_head_dim=(5, 10, 20, 20))) == (5, 10, 20, 20)
    assert heads(UNet2DConditionModel(attention_head_dim=8)) == (8,)
    assert heads(UNet2DConditionModel(attention_head_dim=8, num_attention_heads=4)) == (4,)
    assert heads(CLIPTextModel(num_attention_heads=12)) == (12,)
    assert heads(AutoencoderKL()) == (1,)
