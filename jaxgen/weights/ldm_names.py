# SPDX-License-Identifier: MIT
"""Names of tensors in LDM and SGM checkpoints -> diffusers' names, derived from the names alone.

LDM numbers the UNet's blocks in one row, where diffusers nests levels and layers. The downsamplers
in that row tell how many layers a level has, so no config is needed.
Rombach et al. 2022 (arXiv:2112.10752), ldm/modules/diffusionmodules; mirrors the conversion in
diffusers.loaders.single_file_utils.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from jaxgen.weights import diffusers, open_clip, tensors
from jaxgen.weights.tensors import Tensor

Namer = Callable[[str], str | None]  # an old name -> the new one, None if it has none

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_L = {"v1": "cond_stage_model.transformer.", "xl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = {"v2": "cond_stage_model.model.", "xl": "conditioner.embedders.1.model."}

# Schedules, training state and losses: constants that inference derives anew, or never needs.
IGNORED = re.compile(
    r"model_ema\..*|betas|alphas_cumprod.*|sqrt_.*|log_one_minus_.*|posterior_.*|lvlb_weights|logvar"
    r"|global_step|denoiser\..*|.*\.position_ids|.*\.attn_mask|.*\.logit_scale|v_pred|ztsnr"
    r"|first_stage_model\.loss\..*|.*\.transformer\.text_projection\.weight"
)

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def kind_of(names: Iterable[str], where: str) -> str:
    """Which model a checkpoint is: "v1", "v2" or "xl".

    Raises ValueError that says what the file looks like when it is none of these.
    """
    names = set(names)

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    lacking = [part for part in (UNET, VAE) if not has(part)]
    if lacking:
        hint = next(
            (text for prefix, text in STRANGERS.items() if has(prefix)), "it is no pipeline"
        )
        raise ValueError(
            f"{where} has no tensors under {' and '.join(lacking)}: {hint}. Expected a whole SD "
            "1.x, 2.x or XL checkpoint with UNet, autoencoder and text encoder"
        )
    for kind, prefix in (("xl", OPEN_CLIP["xl"]), ("v2", OPEN_CLIP["v2"]), ("v1", CLIP_L["v1"])):
        if has(prefix):
            return kind
    refiner = has("conditioner.embedders.0.model.")
    raise ValueError(
        f"{where} has no text encoder of SD 1.x, 2.x or XL"
        + ("; it is the XL refiner, which jaxgen does not implement" if refiner else "")
    )


# How files begin that are often taken for checkpoints.
STRANGERS = {
    "lora_": "it is a LoRA, an addition to a checkpoint",
    "unet.": "it is a LoRA, an addition to a checkpoint",
    "control_model.": "it is a ControlNet",
    "down_blocks.": "it is one component in diffusers' layout; give the pipeline's folder",
    "encoder.": "it is an autoencoder alone",
    "model.diffusion_model.joint_blocks.": "it is Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "it is Flux",
    "double_blocks.": "it is Flux",
    UNET: "it has the UNet only",
}


def rename(stored: Mapping[str, Tensor], kind: str) -> dict[str, dict[str, Tensor]]:
    """component -> {diffusers' name: tensor}; every tensor is used, or on the list of ignored ones.

    Raises ValueError with all names that are not understood.
    """
    rest = {name: tensor for name, tensor in stored.items() if not IGNORED.fullmatch(name)}
    unknown: list[str] = []

    def take(prefix: str) -> dict[str, Tensor]:
        names = [name for name in rest if name.startswith(prefix)]
        return {name.removeprefix(prefix): rest.pop(name) for name in names}

    def renamed(prefix: str, namer: Callable[[Iterable[str]], Namer]) -> dict[str, Tensor]:
        part, found = take(prefix), {}
        new_name = namer(part)
        for old, tensor in part.items():
            new = new_name(old)
            if new is None or new in found:
                unknown.append(prefix + old)
            else:
                found[new] = tensor
        return found

    parts = {"unet": renamed(UNET, unet_names)}
    parts["vae"] = {n: _as_linear(n, t) for n, t in renamed(VAE, vae_names).items()}
    if kind in CLIP_L:
        parts["text_encoder"] = diffusers.with_text_model(take(CLIP_L[kind]), "CLIPTextModel")
    if kind in OPEN_CLIP:
        prefix = OPEN_CLIP[kind]
        part, more = open_clip.convert(take(prefix), projected=kind == "xl")
        parts["text_encoder_2" if kind == "xl" else "text_encoder"] = part
        unknown.extend(prefix + name for name in more)
    _raise_unknown([*unknown, *rest], len(stored))
    return parts


def unet_names(names: Iterable[str]) -> Namer:
    """The namer of a UNet's tensors, from the names without their prefix."""
    numbers = {int(n.split(".")[1]) for n in names if re.match(r"input_blocks\.\d{1,4}\.", n)}
    samplers = {
        int(n.split(".")[1]) for n in names if re.match(r"input_blocks\.\d{1,4}\.0\.op\.", n)
    }
    down = _numbered(numbers, samplers)
    layers = [sum(level == i for level, _ in down.values()) for i in range(len(samplers) + 1)]
    up = [(i, j) for i, count in enumerate(layers[::-1]) for j in range(count + 1)]

    def name(old: str) -> str | None:
        module, _, leaf = old.rpartition(".")
        if module in UNET_ENDS:
            return f"{UNET_ENDS[module]}.{leaf}"
        match = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d{1,4})\.(.+)", old)
        if not match:
            return None
        row, number, inner = match[1], int(match[2]), match[3]
        if row == "middle_block":
            return _middle(number, inner)
        if row == "input_blocks":
            if number in samplers and inner.startswith("0.op."):
                level = sorted(samplers).index(number)
                return f"down_blocks.{level}.downsamplers.0.conv.{leaf}"
            return _layer("down_blocks", down.get(number), inner)
        if re.match(r"[12]\.conv\.", inner):
            place = up[number] if number < len(up) else None
            return f"up_blocks.{place[0]}.upsamplers.0.conv.{leaf}" if place else None
        return _layer("up_blocks", up[number] if number < len(up) else None, inner)

    return name


