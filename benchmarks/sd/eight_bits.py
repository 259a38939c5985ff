# SPDX-License-Identifier: MIT
"""Measures how far pictures of kernels in 8 bits lie from those of full ones.

    python -m benchmarks.sd.eight_bits --output docs/eight_bits.json

On the model that comes with jaxgen: bytes of UNet and text encoder, the ratio of peak to noise
against the pictures of full kernels, in float32 and in the same dtype, and, in float32, how many
prompts are drawn with all that they ask.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from benchmarks import result_file
from benchmarks.sd import deep_cache
from jaxgen import files, script
from jaxgen.cpu import tune
from jaxgen.measure import environment
from jaxgen.miniature import captioned, following
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.world import caption

KINDS: tuple[Literal["int8", "fp8", "w8a8"] | None, ...] = (None, "int8", "fp8", "w8a8")
NUM_STEPS, GUIDANCE_SCALE = 20, 3.0


@dataclass(frozen=True)
class Config:
    """Options of the measurement."""

    pictures: int = 16  # of held-out scenes, whose distances are measured
    prompts: int = 64  # of each group, whose pictures are read back; 0 leaves that out
    output: str = "runs/eight_bits.json"  # results go to this file


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    files.check_writable(Path(config.output))
    tune.tune_cpu()
    record = environment.record()
    results = []
    for row in rows(config):
        print(json.dumps(row), flush=True)
        results.append(row)
    result_file.write(Path(config.output), {"environment": record, "rows": results})


def rows(config: Config) -> Iterator[dict[str, Any]]:
    """A row for each dtype and kind; the first is of full kernels in float32."""
    prompts = list(caption.captions(captioned.world_scenes("test", config.pictures)))
    options = {"num_steps": NUM_STEPS, "guidance_scale": GUIDANCE_SCALE}
    full = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        for kind in KINDS:
            pipe = StableDiffusion.from_pretrained("shapes", dtype, quantize=kind)
            pictures = pipe(prompts, **options)
            full.setdefault("float32", pictures)
            full.setdefault(dtype.dtype.name, pictures)
            params = [pipe.params[name] for name in ("unet", "text_encoder")]
            row = {
                "kind": "8 bits", "dtype": dtype.dtype.name, "quantize": kind,
                "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
                "pictures": len(prompts), "steps": NUM_STEPS,
                "psnr_db": deep_cache.psnr(pictures, full["float32"]),
                "psnr_same_dtype_db": deep_cache.psnr(pictures, full[dtype.dtype.name]),
            }  # fmt: skip
            if config.prompts and dtype == jnp.float32 and kind in (None, "w8a8"):
                row |= followed(pipe, config.prompts)
            yield row


def followed(pipe: StableDiffusion, count: int) -> dict[str, int]:
    """How many prompts are drawn with all that they ask, and out of how many."""
    groups = following.measure(pipe, count).values()
    return {
        "prompts": sum(len(group.checks) for group in groups),
        "followed": sum(bool(check["all"]) for group in groups for check in group.checks),
    }


if __name__ == "__main__":
    script.main(main)
