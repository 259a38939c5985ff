# SPDX-License-Identifier: MIT
"""The names under which users know samplers: this project's, k-diffusion's, and web interfaces'.

sampler("dpmpp_2m")            ("dpmpp_2m", None)
sampler("dpmpp_2m_karras")     ("dpmpp_2m", "karras")
sampler("DPM++ 2M SDE Karras") ("dpmpp_2m_sde", "karras")
sampler("euler_a")             ("euler_ancestral", None)
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxgen import fields
from jaxgen.diffusion import sigmas
from jaxgen.diffusion.scheduler_classes import CLASSES, OF_EDM, SAMPLERS

# in lower case, with underscores
ALIASES = {
    "euler_a": "euler_ancestral",
    "dpm2_a": "dpm2_ancestral",
    "dpm_2": "dpm2",
    "dpm_2_a": "dpm2_ancestral",
    "dpm_2_ancestral": "dpm2_ancestral",
    "plms": "pndm",
    "uni_pc": "unipc",
}


def sampler(name: Any) -> tuple[str, str | None]:
    """(a sampler of SAMPLERS, the levels that the name asks for) of a name in any usual spelling.

    Raises ValueError with the known names.
    """
    if isinstance(name, str) and len(name) < 100:
        plain = re.sub(r"[\s_-]+", "_", name.strip().lower().replace("++", "pp"))
        plain = plain.removeprefix("k_")
        levels = next((kind for kind in sigmas.LEVELS if plain.endswith(f"_{kind}")), None)
        plain = plain.removesuffix(f"_{levels}")
        plain = ALIASES.get(plain, plain)
        if plain in SAMPLERS:
            return plain, levels
    raise ValueError(
        f"unknown sampler {fields.shown(name)}; known are {', '.join(SAMPLERS)}, each also with "
        f"_{', _'.join(sigmas.LEVELS)} after it, and the spellings of web interfaces "
        '("DPM++ 2M Karras", "Euler a")'
    )


def one(name: str, levels: str | None = None) -> str:
    """The one plain name of a sampler and its levels: "dpmpp_2m_karras"."""
    plain, named = sampler(name)
    levels = named or levels
    return f"{plain}_{levels}" if levels in sigmas.LEVELS else plain


def scheduler_class(own: Any, name: str | None) -> tuple[str, Mapping[str, Any], str | None]:
    """(class, what the name fixes in it, the levels that the name asks for).

    own: the class of the model's scheduler config, which a name of None takes. Raises ValueError
    for a class, or a pair of both, that has no sampler here.
    """
    kind = own if isinstance(own, str) else ""
    if kind.startswith("FlowMatch"):
        raise ValueError(
            f"the scheduler {fields.shown(own)} is for models of flow matching, whose noise levels "
            "are not those of Stable Diffusion; no sampler here can run them"
        )
    if name is not None:
        plain, levels = sampler(name)
        class_name, fixed = SAMPLERS[plain]
        if not kind.startswith("EDM"):
            return class_name, fixed, levels
        if class_name not in OF_EDM or levels is not None:
            known = [own_name for own_name, (cls, _) in SAMPLERS.items() if cls in OF_EDM]
            raise ValueError(
                f"the model has noise levels of EDM ({fields.shown(own)}), which the sampler "
                f"{name} does not have; use one of {', '.join(known)}"
            )
        return OF_EDM[class_name], fixed, None
    if not isinstance(own, str) or own not in CLASSES:
        raise ValueError(
            f"scheduler class {fields.shown(own)} is not implemented; known are "
            f"{', '.join(CLASSES)}. Choose a sampler by name instead: {', '.join(SAMPLERS)}"
        )
    return own, {}, None
