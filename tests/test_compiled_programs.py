# SPDX-License-Identifier: MIT
"""The texts of GPU programs, and the check against committed results."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compile_for_gpu
from benchmarks.compiling import regression
from benchmarks.tables import page
from jaxgen.measure import hlo, thunks

ROOT = Path(__file__).parent.parent
# shortened from H100 programs of this package
PROGRAM = """HloModule jit_run, is_scheduled=true
%fused_rows (param_0: u8[1000,28], param_1: s32[]) -> bf16[8,28] {
  %param_0 = u8[1000,28]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %flat = u8[28000]{0} bitcast(%param_0)
  %rows = u8[8,28]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={8,28}
  ROOT %convert = bf16[8,28]{1,0} convert(%rows)
}
%fused_put (param_0.1: f32[50], param_1.1: f32[], param_2.1: s32[]) -> f32[50] {
  %param_0.1 = f32[50]{0} parameter(0)
  %param_1.1 = f32[] parameter(1)
  %one = f32[1]{0} bitcast(%param_1.1)
  %param_2.1 = s32[] parameter(2)
  ROOT %put = f32[50]{0} dynamic-update-slice(%param_0.1, %one, %param_2.1)
}
%gemm_fusion (param_0.2: bf16[8,28], param_1.2: f32[28,4]) -> bf16[8,4] {
  %param_0.2 = bf16[8,28]{1,0} parameter(0)
  %param_1.2 = f32[28,4]{1,0} parameter(1)
  ROOT %dot = bf16[8,4]{1,0} dot(%param_0.2, %param_1.2), lhs_contracting_dims={1}
}
%body (state: (s32[], f32[50], u8[1000,28], f32[28,4])) -> (s32[], f32[50], u8[1000,28], f32[28,4]) {
  %state = (s32[], f32[50]{0}, u8[1000,28]{1,0}, /*index=3*/f32[28,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %losses = f32[50]{0} get-tuple-element(%state), index=1
  %images = u8[1000,28]{1,0} get-tuple-element(%state), index=2
  %kernel = f32[28,4]{1,0} get-tuple-element(%state), index=3
  %batch = bf16[8,28]{1,0} fusion(%images, %i), kind=kLoop, calls=%fused_rows
  %product = bf16[8,4]{1,0} fusion(%batch, %kernel), kind=kCustom, calls=%gemm_fusion
  %conv = (bf16[8,4]{1,0}, u8[0]{0}) custom-call(%product, %kernel), custom_call_target="__cudnn$convForward"
  %loss = f32[] constant(1)
  %put.1 = f32[50]{0} fusion(%losses, %loss, %i), kind=kLoop, calls=%fused_put
  ROOT %next = (s32[], f32[50]{0}, u8[1000,28]{1,0}, f32[28,4]{1,0}) tuple(%i, %put.1, %images, %kernel)
}
%condition (state.1: (s32[], f32[50], u8[1000,28], f32[28,4])) -> pred[] {
  %state.1 = (s32[], f32[50]{0}, u8[1000,28]{1,0}, f32[28,4]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}
ENTRY %main (start: (s32[], f32[50], u8[1000,28], f32[28,4])) -> (s32[], f32[50], u8[1000,28], f32[28,4]) {
  %start = (s32[], f32[50]{0}, u8[1000,28]{1,0}, f32[28,4]{1,0}) parameter(0)
  %table = f32[28,4]{1,0} get-tuple-element(%start), index=3
  %copy = f32[28,4]{0,1} copy(%table)
  ROOT %while = (s32[], f32[50]{0}, u8[1000,28]{1,0}, f32[28,4]{1,0}) while(%start), condition=%condition, body=%body
}
"""  # noqa: E501
THUNKS = """000: kCommandBuffer [source       | next=015 (1)]
    001: kCopy         [source | sink] kCopy
    002: kCustomKernel [source | sink] loop_broadcast_fusion grid: [1, 1, 1] threads: [50, 1, 1]
015: kWhile        [prev=000 (1) | next=000 (1)]
condition:
    016: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1] threads: [1, 1, 1]
  body:
    000: kCommandBuffer [source       | next=033 (1)]
        017: kCustomKernel [source       | sink        ] loop_select_fusion grid: [1, 1, 1]
        018: kCustomKernel [source       | next=022 (4)] loop_add_fusion_10 grid: [1, 1, 1]
    033: kConvolution   [prev=000 (1) | next=000 (1)] kConvolution
    034: kAllReduceStart [prev=033 (1) | next=035 (1)] kAllReduceStart
    035: kAllReduceDone [prev=034 (1) | sink] kAllReduceDone
021: kCopy         [prev=015 (1) | sink] kCopy
"""


def test_the_bytes_of_a_round_are_those_of_slices_and_of_what_changes():
    program = hlo.parse(PROGRAM)
    rows = 8 * 28  # of 1000, as u8; the whole table stands in a bitcast that nobody reads
    batch, kernel, product = 2 * 8 * 28, 4 * 28 * 4, 2 * 8 * 4
    round_bytes = (rows + 4 + batch) + (batch + kernel + product) + (product + kernel + product)
    round_bytes += 0 + 4 + 4 + 4  # nothing of the losses, but the loss, its place, what is written
    assert sum(hlo.traffic(program, name) for name in hlo.main_loop(program)) == round_bytes
    assert hlo.traffic(program, program.entry) == round_bytes + 2 * kernel
    assert hlo.wide(program) == (1, 1)


def test_texts_that_are_cut_or_no_program_are_refused():
    with pytest.raises(ValueError, match="no line ENTRY"):
        hlo.parse("HloModule jit_run")
    with pytest.raises(ValueError, match="is not closed"):
        hlo.parse(PROGRAM.replace("constant(true)", "constant(true"))
    with pytest.raises(ValueError, match="has no thunks"):
        thunks.parse("condition:\n")


def test_launches_are_those_of_a_round_of_the_loop():
    launches = thunks.launches(thunks.parse(THUNKS))
    assert launches == thunks.Launches(kernels=5, launches=4, graphs=1, kernels_once=3)


def test_a_program_whose_loop_is_no_step_is_counted_whole():
    launches = thunks.launches(thunks.parse(THUNKS), of_main_loop=False)
    assert launches == thunks.Launches(kernels=8, launches=6, graphs=2, kernels_once=0)


def test_a_loop_inside_a_graph_launches_nothing():
    lines = ["000: kCommandBuffer [source | sink]"]
    lines += [f"    {line}" for line in THUNKS.splitlines()[3:-1]]
    launches = thunks.launches(thunks.parse("\n".join(lines)))
    assert launches == thunks.Launches(kernels=5, launches=0, graphs=0, kernels_once=0)


def test_a_program_without_a_loop_is_counted_whole():
    launches = thunks.launches(thunks.parse("\n".join(THUNKS.splitlines()[:3])))
    assert launches == thunks.Launches(kernels=2, launches=1, graphs=1, kernels_once=0)


ROW = {
    "kind": "gpu", "target": "h100", "num_devices": 1, "program": "unet", "error": None,
    "dtype": "bfloat16", "kernels": 100, "launches": 20, "bytes": 1000, "temp_bytes": 0,
    "alias_bytes": 500, "calls": {"__cudnn$fmhaSoftmax": 32}, "wide_convolutions": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"launches": 21, "bytes": 900, "calls": {"__cudnn$fmhaSoftmax": 33}}, None),
        ({"launches": 22}, "launches rose from 20 to 22"),
        ({"bytes": 1051}, "bytes rose from 1,000 to 1,051"),
        ({"temp_bytes": 1}, "temp_bytes rose from 0 to 1"),
        ({"calls": {}}, "attention is fused in 0 places and was in 32"),
        ({"wide_convolutions": 2}, "2 convolutions have operands in float32"),
        ({"wide_convolutions": 2, "dtype": "float32"}, None),
        ({"alias_bytes": 0}, "a donation is lost"),
        ({"num_devices": 8}, "commit its row"),
        ({"error": "does not compile", "bytes": 9999}, None),  # a failure of its own
    ],
)
def test_what_became_worse_is_named(change, message):
    sentences = regression.worse([ROW], [ROW | change])
    assert len(sentences) == (message is not None)
    assert message is None or message in sentences[0]


def test_attention_that_is_not_fused_is_named_also_where_it_never_was():
    unet = ROW | {"program": "tiny, batch 1, data over 1: UNet, 20 steps (one counted)"}
    [sentence] = regression.worse([unet | {"calls": {}}], [unet | {"calls": {}}])
    assert "attention is fused in 0 places, by the rule in 8" in sentence
    assert regression.worse([unet], [unet]) == []


def test_committed_programs_fuse_attention_by_the_rule():
    rows = regression.read(list(ROOT.glob("benchmarks/results/gpu_*_sd15.json")))
    places = [
        (row["calls"].get(regression.FUSED_ATTENTION, 0), regression.fused_by_rule(row))
        for row in rows
        if "UNet" in row["program"]
    ]
    assert all(fused == rule for fused, rule in places)
    assert {32, 20} <= {fused for fused, _ in places}  # on A100 not those of 160 features


def test_of_a_program_that_was_compiled_twice_the_newest_row_counts(tmp_path):
    for name, date, kernels in (("a", "2026-11-30", 100), ("b", "2026-11-29", 200)):
        content = {"environment": {"date": date}, "rows": [ROW | {"kernels": kernels}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for names in ("ab", "ba"):
        before = regression.read([tmp_path / f"{name}.json" for name in names])
        [sentence] = regression.worse(before, [ROW | {"kernels": 150}])
        assert "kernels rose from 100 to 150" in sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rows": [{"kind": "gpu"}]}', "is no result of a benchmark"),
        ('{"environment": {"date": "d"}, "rows": [{"kind": "gpu"}]}', "no result of compile_for_"),
        ('{"environment": {"date": "d"}, "rows": []}', "is no result of compile_for_gpu"),
        ('{"environment": {}, "rows": [ROW]}', "is no result of compile_for_gpu"),
        ('{"environment": {"date": "d"}, "rows": [ROW, 1]}', "is no result of compile_for_gpu"),
        ("[" * 100_000, "is nested deeper than 64 levels"),
        ('{"environment":', "is not valid JSON"),
    ],
)
def test_a_file_that_nothing_can_be_compared_with_is_refused(tmp_path, text, message):
    path = tmp_path / "before.json"
    path.write_text(text.replace("ROW", json.dumps(ROW)))
    with pytest.raises(ValueError, match=message):
        regression.read([path])


def test_the_page_has_equal_programs_in_one_row_and_says_that_nothing_ran():
    row = ROW | {
        "program": "vae dense, step jit", "graphs": 3, "argument_bytes": 7_000_000,
        "collectives": {"all-reduce": 2}, "collective_bytes": 5_000_000, "wide_products": 4,
    }  # fmt: skip
    broken = {"program": "b", "error": "too big", "target": "a100", "num_devices": 8, "kind": "gpu"}
    where = {"versions": {}, "flags": {}, "commit": "c", "command": "c", "date": "d", "cores": 2}
    where |= {"load_average": 0, "driver": "none", "python": "3"}
    rows = [row, row | {"program": "vae dense, step pmap"}, broken]
    text = page.page({"gpu.json": {"environment": where, "rows": rows}})
    assert "Nothing here ran on a GPU" in text
    assert "### 8 A100" in text
    assert "| b | FAILED: too big |" in text
    figures = "100 | 20 | 3 | 0.001 MB | 7 MB | 0 MB | 0.0005 MB | 2 all-reduce (5 MB) | 32 | 0 | 4"
    assert f"| vae dense, step jit, pmap | {figures} |" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--targets", "b9000"], "unknown target 'b9000'; use h100, a100"),
        (["--models", "sd4"], "unknown model 'sd4'"),
        (["--device-counts", "0"], "--device-counts is 0; use 1 to 64"),
        (["--device-counts"], "no device count is named; use one or more, as --device-counts 1 8"),
        (["--targets"], "no target is named"),
        (["--models", "sd15", "--axes"], "no axis is named; use one or more of data, model"),
        (["--images", "99999999999999999999"], "--images is 9+; use 1 to 256"),
        (["--output", "pyproject.toml/gpu.json"], "pyproject.toml/gpu.json cannot be written"),
        (["--prepared", "speed"], "unknown prepared option 'speed'; use graphs"),
        (["--prepared", "graphs", "scans"], "two of graphs, scans set xla_gpu_enable_command"),
        (["--check", "pyproject.toml"], "pyproject.toml is not valid JSON"),
        (["--check", "nowhere.json"], "nowhere.json is missing"),
    ],
)
def test_bad_arguments_of_the_gpu_script_are_refused(monkeypatch, flags, message):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["compile_for_gpu", *flags])
    with pytest.raises(ValueError, match=message):
        compile_for_gpu.main()


CUDA = importlib.util.find_spec("jax_cuda13_plugin")


@pytest.mark.skipif(CUDA is not None, reason="the CUDA wheels are here")
def test_without_the_cuda_wheels_the_gpu_script_names_the_extra(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compile_for_gpu"])
    with pytest.raises(ImportError, match=r'pip install -e "\.\[cuda13\]"'):
        compile_for_gpu.main()


@pytest.mark.skipif(CUDA is None, reason="needs the extra cuda13")
def test_train_steps_and_pipelines_compile_for_a_gpu(tmp_path):
    output = tmp_path / "gpu.json"
    flags = ["--models", "vae", "tiny", "--targets", "h100", "--dtypes", "bfloat16"]
    flags += ["--dispatches", "scan", "--axes", "data"]
    command = [sys.executable, "-m", "benchmarks.compile_for_gpu", *flags, "--output", str(output)]
    flagless = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=flagless, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2 * (6 + 4)
    for row in rows:
        assert row["kernels"] > 0
        assert row["wide_convolutions"] == 0
        if "scan" in row["program"]:
            assert row["alias_bytes"] > 0
            assert row["collectives"].get("all-reduce", 0) > 0 or row["num_devices"] == 1
