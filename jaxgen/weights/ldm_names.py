# SPDX-License-Identifier: MIT
"""Names of tensors in LDM and SGM checkpoints -> diffusers' names, derived from the names alone.

LDM numbers the UNet's blocks in one row, where diffusers nests levels and layers. The downsamplers
in that row tell how many layers a level has, so no config is needed.
Rombach et al. 2022 (arXiv:2112.10752), ldm/modules/diffusionmodules; mirrors the conversion in
diffusers.loaders.single_file_utils.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from jaxgen import files
from jaxgen.weights import diffusers, open_clip, tensors
from jaxgen.weights.ldm_kinds import TEXT, UNET, VAE
from jaxgen.weights.tensors import Tensor

TEXT_LAYERS = {768: 12, 1024: 23, 1280: 32}  # of the published encoders, by their width
Namer = Callable[[str], str | None]  # an old name -> the new one, None if it has none

# Schedules and marks: constants that inference derives anew, or never needs.
IGNORED = re.compile(
    r"betas|alphas_cumprod.*|sqrt_.*|log_one_minus_.*|posterior_.*|lvlb_weights|logvar"
    r"|global_step|denoiser\..*|.*\.position_ids|.*\.attn_mask|.*\.logit_scale|v_pred|ztsnr"
    r"|.*\.transformer\.text_projection\.weight|edm_(mean|std)"
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
# Names that LDM's attention and transformers' text encoder share with diffusers.
ATTENTION = re.compile(
    r"(norm|proj_in|proj_out|transformer_blocks\.\d{1,4}\."
    r"(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)|norm[123]))\.(weight|bias)"
)
TEXT_NAME = re.compile(
    r"text_model\.(embeddings\.(token|position)_embedding\.weight|final_layer_norm\.(weight|bias)"
    r"|encoder\.layers\.(\d{1,6})\."
    r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12]|layer_norm[12])\.(weight|bias))"
    r"|text_projection\.weight"
)
VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}


def rename(
    stored: Mapping[str, Tensor], kind: str
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """component -> {diffusers' name: tensor}, and the names that have no place in the model.

    The constants on the list of ignored ones are in neither.
    """
    rest = {name: tensor for name, tensor in stored.items() if not IGNORED.fullmatch(name)}
    strays: list[str] = []

    def take(prefix: str) -> dict[str, Tensor]:
        names = [name for name in rest if name.startswith(prefix)]
        return {name.removeprefix(prefix): rest.pop(name) for name in names}

    def renamed(prefix: str, part: dict[str, Tensor], namer: Namer) -> dict[str, Tensor]:
        result, unnamed = rename_part(part, namer)
        strays.extend(prefix + name for name in unnamed)
        return result

    unet = take(UNET)
    parts = {"unet": renamed(UNET, unet, unet_names(unet))}
    for prefix in VAE:
        vae = take(prefix) if "vae" not in parts else {}
        if vae:
            linear = renamed(prefix, vae, vae_names(vae)).items()
            parts["vae"] = {name: as_linear(name, tensor) for name, tensor in linear}
    places = [(name, start) for name, starts in TEXT[kind].items() for start in starts]
    for name, prefix in places:
        part = take(prefix) if name not in parts else {}
        if part and prefix.endswith(".transformer."):
            parts[name] = diffusers.with_text_model(part, "CLIPTextModel")
        elif part:
            parts[name], unnamed = open_clip.convert(part, projected=name == "text_encoder_2")
            strays.extend(prefix + old for old in unnamed)
    for name in TEXT[kind]:
        if name in parts:
            parts[name], unused = used_layers(parts[name], kind)
            strays.extend(f"{name}.{old}" for old in unused)
    return parts, strays + list(rest)


def rename_part(part: Mapping[str, Tensor], namer: Namer) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a part in their new names, and the old names that have none.

    Raises ValueError when two tensors have one place.
    """
    result: dict[str, Tensor] = {}
    strays = []
    for old, tensor in part.items():
        new = namer(old)
        if new in result:
            raise ValueError(f"two tensors have the place {files.printable(new)} in the model")
        if new is None or not new.endswith((".weight", ".bias")):
            strays.append(old)
        else:
            result[new] = tensor
    return result, strays


def strays_of_part(stored: Iterable[str], prefix: str, unnamed: Iterable[str] = ()) -> list[str]:
    """The names that have no place, in a file that is opened for one part of a model alone.

    prefix: of that part's names. unnamed: those of its names that `rename_part` gave back. The
    other parts of a whole checkpoint are no strays.
    """
    texts = [start for kind in TEXT.values() for starts in kind.values() for start in starts]
    beside = [name for name in stored if not name.startswith((prefix, UNET, *VAE, *texts))]
    return [name for name in (*unnamed, *beside) if not IGNORED.fullmatch(name)]


def used_layers(part: Mapping[str, Tensor], kind: str) -> tuple[dict[str, Tensor], list[str]]:
    """A text encoder without what its model never runs, and the names of that.

    The 24th layer of SD 2's encoder is not among these names: all of its files have it.
    """
    most = num_text_layers(part, kind)
    usual = 1 if kind == "v2" else 0
    used, strays = {}, []
    for name, tensor in part.items():
        match = TEXT_NAME.fullmatch(name)
        layer = match[4] if match else None
        beyond = int(layer) - most if layer and most is not None else -1
        if match and beyond < 0:
            used[name] = tensor
        elif not match or beyond >= usual:
            strays.append(name)
    return used, strays


def num_text_layers(part: Mapping[str, Tensor], kind: str) -> int | None:
    """How many layers of a text encoder are used; None is as many as there are.

    SD 2 reads the last but one of OpenCLIP-H's 24 layers, so files may hold 23 or 24 of them.
    """
    embedding = part.get("text_model.embeddings.token_embedding.weight")
    width = embedding.shape[-1] if embedding is not None and embedding.shape else 0
    return TEXT_LAYERS.get(width, TEXT_LAYERS[1024] if kind == "v2" else None)


def unet_names(names: Iterable[str]) -> Namer:
    """The namer of a UNet's tensors, from the names without their prefix."""
    numbers = {int(n.split(".")[1]) for n in names if re.match(r"input_blocks\.\d{1,4}\.", n)}
    samplers = {
        int(n.split(".")[1]) for n in names if re.match(r"input_blocks\.\d{1,4}\.0\.op\.", n)
    }
    down = _numbered(numbers, samplers)
    per_level = Counter(level for level, _ in down.values())
    layers = [per_level[i] for i in range(len(samplers) + 1)]
    level_of = {number: i for i, number in enumerate(sorted(samplers))}
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
                return f"down_blocks.{level_of[number]}.downsamplers.0.conv.{leaf}"
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
        place = _vae_middle(inner) if row == "mid" else _vae_level(row, inner, len(levels))
        return f"{half}.{place}" if place else None

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
        known = ATTENTION.fullmatch(rest)
        return f"{row}.{place[0]}.attentions.{place[1]}.{rest}" if known else None
    resnet = _substitute(RESNET, rest) if part == "0" else None
    return f"{row}.{place[0]}.resnets.{place[1]}.{resnet}" if resnet else None


def _middle(number: int, inner: str) -> str | None:
    if number == 1:
        return f"mid_block.attentions.0.{inner}" if ATTENTION.fullmatch(inner) else None
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


def as_linear(name: str, tensor: Tensor) -> Tensor:
    """Turns the 1x1 convolutions of LDM's attention into diffusers' linear layers."""
    if ".attentions." in name and tensor.shape[2:] in ((1,), (1, 1)):
        return tensors.reshaped(tensor, tensor.shape[:2])
    return tensor
