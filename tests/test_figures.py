# SPDX-License-Identifier: MIT
"""The figures that README, pages and notebooks give are those of the raw results they link to."""

import json
import pathlib
import statistics

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLLOWING = json.loads((ROOT / "docs" / "prompt_following.json").read_text())["groups"]


def rows(name):
    """The rows of a result in benchmarks/results."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def text_of(page):
    return (ROOT / page).read_text()


def faster(model, network):
    """How many times faster than PyTorch a model trains, at batch 128 in scanned steps."""
    (row,) = [
        row for row in rows(f"cpu_training_{network}_avx2")
        if (row["model"], row["batch_size"], row["candidate"]) == (model, 128, "jaxgen scan jit")
    ]  # fmt: skip
    return f"{row['faster_than']['pytorch']['median']:.2f}x"


def test_headline_of_training_is_that_of_the_races():
    parts = [f"autoencoder {faster('autoencoder', 'dense')} dense"]
    parts[0] += f", {faster('autoencoder', 'conv')} conv"
    parts += [f"{m.upper()} {faster(m, 'dense')}, {faster(m, 'conv')}" for m in ("vae", "gan")]
    assert f"| {'; '.join(parts)} |" in text_of("README.md")


@pytest.mark.parametrize("part", ["text encoder", "UNet step", "VAE decode", "images"])
def test_seconds_of_stable_diffusion_are_those_of_the_race(part):
    seconds = {
        row["candidate"]: statistics.median(row["seconds_per_step"])
        for row in rows("cpu_sd15")
        if row["part"] == part
    }
    shown = {"text encoder": "{:.0f} ms", "images": "{:.1f} s"}.get(part, "{:.2f} s")
    scale = 1000 if part == "text encoder" else 1
    cells = [shown.format(scale * seconds[c]) for c in ("jaxgen", "pytorch", "flax_diffusers")]
    name = "whole picture" if part == "images" else part
    assert f"| {name} | {' | '.join(cells)} |" in text_of("docs/stable_diffusion.md")
    if part == "images":
        ours, theirs, flax = cells
        headline = f"{ours}; PyTorch diffusers {theirs}, Flax diffusers {flax}"
        assert headline in text_of("README.md")
        assert f"size takes {ours} in" in text_of("docs/start.md").replace("\n", " ")


def test_table_of_deep_cache_is_that_of_the_measurement():
    page = text_of("docs/stable_diffusion.md")
    rows = json.loads((ROOT / "docs" / "deep_cache.json").read_text())["rows"]
    cached = [row for row in rows if row.get("interval", 1) > 1]
    for row in cached:
        low, median, _ = row["psnr_db"]
        cells = f"{row['steps']}, {row['interval']} | {row['speed']:.1f} | {median} dB | {low} dB"
        assert f"| {cells} |" in page
    assert len(cached) == 6


def test_headline_of_followed_prompts_is_that_of_the_measurement():
    one, two = (
        100 * FOLLOWING[f"seen, {n}"]["all"]["share"] for n in ("one object", "two objects")
    )
    count = sum(group["prompts"] for group in FOLLOWING.values())
    text = text_of("README.md")
    assert f"{one:.1f} % one object, {two:.1f} % two and their relation" in text
    assert f"of {count:,} |" in text


@pytest.mark.parametrize("group", FOLLOWING)
def test_table_of_followed_prompts_is_that_of_the_measurement(group):
    attributes = ("count", "shape", "color", "size", "relation", "background", "all")
    cells = [f"{100 * FOLLOWING[group][a]['share']:.1f}" for a in attributes]
    source = text_of("notebooks/05_text_to_image_from_nothing.py")
    assert f"# | {group} | {' | '.join(cells)} |" in source
