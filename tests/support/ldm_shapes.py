# SPDX-License-Identifier: MIT
"""Names and shapes of LDM and SGM checkpoints, built as their modules are (for tests).

From the constructors in CompVis/latent-diffusion: openaimodel.UNetModel, model.Encoder and
model.Decoder; open_clip's TextTransformer; transformers' CLIPTextModel.
"""

from typing import NamedTuple

Shapes = dict[str, tuple[int, ...]]


class Ldm(NamedTuple):
    """The numbers of an LDM config file."""

    kind: str
    channels: int
    mult: tuple[int, ...]
    depths: tuple[int, ...]  # transformer blocks a level; 0 where there is no attention
    context: int
    vae_channels: int = 128
    vae_mult: tuple[int, ...] = (1, 2, 4, 4)
    clip: tuple[int, int, int] = (49408, 768, 12)  # vocabulary, width, layers
    open_clip: tuple[int, int, int] = (49408, 1024, 24)
    in_channels: int = 4
    added: int = 0  # adm_in_channels
    layers: int = 2
    middle: int | None = None  # transformer blocks in the middle; None is as many as last


V1 = Ldm("v1", 320, (1, 2, 4, 4), (1, 1, 1, 0), 768)
V2 = Ldm("v2", 320, (1, 2, 4, 4), (1, 1, 1, 0), 1024)
XL = Ldm(
    "xl", 320, (1, 2, 4), (0, 2, 10), 2048, open_clip=(49408, 1280, 32), added=2816
)  # fmt: skip

REFINER = Ldm(
    "refiner", 384, (1, 2, 4, 4), (0, 4, 4, 0), 1280, open_clip=(49408, 1280, 32), added=2560,
    middle=4,
)  # fmt: skip

_SMALL = {"channels": 32, "vae_channels": 32, "vae_mult": (1, 2)}
TINY_V1 = V1._replace(
    mult=(1, 2, 2), depths=(1, 1, 0), context=16, clip=(60, 16, 2), layers=1, **_SMALL
)
TINY_V2 = TINY_V1._replace(kind="v2", open_clip=(60, 16, 3), layers=2)
TINY_XL = XL._replace(
    mult=(1, 2, 2), depths=(0, 2, 3), context=48, clip=(60, 16, 2), open_clip=(60, 32, 3),
    added=6 * 256 + 32, **_SMALL,
)  # fmt: skip
TINY_PLAYGROUND = TINY_XL._replace(kind="playground")
TINY_REFINER = REFINER._replace(
    mult=(1, 2, 2), depths=(0, 2, 0), context=32, open_clip=(60, 32, 3), added=5 * 256 + 32,
    middle=2, **_SMALL,
)  # fmt: skip


def shapes(c: Ldm) -> Shapes:
    """Every tensor of the checkpoint, with its usual extras."""
    result = _under("model.diffusion_model.", _unet(c)) | _under("first_stage_model.", _vae(c))
    match c.kind:
        case "v1":
            result |= _under("cond_stage_model.transformer.text_model.", _clip(*c.clip))
        case "v2":
            result |= _under("cond_stage_model.model.", _open_clip(*c.open_clip))
        case "refiner":
            result |= _under("conditioner.embedders.0.model.", _open_clip(*c.open_clip))
        case _:
            result |= _under("conditioner.embedders.0.transformer.text_model.", _clip(*c.clip))
            result |= _under("conditioner.embedders.1.model.", _open_clip(*c.open_clip))
    if c.kind == "playground":
        result |= {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}
    return result | {"betas": (1000,), "alphas_cumprod": (1000,)}


def _under(prefix: str, inner: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in inner.items()}


def _conv(name: str, i: int, o: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (o, i, size, size), f"{name}.bias": (o,)}


def _linear(name: str, i: int, o: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (o, i)} | ({f"{name}.bias": (o,)} if bias else {})


def _norm(name: str, c: int) -> Shapes:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def _unet(c: Ldm) -> Shapes:
    ch, emb = c.channels, 4 * c.channels
    result = _linear("time_embed.0", ch, emb) | _linear("time_embed.2", emb, emb)
    if c.added:
        result |= _linear("label_emb.0.0", c.added, emb) | _linear("label_emb.0.2", emb, emb)
    result |= _conv("input_blocks.0.0", c.in_channels, ch)
    skips, number = [ch], 0
    for level, mult in enumerate(c.mult):
        for _ in range(c.layers):
            number += 1
            result |= _resnet(f"input_blocks.{number}.0", ch, mult * c.channels, emb)
            ch = mult * c.channels
            result |= _transformer(f"input_blocks.{number}.1", c, ch, c.depths[level])
            skips.append(ch)
        if level < len(c.mult) - 1:
            number += 1
            result |= _conv(f"input_blocks.{number}.0.op", ch, ch)
            skips.append(ch)

    result |= _resnet("middle_block.0", ch, ch, emb) | _resnet("middle_block.2", ch, ch, emb)
    result |= _transformer("middle_block.1", c, ch, c.middle or max(c.depths[-1], 1))

    number = 0
    for level, mult in reversed(list(enumerate(c.mult))):
        for i in range(c.layers + 1):
            result |= _resnet(f"output_blocks.{number}.0", ch + skips.pop(), mult * c.channels, emb)
            ch = mult * c.channels
            result |= _transformer(f"output_blocks.{number}.1", c, ch, c.depths[level])
            if level and i == c.layers:
                place = 2 if c.depths[level] else 1
                result |= _conv(f"output_blocks.{number}.{place}.conv", ch, ch)
            number += 1
    return result | _norm("out.0", ch) | _conv("out.2", ch, 4)


