# SPDX-License-Identifier: MIT
"""Names of a UNet's modules in LDM's spelling, from diffusers': the inverse of `ldm_names`."""

import re
from collections.abc import Iterable

from jaxgen.weights.ldm_names import RESNET, UNET_ENDS

PLACE = re.compile(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions)\.(\d+)\.(.+)")
SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv")


def of_unet(modules: Iterable[str]) -> dict[str, str]:
    """Names modules as LDM does: {diffusers' name: LDM's}; those that LDM has not are left out.

    modules: all of one UNet's, since LDM numbers its blocks in one row and a block's number follows
    from how many layers the levels before it have.
    """
    names = list(modules)
    ends = {new: old for old, new in UNET_ENDS.items()}
    parts = {new: old for old, new in RESNET.items()}
    down, up = _layers(names, "down"), _layers(names, "up")
    result = {name: ends[name] for name in names if name in ends}
    for name in names:
        place, sampler = PLACE.fullmatch(name), SAMPLER.fullmatch(name)
        if sampler:
            row, level = sampler[1], int(sampler[2])
            if row == "down":  # a block of its own, after the level's layers
                result[name] = f"input_blocks.{sum(down[: level + 1]) + level + 1}.0.op"
            else:  # the last part of the level's last block
                attends = any(n.startswith(f"up_blocks.{level}.attentions.") for n in names)
                last = sum(up[: level + 1]) - 1
                result[name] = f"output_blocks.{last}.{2 if attends else 1}.conv"
        elif place:
            row, level, layer = place[1], int(place[2] or 0), int(place[4])
            attends = place[3] == "attentions"
            inner = place[5] if attends else parts.get(place[5], place[5])
            blocks = {
                "down": f"input_blocks.{1 + sum(down[:level]) + level + layer}.{int(attends)}",
                "up": f"output_blocks.{sum(up[:level]) + layer}.{int(attends)}",
                "mid": f"middle_block.{1 if attends else 2 * layer}",
            }
            result[name] = f"{blocks[row]}.{inner}"
    return result


def _layers(names: list[str], row: str) -> list[int]:
    """Counts the resnets of every level of a row."""
    places = {
        (int(match[2]), int(match[4]))
        for match in map(PLACE.fullmatch, names)
        if match and match[1] == row and match[3] == "resnets"
    }
    levels = 1 + max((level for level, _ in places), default=-1)
    return [sum(level == i for level, _ in places) for i in range(levels)]
