# SPDX-License-Identifier: MIT
"""The README.md of an exported model: what it is, how it was made, how well it follows prompts."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from jaxgen.miniature.model import GUIDANCE_SCALE, NUM_STEPS
from jaxgen.runs import command_line
from jaxgen.weights.diffusers import Checkpoint
from jaxgen.world import reader

OWN_SAMPLER = "the model's own sampler"
HEAD = """---
license: mit
library_name: diffusers
pipeline_tag: text-to-image
---
# {title}

A complete Stable Diffusion in miniature (text encoder, latent autoencoder, conditional UNet),
trained from nothing by jaxgen's `experiments/latent_autoencoder.py` and `latent_diffusion.py`
{data}.
PyTorch diffusers loads this folder as it is, and so does jaxgen:

```python
import jaxgen

pipe = jaxgen.StableDiffusion.from_pretrained("this folder")
prompt = {prompt}
images = pipe(prompt, num_steps={steps}, guidance_scale={guidance:g})
```

```python
import diffusers

pipe = diffusers.StableDiffusionPipeline.from_pretrained("this folder")
prompt = {prompt}
image = pipe(prompt, num_inference_steps={steps}, guidance_scale={guidance:g}).images[0]
```
"""


def write(
    title: str,
    data: str,
    prompt: str,
    checkpoint: Checkpoint,
    stages: Sequence[tuple[str, Any, int]],
    accuracy: dict[str, dict[str, Any]] | None,
    *,
    num_steps: int = NUM_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    sampler: str | None = None,
    seed: int = 0,
) -> str:
    """The card as Markdown.

    data: "on ...". prompt: one whose words the model knows. stages: script, configuration and
    steps of each run, in order. accuracy: `following.table`, for models of the rendered world; the
    keywords are those that `following.measure` had.
    """
    head = HEAD.format(
        title=title, data=data, prompt=json.dumps(prompt, ensure_ascii=False), steps=num_steps,
        guidance=guidance_scale,
    )  # fmt: skip
    parts = [head, _sizes(checkpoint), _words(checkpoint)]
    if accuracy is not None:
        method = (
            f"{sampler or OWN_SAMPLER}, {num_steps} steps, guidance "
            f"{guidance_scale:g}, seeds from {seed}"
        )
        parts.append(_accuracy(accuracy, method))
    parts += [_stage(i + 1, *stage) for i, stage in enumerate(stages)]
    return "\n".join(parts)


def _sizes(checkpoint: Checkpoint) -> str:
    lines = ["## Networks", "", "| part | class | parameters |", "|---|---|---|"]
    for name, component in checkpoint.components.items():
        count = sum(math.prod(tensor.shape) for tensor in component.tensors.values())
        lines.append(f"| {name} | {component.class_name} | {count:,} |")
    return "\n".join([*lines, ""])


def _words(checkpoint: Checkpoint) -> str:
    words = checkpoint.tokenizers["tokenizer"].words or ()
    if len(words) > 200:
        return f"It knows the {len(words)} words of its captions.\n"
    return "## Words it knows\n\n" + ", ".join(sorted(words)) + "\n"


def _accuracy(accuracy: dict[str, dict[str, Any]], method: str) -> str:
    """The table of `following.table` in percent; method: how the pictures were drawn."""
    lines = [
        "## How well it follows prompts",
        "",
        f"Share of prompts in %, read back from the pictures by `jaxgen.world.reader`: {method}. "
        '"Held out" are pairs of shape and colour that training never showed.',
        "",
        "| prompts of | number | " + " | ".join(reader.ATTRIBUTES) + " |",
        "|---" * (len(reader.ATTRIBUTES) + 2) + "|",
    ]
    for name, row in accuracy.items():
        cells = [f"{100 * row[a]['share']:.1f}" if a in row else "" for a in reader.ATTRIBUTES]
        lines.append(f"| {name} | {row['prompts']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _stage(number: int, name: str, config: Any, done: int) -> str:
    """The options of one run that change its numbers, as flags of the script, paths left out."""
    values = dataclasses.asdict(config)
    omitted = {"autoencoder", "begin_with", *command_line.changeable(config)} - {"steps"}
    options = {k: v for k, v in (values.pop("run") | values).items() if k not in omitted}
    flags = " ".join(_flag(k.replace("_", "-"), v) for k, v in options.items() if v is not None)
    begun = ", begun with the parameters of the run before" if config.begin_with else ""
    return f"## Run {number}: {name}, {done:,} steps{begun}\n\n```\n{flags}\n```\n"


def _flag(name: str, value: Any) -> str:
    """One option as the command line takes it."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} " + (" ".join(map(str, value)) if isinstance(value, tuple) else str(value))