def _resnet(name: str, i: int, o: int, emb: int) -> Shapes:
    result = _norm(f"{name}.in_layers.0", i) | _conv(f"{name}.in_layers.2", i, o)
    result |= _linear(f"{name}.emb_layers.1", emb, o)
    result |= _norm(f"{name}.out_layers.0", o) | _conv(f"{name}.out_layers.3", o, o)
    return result | (_conv(f"{name}.skip_connection", i, o, 1) if i != o else {})


def _transformer(name: str, c: Ldm, ch: int, depth: int) -> Shapes:
    if not depth:
        return {}
    project = _conv if c.kind == "v1" else _linear
    size = {"size": 1} if c.kind == "v1" else {}
    result = _norm(f"{name}.norm", ch) | project(f"{name}.proj_in", ch, ch, **size)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, width in (("attn1", ch), ("attn2", c.context)):
            result |= _linear(f"{block}.{attention}.to_q", ch, ch, bias=False)
            result |= _linear(f"{block}.{attention}.to_k", width, ch, bias=False)
            result |= _linear(f"{block}.{attention}.to_v", width, ch, bias=False)
            result |= _linear(f"{block}.{attention}.to_out.0", ch, ch)
        result |= _linear(f"{block}.ff.net.0.proj", ch, 8 * ch)
        result |= _linear(f"{block}.ff.net.2", 4 * ch, ch)
        for k in (1, 2, 3):
            result |= _norm(f"{block}.norm{k}", ch)
    return result | project(f"{name}.proj_out", ch, ch, **size)


def _vae(c: Ldm) -> Shapes:
    channels = [m * c.vae_channels for m in c.vae_mult]
    result, ch = _conv("encoder.conv_in", 3, c.vae_channels), c.vae_channels
    for level, out in enumerate(channels):
        for j in range(c.layers):
            result |= _vae_resnet(f"encoder.down.{level}.block.{j}", ch, out)
            ch = out
        if level < len(channels) - 1:
            result |= _conv(f"encoder.down.{level}.downsample.conv", ch, ch)
    result |= _vae_middle("encoder", ch) | _conv("encoder.conv_out", ch, 8)

    result |= _conv("decoder.conv_in", 4, ch) | _vae_middle("decoder", ch)
    for level in reversed(range(len(channels))):
        for j in range(c.layers + 1):
            result |= _vae_resnet(f"decoder.up.{level}.block.{j}", ch, channels[level])
            ch = channels[level]
        if level:
            result |= _conv(f"decoder.up.{level}.upsample.conv", ch, ch)
    result |= _norm("encoder.norm_out", channels[-1]) | _norm("decoder.norm_out", ch)
    result |= _conv("decoder.conv_out", ch, 3)
    return result | _conv("quant_conv", 8, 8, 1) | _conv("post_quant_conv", 4, 4, 1)


def _vae_middle(half: str, ch: int) -> Shapes:
    result = _norm(f"{half}.mid.attn_1.norm", ch)
    for name in ("q", "k", "v", "proj_out"):
        result |= _conv(f"{half}.mid.attn_1.{name}", ch, ch, 1)
    for block in ("block_1", "block_2"):
        result |= _vae_resnet(f"{half}.mid.{block}", ch, ch)
    return result


def _vae_resnet(name: str, i: int, o: int) -> Shapes:
    result = _norm(f"{name}.norm1", i) | _conv(f"{name}.conv1", i, o)
    result |= _norm(f"{name}.norm2", o) | _conv(f"{name}.conv2", o, o)
    return result | (_conv(f"{name}.nin_shortcut", i, o, 1) if i != o else {})


def _clip(vocab_size: int, d: int, layers: int) -> Shapes:
    result: Shapes = {
        "embeddings.token_embedding.weight": (vocab_size, d),
        "embeddings.position_embedding.weight": (77, d),
        "embeddings.position_ids": (1, 77),
    }
    for i in range(layers):
        layer = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            result |= _linear(f"{layer}.self_attn.{name}", d, d)
        result |= _linear(f"{layer}.mlp.fc1", d, 4 * d) | _linear(f"{layer}.mlp.fc2", 4 * d, d)
        result |= _norm(f"{layer}.layer_norm1", d) | _norm(f"{layer}.layer_norm2", d)
    return result | _norm("final_layer_norm", d)


def _open_clip(vocab_size: int, d: int, layers: int) -> Shapes:
    result: Shapes = {
        "positional_embedding": (77, d),
        "text_projection": (d, d),
        "token_embedding.weight": (vocab_size, d),
        "logit_scale": (),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        result |= {
            f"{block}.attn.in_proj_weight": (3 * d, d),
            f"{block}.attn.in_proj_bias": (3 * d,),
        }
        result |= _linear(f"{block}.attn.out_proj", d, d)
        result |= _linear(f"{block}.mlp.c_fc", d, 4 * d) | _linear(f"{block}.mlp.c_proj", 4 * d, d)
        result |= _norm(f"{block}.ln_1", d) | _norm(f"{block}.ln_2", d)
    return result | _norm("ln_final", d)