def vae_names(names: Iterable[str]) -> Namer:
    """The namer of an autoencoder's tensors, from the names without their prefix.

    LDM numbers the decoder's levels by resolution, the highest 0; diffusers in order of use.
    """
    levels = {int(n.split(".")[2]) for n in names if re.match(r"decoder\.up\.\d{1,4}\.", n)}

    def name(old: str) -> str | None:
        if re.fullmatch(r"(post_)?quant_conv\.\w+|(en|de)coder\.conv_(in|out)\.\w+", old):
            return old
        match = re.fullmatch(r"(encoder|decoder)\.(\w+)\.(.+)", old)
        if not match:
            return None
        half, row, inner = match.groups()
        if row == "norm_out":
            return f"{half}.conv_norm_out.{inner}"
        found = _vae_middle(inner) if row == "mid" else _vae_level(row, inner, len(levels))
        return f"{half}.{found}" if found else None

    return name


def _numbered(numbers: set[int], samplers: set[int]) -> dict[int, tuple[int, int]]:
    """input block -> (level, layer) for those that are layers; block 0 is conv_in."""
    places, level, layer = {}, 0, 0
    for number in sorted(numbers - {0}):
        if number in samplers:
            level, layer = level + 1, 0
        else:
            places[number] = (level, layer)
            layer += 1
    return places


def _layer(row: str, place: tuple[int, int] | None, inner: str) -> str | None:
    """A resnet ("0....") or attention ("1....") of a level."""
    part, _, rest = inner.partition(".")
    if place is None:
        return None
    if part == "1":
        return f"{row}.{place[0]}.attentions.{place[1]}.{rest}"
    resnet = _substitute(RESNET, rest) if part == "0" else None
    return f"{row}.{place[0]}.resnets.{place[1]}.{resnet}" if resnet else None


def _middle(number: int, inner: str) -> str | None:
    if number == 1:
        return f"mid_block.attentions.0.{inner}"
    resnet = _substitute(RESNET, inner) if number in (0, 2) else None
    return f"mid_block.resnets.{number // 2}.{resnet}" if resnet else None


def _vae_middle(inner: str) -> str | None:
    part, _, rest = inner.partition(".")
    if part == "attn_1":
        attention = _substitute(VAE_ATTENTION, rest)
        return f"mid_block.attentions.0.{attention}" if attention else None
    resnet = _vae_resnet(rest) if part in ("block_1", "block_2") else None
    return f"mid_block.resnets.{int(part[-1]) - 1}.{resnet}" if resnet else None


def _vae_level(row: str, inner: str, levels: int) -> str | None:
    match = re.fullmatch(r"(\d{1,4})\.(?:block\.(\d{1,4})|(?:down|up)sample)\.(.+)", inner)
    if not match or row not in ("down", "up"):
        return None
    level = int(match[1]) if row == "down" else levels - 1 - int(match[1])
    if match[2] is None:
        return f"{row}_blocks.{level}.{row}samplers.0.{match[3]}"
    resnet = _vae_resnet(match[3])
    return f"{row}_blocks.{level}.resnets.{match[2]}.{resnet}" if resnet else None


def _vae_resnet(inner: str) -> str | None:
    module, _, leaf = inner.rpartition(".")
    if module == "nin_shortcut":
        return f"conv_shortcut.{leaf}"
    return inner if module in ("norm1", "conv1", "norm2", "conv2") else None


def _substitute(table: Mapping[str, str], name: str) -> str | None:
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{leaf}" if module in table else None


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """The autoencoder's attention, linear in diffusers, is made of 1x1 convolutions in LDM."""
    if ".attentions." in name and tensor.shape[2:] in ((1,), (1, 1)):
        return tensors.reshaped(tensor, tensor.shape[:2])
    return tensor


def _raise_unknown(unknown: list[str], count: int) -> None:
    if unknown:
        names = "; ".join(name[:200] for name in unknown[:12])
        rest = f" ... and {len(unknown) - 12} more" if len(unknown) > 12 else ""
        raise ValueError(
            f"{len(unknown)} of the file's {count} tensors have no place in the model: {names}"
            f"{rest}. Is it a checkpoint with parts added to it?"
        )
