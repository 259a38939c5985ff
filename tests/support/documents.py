# SPDX-License-Identifier: MIT
"""The documents' blocks of code, run as they stand.

A block that cannot run here says why, in the line before it: `<!-- not run: it needs a TPU -->`.
Everything runs in this process, of eight devices, and in short form: a picture is drawn in at most
ten steps, and a command that trains does two steps of a small batch on one device (on eight where
it says how), with narrow convolutions and without pictures, or two more after --resume.
"""

import contextlib
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from support import scripts

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>python|bash)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TRAINS = ("autoencoder", "vae", "gan", "latent_autoencoder", "latent_diffusion")
ELSEWHERE = ("pip ", "python3 -m venv", "git ")  # .ci/run installs


def blocks(page: pathlib.Path):
    """(language, text, reason why it is not run or None) of each block, in order."""
    return [(m["language"], m["text"], m["reason"]) for m in BLOCK.finditer(page.read_text())]


def run_page(page: pathlib.Path, without: str | None = None) -> int:
    """Runs the blocks of a page in order, in the current folder; gives how many.

    Those that contain the text `without` are left out.
    """
    names, count = {"__name__": "__main__"}, 0
    for language, text, reason in blocks(page):
        if reason or (without is not None and without in text):
            continue
        count += 1
        if language == "python":
            text = re.sub(r"num_steps=(\d+)", lambda m: f"num_steps={min(int(m[1]), 10)}", text)
            exec(compile(text, f"{page.name}, block {count}", "exec"), names)
        else:
            for line in text.splitlines():
                run_command(line)
    return count


def run_command(line: str) -> None:
    """Runs one line of a shell; a command that trains, in short form."""
    line = line.split("  #")[0].strip()
    if not line or line.startswith(ELSEWHERE):
        return
    words = shlex.split(line.partition("python ")[2])
    if words[0] == "-c":
        exec(words[1], {})
        return
    name = re.fullmatch(r"experiments/(\w+)\.py", words[0])
    assert name, f"{line!r} is no script: run it here, or say in the document why not"
    flags = short(words[1:]) if name[1] in TRAINS else words[1:]
    ends = pytest.raises(SystemExit) if "--help" in flags else contextlib.nullcontext()
    with ends:
        scripts.call(name[1], *flags)


def short(flags: list[str]) -> list[str]:
    """The flags of a run of two steps of sixteen images, or of four steps where it goes on."""
    if "--action" in flags or "--help" in flags:
        return flags
    text = re.sub(r"--(steps|epochs) \S+ ?", "", " ".join(flags) + " ").split()
    text += ["--draw-every", "0"] + ["--num-devices", "1"] * ("--parallel" not in flags)
    if "--resume" in flags:
        return [*text, "--steps", "4"]
    text += ["--width", "4"] * ("conv" in flags) + ["--batch-size", "16"]
    return [*text, "--steps", "2"]


def stand_ins(folder: pathlib.Path) -> None:
    """Writes what the documents call path/to/...: a model, MNIST's files, a folder of pictures."""
    rng = np.random.default_rng(0)
    place = folder / "path" / "to"
    (place / "mnist_idx").mkdir(parents=True)
    (place / "model").symlink_to(scripts.ROOT / "jaxgen/models/shapes")
    (folder / "this folder").symlink_to(scripts.ROOT / "jaxgen/models/shapes")
    (folder / "experiments").symlink_to(scripts.ROOT / "experiments")
    for split, count in (("train", 256), ("t10k", 16)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for array, name in ((images, "images-idx3"), (labels, "labels-idx1")):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (place / "mnist_idx" / f"{split}-{name}-ubyte").write_bytes(head + array.tobytes())
    for i in range(320):
        path = place / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
