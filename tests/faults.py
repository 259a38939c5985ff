# SPDX-License-Identifier: MIT
"""What `--resume` makes of runs that were damaged, killed or cut off, beside an undisturbed one.

    python -m tests.faults                            # about ten minutes on two cores
    python -m tests.faults --cases 5 --systems vae    # fewer damages, one system

For every system: damaged files (a flipped byte, half of a file, no file), SIGKILL at every phase,
full disks, a second writer, clocks that jumped. A case is recovered if the state, the metrics and
the pictures are those of the undisturbed run; detected if an error or a note in one line says what
is wrong. Everything else is silently wrong, or a traceback, and makes the exit code 1.
"""

import argparse
import collections
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
STEPS = ["--batch-size", "32", "--steps", "10", "--checkpoint-every", "4", "--scan-steps", "1"]
FLAGS = [*STEPS, "--draw-every", "4", "--log-every", "4", "--seed", "3"]
PHASES = {  # the function at whose call the process dies, and at which call
    "start": ("jaxgen.runs.run._start", 1),
    "compile": ("jaxgen.runs.run._compiled", 1),
    "step": ("jaxgen.runs.outputs._logged", 6),
    "save": ("jaxgen.runs.checkpoint.save", 2),
    "draw": ("jaxgen.runs.outputs._draw", 3),
    "end": ("jaxgen.runs.outputs.finish", 1),
}
DISK_SIZES = [2**n for n in range(9, 19)]  # bytes that a file may have
DAMAGES = ("flipped", "truncated", "deleted")
CHILD = """
import importlib, os, runpy, signal, sys
where, count = sys.argv[1], int(sys.argv[2])
if where:
    module = importlib.import_module(where.rpartition(".")[0])
    name = where.rpartition(".")[2]
    original, calls = getattr(module, name), []
    def dies(*words, **options):
        calls.append(1)
        if len(calls) >= count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*words, **options)
    setattr(module, name, dies)
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def execute(system, *flags, die_at=("", 0), most_bytes=None):
    """The finished process of a script, which may die at a call or have a disk that is full."""

    def limit():
        if most_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    script = str(ROOT / "experiments" / f"{system}.py")
    words = [sys.executable, "-c", CHILD, die_at[0], str(die_at[1]), script, *map(str, flags)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        words, env=env, preexec_fn=limit, capture_output=True, text=True, timeout=300, check=False
    )


def result_of(folder):
    """The bytes of metrics and pictures, and of the newest state's digests; None where absent."""
    steps = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()]
    state = folder / "checkpoints" / str(max(steps, default=0)) / "digests" / "metadata"
    paths = [folder / "metrics.jsonl", state]
    paths += [*folder.glob("*.png"), *folder.glob("*.gif"), *folder.glob("pictures/*.png")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(paths) if p.is_file()}


def verdict(process, folder, expected):
    """How a resumed run ended; the last line that it said."""
    lines = [line for line in process.stderr.splitlines() if line.startswith(("error:", "note:"))]
    said = lines[-1] if lines else ""
    if "Traceback" in process.stderr or process.returncode not in (0, 2):
        return "traceback", process.stderr[-300:]
    if process.returncode == 0 and result_of(folder) == expected:
        return "recovered", said
    if said:
        return "detected", said
    return "silently wrong", f"exit code {process.returncode}"


def damage(path, kind, generator):
    """Flips one byte of the file, cuts it in half, or deletes it."""
    content = path.read_bytes()
    if kind == "deleted" or not content:
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        place = int(generator.integers(len(content)))
        flipped = bytes([content[place] ^ (1 << int(generator.integers(8)))])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])


