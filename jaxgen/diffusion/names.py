# SPDX-License-Identifier: MIT
"""The names under which users know samplers: this project's, k-diffusion's, and web interfaces'.

sampler("dpmpp_2m")            ("dpmpp_2m", None)
sampler("dpmpp_2m_karras")     ("dpmpp_2m", "karras")
sampler("DPM++ 2M SDE Karras") ("dpmpp_2m_sde", "karras")
sampler("euler_a")             ("euler_ancestral", None)
"""

import re
from typing import Any

from jaxgen import fields
from jaxgen.diffusion import sigmas
from jaxgen.diffusion.scheduler_classes import SAMPLERS

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
