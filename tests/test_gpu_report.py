# SPDX-License-Identifier: MIT
"""The report of one GPU: its parts, what it says of those that failed, and what options gain."""

import json
import sys

import pytest

from benchmarks import gpu_report
from benchmarks.compiling import options

PART = gpu_report.Part("quick", ("-c", "print('without pytorch: absent')"), 60, {})


def test_every_prepared_option_has_its_parts_with_its_flags():
    parts = {part.name: part for part in gpu_report.parts(False)}
    for name in options.GPU:
        for case in ("conv", "diffusion"):
            assert options.flags((name,)) in parts[f"{case}_{name}"].environment["XLA_FLAGS"]
    assert parts["conv_plain"].arguments == parts["conv_graphs"].arguments
    laid_out = parts["diffusion_kernels"].arguments
    assert laid_out == (*parts["diffusion_plain"].arguments, "--kernel-layout", "cudnn")
    assert len(parts) == 5 + 2 * (1 + len(options.GPU)) + 1


def test_the_layout_of_kernels_is_no_flag_of_xla():
    assert options.flags((options.KERNELS, "graphs")) == options.flags(("graphs",))
    with pytest.raises(ValueError, match=r"unknown prepared option 'layout'; use .*, kernels"):
        options.flags(("layout",))


@pytest.mark.parametrize(
    ("part", "left", "end"),
    [
        (PART, 60, "finished"),
        (PART, 5, "left out: no time was left"),
        (PART._replace(needs=("no_such",)), 60, "left out: no_such is not installed"),
        (PART._replace(arguments=("-c", "exit(3)")), 60, "failed with status 3, see quick.txt"),
        (PART._replace(arguments=("-c", "import time; time.sleep(9)"), seconds=0.1), 60,
         "cut short after 0 s; what it had is kept"),
    ],
)  # fmt: skip
def test_each_part_says_how_it_ended(tmp_path, part, left, end):
    record = gpu_report.run(part, tmp_path, left)
    assert record["end"] == end
    if end == "finished":
        assert record["left_out"] == ["without pytorch: absent"]


def test_the_page_divides_the_rates_of_an_option_by_those_without():
    def result(rate):
        row = {"model": "vae", "network": "conv", "candidate": "jaxgen scan jit"}
        return {"rows": [row | {"images_per_second": {"median": rate}}]}

    results = {"conv_plain": result(200.0), "conv_graphs": result(300.0)}
    gains = gpu_report.gains(results)
    assert gains == {"graphs: vae conv, jaxgen scan jit": ["1.50"]}


def test_the_report_names_what_was_left_out(tmp_path):
    row = {"case": "decoder", "error": 1e-3, "seconds": 1e-6}
    (tmp_path / "correctness.json").write_text(json.dumps({"environment": {}, "rows": [row]}))
    (tmp_path / "training.json").write_text('{"environment": {}, "rows": [{"ki')
    records = [{"name": "correctness", "end": "finished", "left_out": ["without torch: absent"]}]
    records += [{"name": "training", "end": "cut short"}]
    text = gpu_report.report(tmp_path, [*records, {"name": "xl", "end": "left out: no time"}])
    assert "| xl | left out: no time |" in text
    assert f"- {tmp_path / 'training.json'} is not valid JSON" in text
    assert "- correctness: without torch: absent" in text
    assert "| decoder | 1.0e-03 | 1 |" in text


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("earlier", ["--small"], "earlier is not empty; give the report a new folder by --output"),
        ("file", ["--small"], "file/report.json cannot be written"),
        ("new", [], "JAX finds no GPU, but cpu; install the extra cuda13 or cuda12, or .* --small"),
        ("new", ["--minutes", "0"], "--minutes is 0.0; use a positive time"),
    ],
)
def test_a_report_that_cannot_be_made_is_refused_before_its_parts(
    monkeypatch, tmp_path, output, flags, message
):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "xl.json").write_text("{}")
    (tmp_path / "file").touch()
    monkeypatch.setattr(gpu_report, "backend", lambda: "cpu")
    monkeypatch.setattr(gpu_report, "run", None)
    monkeypatch.setattr(sys, "argv", ["gpu_report", *flags, "--output", str(tmp_path / output)])
    with pytest.raises(ValueError, match=message):
        gpu_report.main()
