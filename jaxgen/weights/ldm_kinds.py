# SPDX-License-Identifier: MIT
"""Which model a single-file checkpoint is, decided once from its UNet; what other files are.

Mirrors infer_diffusers_model_type of diffusers.loaders.single_file_utils, which asks the width of
the text that the UNet attends to; where that is no published one, its projections decide.
"""

import re
from collections.abc import Mapping

from jaxgen.weights.tensors import Tensor

UNET = "model.diffusion_model."
VAE = ("first_stage_model.", "vae.")
_ONE = {"text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model.")}
_TWO = {
    "text_encoder": ("conditioner.embedders.0.transformer.",),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
REFINERS_TEXT = "conditioner.embedders.0.model."  # it has the second of XL's encoders alone
# kind -> text encoder -> under which of these its tensors lie
TEXT: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "v1": _ONE,
    "v2": _ONE,
    "xl": _TWO,
    "playground": _TWO,
    "refiner": {"text_encoder_2": (REFINERS_TEXT,)},
}
WIDTHS = {768: "v1", 1024: "v2", 2048: "xl"}  # of the text, in the published models
REFINER_WIDTH = 1280
INPAINTING_CHANNELS = 9
OTHER_CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an InstructPix2Pix model",
}

LORA = "it is a LoRA; load its checkpoint, then give it to set_adapters, or with --lora"
# How files begin that are often taken for checkpoints.
STRANGERS = {
    "lora_": LORA,
    "unet.": LORA,
    "control_model.": "it is a ControlNet; load its checkpoint, and give this with controlnet=",
    "down_blocks.": "it is one component in diffusers' layout; give the pipeline's folder, and a "
    "UNet of its own, as SDXL-Lightning's, with unet=",
    "encoder.": "it is an autoencoder alone; give it with vae= and a checkpoint first",
    "first_stage_model.": "it has no UNet",
    "model.diffusion_model.joint_blocks.": "it is Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "it is Flux",
    "joint_blocks.": "it is Stable Diffusion 3",
    "double_blocks.": "it is Flux",
    UNET: "its network is not the UNet of Stable Diffusion",
}
WHOLE = "Expected a whole SD 1.x, 2.x or XL checkpoint with UNet, autoencoder and text encoder"
_XL_VAE = "madebyollin/sdxl-vae-fp16-fix"
VAE_IDS = {
    "xl": _XL_VAE,
    "refiner": _XL_VAE,
    "playground": "playgroundai/playground-v2.5-1024px-aesthetic",
}


def kind_of(stored: Mapping[str, Tensor], where: str, has_vae: bool = False) -> str:
    """Which model a checkpoint is: "v1", "v2", "xl", XL's "refiner" or "playground" (2.5).

    has_vae: an autoencoder is given beside the file. Raises ValueError that says what the file
    looks like when it is none of these, or what it lacks.
    """
    if f"{UNET}input_blocks.0.0.weight" not in stored:
        looks = (text for start, text in STRANGERS.items() if _has(stored, start))
        raise ValueError(
            f"{where} has no UNet under {UNET}input_blocks.: {next(looks, 'it is no pipeline')}. "
            f"{WHOLE}"
        )
    kind = _kind_of_unet(stored, where)
    if not has_vae and not any(_has(stored, start) for start in VAE):
        raise ValueError(
            f"{where} has no autoencoder: pass vae= a folder, a file or a Hub id, for example "
            f"{VAE_IDS.get(kind, 'stabilityai/sd-vae-ft-mse')}"
        )
    for starts in TEXT[kind].values():
        if not any(_has(stored, start) for start in starts):
            raise ValueError(
                f"{where} is an SD {kind} model without its text encoder: nothing lies under "
                f"{' or '.join(starts)}. {WHOLE}"
            )
    return kind


def without_prefix(stored: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of a file that wrote one more name before all or some, and that name.

    "module.", "state_dict." and the like are left by trainers. Other files come back as they are.
    """
    first = f"{UNET}input_blocks.0.0.weight"
    starts = [name.removesuffix(first) for name in stored if name.endswith(f".{first}")]
    if first in stored or len(starts) != 1:
        return stored, ""
    bare = {name.removeprefix(starts[0]): tensor for name, tensor in stored.items()}
    return (bare, starts[0]) if len(bare) == len(stored) else (stored, "")


def is_inpainting(stored: Mapping[str, Tensor]) -> bool:
    """Whether the UNet of a checkpoint takes a mask and a masked image beside the latents."""
    return _in_channels(stored) == INPAINTING_CHANNELS


def _kind_of_unet(stored: Mapping[str, Tensor], where: str) -> str:
    inside = [name for name in stored if name.startswith(UNET)]
    texts = [name for name in inside if name.endswith(".attn2.to_k.weight")]
    width = stored[texts[0]].shape[-1] if texts and stored[texts[0]].shape else 0
    added = f"{UNET}label_emb.0.0.weight" in stored
    if added and width == 1024:
        fault = "SD 2.1 unCLIP, which takes image embeddings"
    else:
        fault = OTHER_CHANNELS.get(_in_channels(stored))
    if fault:
        raise ValueError(f"{where} is {fault}; jaxgen does not implement it. {WHOLE}")
    if added and not _has(stored, f"{UNET}middle_block.1."):
        raise ValueError(
            f"{where} is a distilled XL model such as SSD-1B or Segmind-Vega: its UNet has no "
            "attention in the middle, and a single file does not tell its layers. Give its folder "
            "in diffusers' layout or its Hub id, for example segmind/SSD-1B"
        )
    if added and (width == REFINER_WIDTH or _has(stored, REFINERS_TEXT)):
        return "refiner"
    if added:  # the mark of EDM, with the statistics of its latents
        return "playground" if "edm_mean" in stored and not is_inpainting(stored) else "xl"
    projections = [name for name in inside if name.endswith(".1.proj_in.weight")]
    linear = bool(projections) and len(stored[projections[0]].shape) == 2
    return WIDTHS.get(width, "v2" if linear else "v1")


def _in_channels(stored: Mapping[str, Tensor]) -> int:
    shape = stored[f"{UNET}input_blocks.0.0.weight"].shape
    return shape[1] if len(shape) == 4 else 0


def _has(stored: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in stored)


# Additions to a model that are saved beside it, and that PyTorch diffusers passes over too.
ADAPTERS = {
    "a LoRA": re.compile(r"(lora_|lycoris_).*|.*[._]lora[._].*"),
    "a ControlNet": re.compile(r"control_model\..*|controlnet.*"),
    "an IP-Adapter": re.compile(r"ip_adapter.*|image_proj.*|.*\.to_[kv]_ip\..*"),
    "a motion module": re.compile(r".*motion_modules\..*"),
    "a hypernetwork": re.compile(r"hypernet.*"),
    "text embeddings": re.compile(r"(embedding_manager|embeddings|bundle_emb|emb_params).*"),
}


def stray_notes(names: list[str]) -> list[str]:
    """A note on the tensors of a single file that no part of the model has a place for."""
    if not names:
        return []
    kinds = [kind for kind, pattern in ADAPTERS.items() if any(pattern.fullmatch(n) for n in names)]
    inside = f"; among them is {', '.join(kinds)}, without effect here" if kinds else ""
    beginnings = sorted({name.split(".")[0][:60] for name in names})
    more = ", ..." if len(beginnings) > 6 else ""
    return [
        f"passed over {len(names)} tensors that are no part of the model "
        f"({', '.join(beginnings[:6])}{more}){inside}"
    ]
