# SPDX-License-Identifier: MIT
"""Makes pictures that teach the small model a new shape, the square ring; measures the result.

Examples:
    python experiments/teach_shape.py --pictures runs/square_rings
    python experiments/lora.py --data runs/square_rings --run-dir runs/ring --rank 3 --steps 1200 \\
        --text-targets q_proj k_proj v_proj out_proj --batch-size 16 --learning-rate 4e-3 \\
        --schedule cosine --warmup-steps 50
    python experiments/lora.py --run-dir runs/ring --action export --output runs/ring_files
    python experiments/teach_shape.py --lora runs/ring_files --output runs/ring.json

Half of the pictures show the new shape and half the world as the model knows it, so that it keeps
its words. An independent reader says which attributes of their prompts the pictures show.
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxgen import files, script
from jaxgen.cpu import tune
from jaxgen.miniature import following, new_shape
from jaxgen.runs import command_line, run_folder
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import hub


@dataclass(frozen=True)
class Config:
    """Options: which of the two to do, make pictures or measure, and how much."""

    pictures: Path | None = None  # write captioned pictures into this new folder
    num_pictures: int = 600
    lora: str | None = None  # measure this LoRA
    strengths: tuple[float, ...] = (0.0, 1.0)  # of it
    num_prompts: int = 100  # of each of the six groups
    output: Path = Path("outputs/teach_shape.json")  # the shares


READ_WITH = {
    ("pictures", True): ("num_pictures",),
    ("lora", True): ("strengths", "num_prompts", "output"),
}


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    script.compilation_cache()
    tune.tune_cpu()
    if (config.pictures is None) == (config.lora is None):
        raise ValueError("give --pictures a new folder to write, or --lora a file to measure")
    command_line.check_read(config, READ_WITH)
    if min(config.num_prompts, config.num_pictures) < 2:
        raise ValueError("--num-prompts and --num-pictures must be 2 or more")
    if config.pictures is not None:
        files.check_new(config.pictures)
        new_shape.write(config.pictures, config.num_pictures)
        print(f"{config.pictures}: {config.num_pictures} captioned pictures")
        return
    files.check_writable(config.output)
    pipe = StableDiffusion.from_pretrained(hub.EMBEDDED)
    shares = {}
    for strength in config.strengths:
        pipe.set_adapters([(config.lora, strength)])
        shares[str(strength)] = measure(pipe, config.num_prompts)
    run_folder.write_json(config.output, {"prompts": config.num_prompts, "shares": shares})
    print(config.output)


def measure(pipe: StableDiffusion, count: int) -> dict[str, dict[str, Any]]:
    """Measures the shares of prompts that hold each attribute, of the new shape and old words."""
    groups = new_shape.measure(pipe, count) | following.table(following.measure(pipe, count))
    shares: dict[str, dict[str, Any]] = {}
    for group, row in groups.items():
        shares[group] = {name: own["share"] for name, own in row.items() if name != "prompts"}
        print(f"{group}: {100 * shares[group]['all']:.0f} % right in everything", flush=True)
    return shares


if __name__ == "__main__":
    script.main(main)
