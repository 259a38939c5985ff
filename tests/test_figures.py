# SPDX-License-Identifier: MIT
"""The figures that README, pages and notebooks give are those of the raw results they link to."""

import json
import pathlib
import re
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


@pytest.mark.parametrize("race", ["cpu_sd15", "cpu_sd15_winograd"])
@pytest.mark.parametrize("part", ["text encoder", "UNet step", "VAE decode", "images"])
def test_seconds_of_stable_diffusion_are_those_of_the_race(part, race):
    seconds = {
        row["candidate"]: statistics.median(row["seconds_per_step"])
        for row in rows(race)
        if row["part"] == part
    }
    shown = {"text encoder": "{:.0f} ms", "images": "{:.1f} s"}.get(part, "{:.2f} s")
    scale = 1000 if part == "text encoder" else 1
    cells = [shown.format(scale * value) for value in seconds.values()]
    name = "whole picture" if part == "images" else part
    assert f"| {name} | {' | '.join(cells)} |" in text_of("docs/stable_diffusion.md")
    if part == "images" and race == "cpu_sd15":
        ours, theirs, flax = cells
        headline = f"{ours}; PyTorch diffusers {theirs}, Flax diffusers {flax}"
        assert headline in text_of("README.md")
        assert f"size takes {ours} in" in text_of("docs/start.md").replace("\n", " ")


def test_bounds_of_a_tpu_are_those_of_its_compiler():
    rates = []
    for name in ("tpu_v6e_sdxl", "tpu_v6e_sdxl_4"):
        divided = (row for row in rows(name) if "data over" in row["program"])  # of the images
        (whole,) = (row for row in divided if row["images_per_step"])
        rates.append(whole["images_per_step"] / whole["seconds_estimated"] / whole["num_devices"])
    sentence = f"draw {rates[0]:.2f} images/s of 1024x1024 pixels with SDXL in 20 steps one by one"
    text = text_of("docs/run_on.md").replace("\n", " ")
    assert f"{sentence}, and {rates[1]:.2f} four at a time" in text


def test_figures_of_deep_cache_are_those_of_the_measurement():
    rows = json.loads((ROOT / "docs" / "deep_cache.json").read_text())["rows"]
    text = text_of("docs/stable_diffusion.md").replace("\n", " ")
    for row in rows:
        if row["model"] == "shapes" and row["interval"] > 1:
            low, median, _ = row["psnr_db"]
            cells = f"{row['steps']}, {row['interval']} | {row['speed']:.1f}"
            assert f"| {cells} | {median:.1f} dB | {low:.1f} dB |" in text
    whole, cached = (row for row in rows if row["model"] == "sd15")
    flops = [whole[f"{kind}product_flops"] / 1e12 for kind in ("", "shallow_")]
    seconds = whole["row_seconds"][0], statistics.mean(cached["row_seconds"][1:])
    assert f"has {flops[0]:.2f} TFLOP of products and took {seconds[0]:.0f} s" in text
    assert f"has {flops[1]:.2f} TFLOP and took {seconds[1]:.1f} s" in text


def test_memory_of_xl_in_8_bits_is_that_of_the_tpu_compiler():
    full, quantized = (
        {row["program"].split(": ")[1].split(",")[0]: row["memory_bytes"] / 1e9 for row in found}
        for found in (rows("tpu_v5e_sdxl")[:3], rows("tpu_v5e_sdxl_int8")[:3])
    )
    text = text_of("docs/stable_diffusion.md").replace("\n", " ")
    unet = f"then needs {quantized['UNet']:.1f} GB instead of {full['UNet']:.1f} GB"
    assert f"{unet}, and the decoder {quantized['VAE decode']:.1f} GB" in text


