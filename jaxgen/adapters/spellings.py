# SPDX-License-Identifier: MIT
"""Every name under which adapter files know a module of the model, looked up instead of parsed.

A file names a module by a stem, and what it adds there by the rest of the name ("lora_up.weight").
Trainers spell stems in many ways, but from the model's own names all of them follow:

    diffusers, PEFT     unet.down_blocks.0.attentions.0....attn1.to_q       and without "unet."
    diffusers, old      unet.down_blocks.0.attentions.0....attn1.processor.to_q_lora
    PEFT alone          base_model.model.down_blocks.0....
    kohya               lora_unet_down_blocks_0_attentions_0_..._attn1_to_q
    kohya, LDM's names  lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q
    text encoders       text_encoder.M, lora_te_M; of XL text_encoder[_2].M, lora_te1_M, lora_te2_M
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxgen.adapters import ldm_stems

UNET_PREFIXES = ("lora_unet_", "lycoris_")
TEXT_PREFIXES: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    # encoders of the model -> prefixes of kohya's stems, of each; the first is written
    ("text_encoder",): (("lora_te_", "lora_te1_"),),
    ("text_encoder", "text_encoder_2"): (("lora_te1_", "lora_te_"), ("lora_te2_",)),
    ("text_encoder_2",): (("lora_te2_", "lora_te_"),),  # XL's refiner has the second alone
}
ONE_PROJECTION = re.compile(r"(.*\.attn[12])\.(to_[qkv]|to_out)(?:\.0)?")
TEXT_PROJECTION = re.compile(r"(.*\.self_attn)\.(q|k|v|out)_proj")


class Module(NamedTuple):
    """A module of the model: the component it is in, and its name there in diffusers' spelling."""

    component: str
    name: str

    def __str__(self) -> str:
        return f"{self.component}.{self.name}"


def stems(modules: Mapping[str, Iterable[str]]) -> dict[str, Module]:
    """Lists all stems of a model whose components have these modules: {stem: module}.

    modules: "unet", "text_encoder" and, in XL, "text_encoder_2", each with its modules' names.
    Where two modules could have one spelling, the one of the earlier component has it.
    """
    table: dict[str, Module] = {}
    prefixes = kohya_prefixes(modules)
    for component, names in modules.items():
        names = list(names)
        ldm = ldm_stems.of_unet(names) if component == "unet" else {}
        kohya = prefixes[component]
        for name in names:
            module = Module(component, name)
            spellings = [f"{component}.{n}" for n in (name, *_old(name))]
            spellings += [name, *_old(name), f"base_model.model.{name}"]
            spellings += [start + name.replace(".", "_") for start in kohya]
            if name in ldm:
                spellings += [f"diffusion_model.{ldm[name]}"]
                spellings += [start + ldm[name].replace(".", "_") for start in kohya]
            for spelling in spellings:
                table.setdefault(spelling, module)
    return table


def kohya_prefixes(components: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The beginnings of kohya's stems for the UNet and the text encoders among these components."""
    encoders = tuple(sorted(name for name in components if name.startswith("text_encoder")))
    texts = zip(encoders, TEXT_PREFIXES.get(encoders, ()), strict=True)
    return {"unet": UNET_PREFIXES, **dict(texts)}


def _old(name: str) -> list[str]:
    """Lists how diffusers called an attention's projections before 2023, without their leaf."""
    unet, text = ONE_PROJECTION.fullmatch(name), TEXT_PROJECTION.fullmatch(name)
    if unet:
        return [f"{unet[1]}.processor.{unet[2]}_lora"]
    return [f"{text[1]}.to_{text[2]}_lora"] if text else []
