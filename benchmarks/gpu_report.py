# SPDX-License-Identifier: MIT
"""Everything to learn from one GPU within 25 minutes: is it correct, how fast, which options pay.

    python -m benchmarks.gpu_report
    python -m benchmarks.gpu_report --small --minutes 5      # its machinery, on any machine

Each part is a process of its own with a time of its own; what fails or has no time left is named.
Results: a new folder with raw JSON, report.json, and the page report.md.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from benchmarks import result_file
from benchmarks.compiling import options
from benchmarks.tables import page
from jaxgen import files, script

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
PLAIN = "plain"


@dataclass(frozen=True)
class Config:
    """Options of the report."""

    small: bool = False  # tiny cases, to try the report itself
    minutes: float = 25.0  # no part begins later, and none goes on longer
    output: str = "runs/gpu_report"  # a new or empty folder, for the results


class Part(NamedTuple):
    """A process of the report; it writes `name`.json into the folder if it is a benchmark."""

    name: str
    arguments: tuple[str, ...]  # of Python; "{output}" is the path without .json
    seconds: float  # at most
    environment: dict[str, str]
    needs: tuple[str, ...] = ()  # packages without which the part is left out


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    folder, began, records = Path(config.output), time.monotonic(), []
    check(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts(config.small):
        left = 60 * config.minutes - (time.monotonic() - began)
        records.append(run(part, folder, left))
        print(f"{part.name}: {records[-1]['end']}", flush=True)
        result_file.write(folder / "report.json", {"config": asdict(config), "parts": records})
        result_file.write_text(folder / "report.md", report(folder, records))
    print(folder / "report.md")
    sys.exit(any(record["end"].startswith("failed") for record in records))


def check(config: Config, folder: Path) -> None:
    """Raises ValueError where there is no time, no GPU, or no empty folder to write into."""
    if not config.minutes > 0:
        raise ValueError(f"--minutes is {config.minutes}; use a positive time")
    files.check_writable(folder / "report.json")
    if folder.exists() and any(folder.iterdir()):  # a part left out would show an older result
        raise ValueError(f"{folder} is not empty; give the report a new folder by --output")
    if not config.small and (platform := backend()) != "gpu":
        raise ValueError(
            f"JAX finds no GPU, but {platform}; install the extra cuda13 or cuda12, or try the "
            "report itself by --small"
        )


def backend() -> str:
    """The backend of JAX, asked in another process: this one must leave a GPU to the parts."""
    question = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    return answer.stdout.strip() or "no device"


def parts(small: bool) -> list[Part]:
    """The parts in order of worth: correctness, speed beside peers, then each prepared option."""
    benchmark = ("-m", "benchmarks", "--output", "{output}")
    quick = ("--turns", "1", "--seconds", "0.01", "--no-peers") if small else ("--turns", "3")
    model = ("--models", "tiny", "--num-steps", "2") if small else ("--models", "sd15")
    conv = ("--models", "vae", "--networks", "conv", "--dtypes", "bfloat16", "--no-peers")
    conv += ("--batch-sizes", "8" if small else "128", *quick)
    training = ("--models", "vae", "--networks", "dense", "--batch-sizes", "8") if small else ()
    precise = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAXGEN_TEST_PLATFORM": "cuda"}
    precise |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    smallest = ("--small",) if small else ()

    correctness = ("-m", "benchmarks.correctness", *smallest, "--output", "{output}.json")
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py")
    listed = [
        Part("correctness", correctness, 150, {}),
        Part("tests", tests, 120, {} if small else precise, ("pytest", "pytest_timeout")),
        Part("training", (*benchmark, *training, *quick), 300, {}),
        Part("stable_diffusion", (*benchmark, *model, *quick), 240, {}),
    ]
    if not small:
        listed.append(Part("xl", (*benchmark, "--models", "sdxl", *quick), 240, {}))
    alone = () if small else ("--no-peers",)
    diffusion = (*benchmark, *model, "--batch-sizes", "1", *quick, *alone)
    for name in (PLAIN, *options.GPU):
        flags = "" if name == PLAIN or small else options.flags((name,))  # a CPU knows none of them
        setting = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        listed.append(Part(f"conv_{name}", (*benchmark, *conv), 60, setting))
        listed.append(Part(f"diffusion_{name}", diffusion, 75, setting))
    laid_out = (*diffusion, "--kernel-layout", "cudnn")
    listed.append(Part(f"diffusion_{options.KERNELS}", laid_out, 75, {}))
    return listed


def run(part: Part, folder: Path, left: float) -> Row:
    """Runs a part in what is left of the time; its record says how it ended."""
    record: Row = {"name": part.name, "flags": part.environment.get("XLA_FLAGS", "")}
    absent = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if absent:
        return record | {"end": f"left out: {', '.join(absent)} is not installed"}
    if left < 10:
        return record | {"end": "left out: no time was left"}
    output = folder / part.name
    arguments = [argument.replace("{output}", str(output)) for argument in part.arguments]
    began = time.monotonic()
    with Path(f"{output}.txt").open("w") as log:
        try:
            code = subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, env=os.environ | part.environment,
                stdout=log, stderr=subprocess.STDOUT, timeout=min(part.seconds, left), check=False,
            ).returncode  # fmt: skip
            end = "finished" if code == 0 else f"failed with status {code}, see {part.name}.txt"
        except subprocess.TimeoutExpired:
            end = f"cut short after {time.monotonic() - began:.0f} s; what it had is kept"
    seconds = time.monotonic() - began
    return record | {"end": end, "seconds": seconds, "left_out": left_out(Path(f"{output}.txt"))}


def left_out(log: Path) -> list[str]:
    """What a part itself says that it left out: absent peers, cases without time, skipped tests."""
    signs = ("without ", "SKIPPED ")
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(signs) or "Not measured:" in line]


def report(folder: Path, records: Sequence[Row]) -> str:
    """The page of the parts: how each ended, what the options change, and all tables."""
    results, faults = _results(folder, records)
    ends = [[record["name"], record["end"]] for record in records]
    omitted = [f"- {r['name']}: {line}" for r in records for line in r.get("left_out", ())]
    omitted += [f"- {fault}" for fault in faults]
    lines = ["# One GPU", "", *page.table(["part", "end"], ends), ""]
    lines += ["Left out by the parts, or unreadable:", "", *(omitted or ["- nothing"])]
    lines += ["", "## Prepared options", ""]
    lines += ["Images a second, divided by those without the option."]
    lines += ["One process after the other: differences of a few per cent mean nothing.", ""]
    rows = [[name, *cells] for name, cells in gains(results).items()]
    lines += (
        page.table(["option and case", "times plain"], rows) if rows else ["None was measured."]
    )
    if "correctness" in results:
        found = results["correctness"]["rows"]
        cells = [[r["case"], f"{r['error']:.1e}", f"{r['seconds'] * 1e6:.0f}"] for r in found]
        lines += ["", "## Against float64", "", *page.table(["case", "error", "us"], cells)]
    measured = {f"{name}.json": r for name, r in results.items() if "ceilings" in r}
    return "\n".join([*lines, "", page.sections(measured)])


def gains(results: dict[str, Row]) -> dict[str, list[str]]:
    """By option and case, how many times faster than plain a candidate is."""
    ratios = {}
    for case in ("conv", "diffusion"):
        plain = _rates(results.get(f"{case}_{PLAIN}"))
        for option in (*options.GPU, options.KERNELS):
            for key, rate in _rates(results.get(f"{case}_{option}")).items():
                if key in plain:
                    ratios[f"{option}: {key}"] = [f"{rate / plain[key]:.2f}"]
    return ratios


def _rates(result: Row | None) -> dict[str, float]:
    rows = result["rows"] if result else []
    return {
        f"{row['model']} {row.get('part', row.get('network'))}, {row['candidate']}": row[
            "images_per_second"
        ]["median"]
        for row in rows
    }


def _results(folder: Path, records: Sequence[Row]) -> tuple[dict[str, Row], list[str]]:
    """The raw results of the parts that wrote some, and what is wrong with those that are none."""
    results, faults = {}, []
    for name in (record["name"] for record in records):
        path = folder / f"{name}.json"
        if path.is_file():
            try:
                results[name] = result_file.read(path)
            except ValueError as error:
                faults.append(str(error))
    return results, faults


if __name__ == "__main__":
    script.main(main)