def test_figures_of_eight_bits_are_those_of_the_measurement():
    rows = json.loads((ROOT / "docs" / "eight_bits.json").read_text())["rows"]
    text = text_of("docs/stable_diffusion.md").replace("\n", " ")
    full, *others = rows
    for row in others:
        pairs = [row["psnr_db"], row["dtype"] == "bfloat16" and row["psnr_same_dtype_db"]]
        cells = [f" {pair[1]:.1f} dB, {pair[0]:.1f} dB " if pair else " " for pair in pairs]
        name = f"{row['quantize'] or 'full kernels'} in {row['dtype']}"
        assert f"| {name} | {row['bytes'] / 1e6:.2f} MB |{'|'.join(cells)}|" in text
    assert f"Full kernels in float32 take {full['bytes'] / 1e6:.2f} MB" in text
    (w8a8,) = (row for row in others if "followed" in row)
    shares = f"{w8a8['followed']} of {w8a8['prompts']} prompts are drawn with all that they ask"
    assert shares in text
    assert f"with full kernels {full['followed']})" in text


def test_figures_of_compiled_8_bit_programs_are_the_compilers():
    rows = json.loads((ROOT / "benchmarks/results/gpu_h100_8bits.json").read_text())["rows"]
    text = text_of("docs/stable_diffusion.md")
    for row in (row for row in rows if "UNet" in row["program"]):
        kind = row["program"].split(",")[0].removeprefix("sd15 in ").replace("sd15", "full kernels")
        sizes = [row[f"{what}_bytes"] / 1e9 for what in ("argument", "temp")]
        cells = f"{sizes[0]:.2f} GB | {sizes[1]:.2f} GB | {row['kernels']:,}"
        assert f"| {kind} | {cells} | {row['bytes'] / 1e9:.1f} GB |" in text


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


def test_figures_of_the_mnist_preset_are_those_of_its_runs():
    ways, seeds = (
        {
            run["label"]: "\n".join(run["lines"])
            for run in json.loads(
                (ROOT / "docs" / "evaluations" / f"gan_mnist_{name}.json").read_text()
            )["runs"]
        }
        for name in ("ways", "seeds")
    )

    def found(pattern, lines):
        return float(re.search(pattern, lines)[1])

    right, sure, entropy = r"classifier: ([\d.]+)", r"confidence +([\d.]+)", r"entropy +([\d.]+) of"
    page = text_of("docs/objectives.md").replace("\n", " ")
    judges = {found(right, lines) for lines in ways.values()}
    assert len(judges) == 1
    assert f"has {found(right, seeds['0']):.3f} of the real test images right" in page
    assert f"the other two's {judges.pop():.3f}." in page
    assert all("missing classes  none" in lines for lines in (*ways.values(), *seeds.values()))
    notebook = text_of("notebooks/03_gan.py")
    cells = [found(pattern, seeds["0"]) for pattern in (right, sure, entropy)]
    assert f"| {' | '.join(f'{cell:.3f}' for cell in cells)} | none |" in notebook
    plain = notebook.replace("\n# ", " ")
    real = found(r"confidence +[\d.]+ +real ([\d.]+)", ways["without labels"])
    assert f"of MNIST is {real:.3f}," in plain
    assert f"same preset without labels {found(sure, ways['without labels']):.3f}:" in plain


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_runs_of_colour_that_were_cut_short_are_said_to_be_so(name):
    record = json.loads((ROOT / "docs" / f"cifar10_{name}.json").read_text())
    page = text_of("docs/objectives.md").replace("\n", " ")
    shown = f"`{name}.py --preset cifar10` after "
    steps = re.search(rf"{shown}([\d,]+) of {record['planned_steps']:,} steps", page).group(1)
    if name == "gan":  # its picture is of the last fifty
        assert f"(the curve goes on to {record['steps']})" in page
        assert int(steps) == record["steps"] // 50 * 50
    else:
        assert steps == f"{record['steps']:,}"
    assert f"{record['core_minutes']} minutes of one CPU core" in page
    assert record["rows"][-1]["step"] == record["steps"]
    assert f"were {record['training_images']:,} of a copy of the training set" in page


def test_shares_of_the_judge_of_stacked_digits_are_those_of_its_runs():
    runs = json.loads((ROOT / "docs" / "evaluations" / "stacked.json").read_text())["runs"]
    lines = "\n".join(line for run in runs for line in run["lines"])
    shares = [float(share) for share in re.findall(r"classifier: ([\d.]+) of the single", lines)]
    text = text_of("docs/objectives.md").replace("\n", " ")
    assert len(shares) == len(runs)
    assert f"has {min(shares):.3f} to {max(shares):.3f} of the test images right" in text