def cases(system, whole, count, generator):
    """Yields (kind, name, function of a folder that leaves it for `--resume`)."""
    files = [p for p in whole.rglob("*") if p.is_file()]
    # pictures of earlier steps are records that no continuation reads
    files = [p for p in files if p.parent.name != "pictures" or p.stem.endswith("10")]
    paths = sorted(str(p.relative_to(whole)) for p in files)
    for kind in DAMAGES:
        for name in generator.choice(paths, min(count, len(paths)), replace=False).tolist():

            def damaged(folder, kind=kind, name=name):
                shutil.copytree(whole, folder)
                damage(folder / name, kind, generator)

            yield kind, name, damaged
    for phase, place in PHASES.items():
        yield (
            "killed",
            phase,
            lambda folder, place=place: execute(system, *FLAGS, "--run-dir", folder, die_at=place),
        )
    for size in generator.choice(DISK_SIZES, min(count, len(DISK_SIZES)), replace=False).tolist():
        yield (
            "disk full",
            f"{size} bytes",
            lambda folder, size=size: execute(system, *FLAGS, "--run-dir", folder, most_bytes=size),
        )
    for year in (2001, 2037):

        def jumped(folder, year=year):
            shutil.copytree(whole, folder)
            shutil.rmtree(folder / "checkpoints" / "10")
            moment = time.mktime((year, 1, 1, 0, 0, 0, 0, 1, -1))
            for path in folder.rglob("*"):
                os.utime(path, (moment, moment))

        yield "clock", str(year), jumped


def two_writers(system, whole, folder):
    """A run goes on in a folder that another process holds; it must say so."""
    from jaxgen.runs import run_folder

    shutil.copytree(whole, folder)
    with run_folder.in_use(folder):
        process = execute(system, "--run-dir", folder, "--resume", "--overwrite")
    return ("detected" if "in use by" in process.stderr else "silently wrong"), process.stderr[
        -200:
    ]


def matrix(systems, count, seed, show=print):
    """Counts of verdicts by (system, kind)."""
    generator, table = np.random.default_rng(seed), {}
    with tempfile.TemporaryDirectory() as place:
        for system in systems:
            whole = Path(place) / system / "run"  # the curves show the folder's name
            done = execute(system, *FLAGS, "--run-dir", whole)
            assert done.returncode == 0, done.stderr
            expected = result_of(whole)
            for i, (kind, name, prepare) in enumerate(cases(system, whole, count, generator)):
                folder = Path(place) / f"{system}-{i}" / "run"
                folder.parent.mkdir()
                prepare(folder)
                if not (folder / "config.json").is_file() and kind in ("killed", "disk full"):
                    outcome, said = again(system, folder, expected)
                else:
                    process = execute(system, "--run-dir", folder, "--resume")
                    outcome, said = verdict(process, folder, expected)
                table.setdefault((system, kind), collections.Counter())[outcome] += 1
                if outcome in ("silently wrong", "traceback"):
                    show(f"{system}, {kind}, {name}: {outcome}: {said}")
                shutil.rmtree(folder.parent)
            outcome, said = two_writers(system, whole, Path(place) / f"{system}-two")
            table[system, "two writers"] = collections.Counter([outcome])
    return table


def again(system, folder, expected):
    """A run that died before it wrote its configuration: the same command, or an empty folder."""
    if folder.exists() and any(folder.iterdir()):
        return "silently wrong", f"no config.json beside {[p.name for p in folder.iterdir()]}"
    process = execute(system, *FLAGS, "--run-dir", folder)
    return verdict(process, folder, expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10, help="damages of each kind and system")
    parser.add_argument("--systems", nargs="+", default=["autoencoder", "vae", "gan"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = matrix(options.systems, options.cases, options.seed)
    columns = ("recovered", "detected", "silently wrong", "traceback")
    print(f"{'system':12} {'fault':12} {'tried':>5}", *(f"{name:>15}" for name in columns))
    for (system, kind), counts in table.items():
        numbers = (f"{counts[name]:15}" for name in columns)
        print(f"{system:12} {kind:12} {sum(counts.values()):5}", *numbers)
    faulty = sum(counts["silently wrong"] + counts["traceback"] for counts in table.values())
    sys.exit(int(faulty > 0))


if __name__ == "__main__":
    main()
