# SPDX-License-Identifier: MIT
"""Settings of a picture as the one text that most programs for Stable Diffusion read.

AUTOMATIC1111's web UI writes it into a PNG under the key `parameters`, and galleries and other
programs look for it there:

    a lighthouse at dusk
    Negative prompt: blur
    Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 512x768, Model: sd-v1-5
"""

import json
from collections.abc import Mapping
from typing import Any

KEY = "parameters"
_SAMPLERS = {
    "ddim": "DDIM", "ddpm": "DDPM", "pndm": "PLMS", "lcm": "LCM", "tcd": "TCD",
    "euler": "Euler", "euler_ancestral": "Euler a", "heun": "Heun", "lms": "LMS",
    "dpm2": "DPM2", "dpm2_ancestral": "DPM2 a", "deis": "DEIS", "unipc": "UniPC",
    "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_2s": "DPM++ 2S",
    "dpmpp_3m": "DPM++ 3M",
    # a model's own sampler goes by its class in diffusers
    "DDIMScheduler": "DDIM", "DDPMScheduler": "DDPM", "PNDMScheduler": "PLMS",
    "EulerDiscreteScheduler": "Euler", "EulerAncestralDiscreteScheduler": "Euler a",
    "HeunDiscreteScheduler": "Heun", "LMSDiscreteScheduler": "LMS", "LCMScheduler": "LCM",
    "DPMSolverMultistepScheduler": "DPM++ 2M", "UniPCMultistepScheduler": "UniPC",
}  # fmt: skip
_NAMES = {
    "steps": "Steps", "sampler": "Sampler", "guidance_scale": "CFG scale", "seed": "Seed",
    "size": "Size", "model": "Model", "strength": "Denoising strength", "clip_skip": "Clip skip",
    "guidance_rescale": "CFG Rescale", "eta": "Eta", "software": "Version",
}  # fmt: skip


def text(settings: Mapping[str, Any]) -> str:
    """Writes the text for settings such as prompt, negative_prompt, steps, seed and width.

    Settings that are None or that it has no name for are left out.
    """
    values = {name: value for name, value in settings.items() if value is not None}
    if "width" in values and "height" in values:
        values["size"] = f"{values['width']}x{values['height']}"
    if "sampler" in values:
        values["sampler"] = _sampler(str(values["sampler"]))
    if values.get("clip_skip"):  # there 1 is the last layer; here 0 leaves none out
        values["clip_skip"] += 1
    lines = [str(values.get("prompt", ""))]
    if values.get("negative_prompt"):
        lines.append(f"Negative prompt: {values['negative_prompt']}")
    neutral = {"clip_skip": 0, "guidance_rescale": 0}
    pairs = [
        f"{shown}: {_quoted(values[name])}"
        for name, shown in _NAMES.items()
        if name in values and values[name] != neutral.get(name)
    ]
    return "\n".join([*lines, ", ".join(pairs)])


def _sampler(name: str) -> str:
    """Names the sampler as that program does, with its noise levels behind it, if any."""
    for levels in ("karras", "exponential", "beta"):
        if name.endswith("_" + levels):
            return f"{_sampler(name.removesuffix('_' + levels))} {levels.capitalize()}"
    return _SAMPLERS.get(name, name)


def _quoted(value: Any) -> str:
    """Puts a value in quotation marks where a comma or colon in it would end it."""
    shown = str(value)
    return json.dumps(shown, ensure_ascii=False) if set(shown) & set(',:\n"') else shown