def test_differences_between_the_revisions_of_the_iwae_table_are_those_of_the_results():
    paths = (ROOT / "docs" / "iwae_table").glob("*-stage4.json")
    rows = [row for path in paths for row in json.loads(path.read_text())["rows"]]

    def nats(k, objective):
        """Of revision 1, and of the code."""
        of = [row for row in rows if (row["k"], row["objective"]) == (k, objective)]
        return [[row["nats"] for row in of if row.get("revision", 1) == i] for i in (1, 2)]

    text = text_of("docs/objectives.md").replace("\n", " ")
    of_k1, *of_k5 = (nats(*pair) for pair in ((1, "vae"), (5, "vae"), (5, "iwae")))
    costs = [statistics.mean(new) - statistics.mean(old) for old, new in (of_k1, *of_k5)]
    old, new = map(statistics.stdev, of_k1)
    assert f"five stages {costs[0]:.2f} nats with k = 1 (three seeds each" in text
    assert f"standard deviations of {new:.2f} and {old:.2f})" in text
    assert f"{costs[1]:.2f} of the VAE and {costs[2]:.2f} of IWAE." in text


def test_the_full_run_of_the_iwae_table_is_the_one_of_its_page():
    new, old = (
        json.loads((ROOT / "docs" / "iwae_table" / f"{name}-stage7.json").read_text())
        for name in ("1x1-vae-seed0", "1x1")
    )
    row = new["rows"][0]
    text = text_of("docs/objectives.md").replace("\n", " ")
    assert row["revision"] == 2
    assert row["active"] == "19"
    assert abs(row["nats"] - 86.76) < 0.15
    assert f"in one go: {row['nats']:.2f} nats where the paper has 86.76" in text
    assert f"moves a figure by {row['pixels']:.2f} (one standard deviation)" in text
    assert (
        f"full, one seed each, ends {row['nats'] - old['rows'][0]['nats']:.2f} nats apart" in text
    )
    assert f"to itself: {new['us_per_step'] / 1e3:.2f} ms a step, and 2 hours and 10" in text
    log = text_of("CHANGELOG.md").replace("\n", " ")
    assert f"ends at {row['nats']:.2f} nats where the paper has 86.76" in log
    minutes = 9_774_400 * new["us_per_step"] / 60e6
    assert abs(minutes - 130) < 5  # of the median epoch


def test_the_modern_recipe_of_the_iwae_table_is_compared_as_its_table_has_it():
    text = text_of("docs/objectives.md")
    line = r"\| {} \| 1 \| 1 \| VAE \| 121 \| \d+ \| 3 \| ([\d.]+) \| (\+- [\d.]+) \(seeds\)"
    modern, paper = (
        " ".join(re.search(line.format(name), text).groups()) for name in ("modern", "paper")
    )
    joined = text.replace("\n", " ")
    assert f"the first cell has {modern} and {paper} nats (three seeds each;" in joined
    assert f"makes {59600 // 128} updates an epoch where the code makes {59600 // 20:,}." in joined


def test_microseconds_of_the_iwae_table_are_those_of_the_measurements():
    after, before = (
        json.loads((ROOT / "docs" / f"iwae_step{name}.json").read_text())["rows"]
        for name in ("", "_before")
    )
    now, then = (
        [statistics.median(row["us_per_step"]) / 1e3 for row in rows] for rows in (after, before)
    )
    products, states = ([row[name] / 1e3 for row in after] for name in ("product_us", "state_us"))
    shares = [100 * (p + s) / t for p, s, t in zip(products, states, now, strict=True)]
    text = text_of("docs/objectives.md").replace("\n", " ")
    assert (
        f"first cell takes {now[0]:.2f} ms of a quiet CPU core, and of 1x5 {now[1]:.2f} ms" in text
    )
    assert f"take {products[0]:.2f} and {products[1]:.2f} ms" in text
    assert (
        f"state {states[0]:.2f} ms: a step comes to {shares[0]:.0f} and {shares[1]:.0f} %" in text
    )
    assert f"they took {then[0]:.2f} and {then[1]:.2f} ms" in text
    assert f"cell takes {now[0] / then[0]:.2f} of its time" in text_of("CHANGELOG.md").replace(
        "\n", " "
    )
