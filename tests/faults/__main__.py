# SPDX-License-Identifier: MIT
"""Tries every fault on a run of every system, and prints what `--resume` made of it.

    python -m tests.faults                             # half an hour on one core
    python -m tests.faults --cases 5 --systems vae     # five files for each damage, one system
    python -m tests.faults --kinds killed --systems latent_autoencoder latent_diffusion

Recovered: state, metrics and pictures are those of the undisturbed run. Detected: an error in one
line that names the folder of the run. Noted: a record that cannot be made anew is named, and the
rest is right. Everything else is unclear (an error without a place), silently wrong or a traceback,
and makes the exit code 1.
"""

import argparse
import collections
import shutil
import signal
import sys
import tempfile
from concurrent import futures
from functools import partial
from pathlib import Path

from tests.faults import cases, processes, verdicts

STEPS = ["--batch-size", "32", "--steps", "10", "--checkpoint-every", "4", "--scan-steps", "1"]
FLAGS = [*STEPS, "--draw-every", "4", "--log-every", "4", "--seed", "3"]
_WORLD = ["--num-scenes", "64", "--batch-size", "4", "--warmup-steps", "0"]
OWN = {  # more flags of the systems that are large by default
    "latent_autoencoder": [*_WORLD, "--norm-groups", "4", "--vae-channels", "8", "8", "8", "8"],
    "latent_diffusion": [
        *_WORLD, "--unet-channels", "8", "--unet-heads", "2", "--text-width", "32",
        "--text-layers", "1",
    ],
}  # fmt: skip


def main():
    """The exit code; prints each fault that ended badly, and the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--cases", type=int, help="files for each damage and system; all if left out"
    )
    parser.add_argument("--systems", nargs="+", default=["autoencoder", "vae", "gan"])
    parser.add_argument("--kinds", nargs="+", choices=cases.KINDS, default=cases.KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="cases tried at a time")
    options = parser.parse_args()
    table = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `timeout` ends it
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        context = processes.server()
        try:
            for system in options.systems:
                try_all(context, system, Path(place), options, table)
        except KeyboardInterrupt:
            print("interrupted; what was tried until then:")
    return show(table)


def try_all(context, system, place, options, table):
    """Adds the outcomes of all faults of a system to the table, by (system, kind)."""
    whole = place / system / "run"  # the curves show the folder's name
    whole.parent.mkdir()
    flags = [*FLAGS, *own_flags(context, system, place)]
    ended = processes.execute(context, system, *flags, "--run-dir", whole)
    assert ended.returncode == 0, ended.stderr
    every = cases.faults(whole, options.cases, options.seed)
    faults = list(enumerate(fault for fault in every if fault.kind in options.kinds))
    outcome_of = partial(attempt, context, system, flags, whole)
    with futures.ThreadPoolExecutor(options.workers) as pool:
        outcomes = zip(faults, pool.map(outcome_of, faults), strict=True)
        try:
            for (_, fault), (outcome, said) in outcomes:
                count(table, system, fault, outcome, said)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def count(table, system, fault, outcome, said):
    """Adds an outcome to the table, and prints it where it is no silent recovery."""
    table.setdefault((system, fault.kind), collections.Counter())[outcome] += 1
    is_bad = outcome in verdicts.BAD
    if is_bad or fault.kind not in cases.DAMAGES or outcome != verdicts.RECOVERED:
        print(f"{system}, {fault.kind}, {fault.name}: {outcome}: {said}", flush=True)


def own_flags(context, system, place):
    """The flags of a system beside FLAGS; the second stage needs a run of the first."""
    own = OWN.get(system, [])
    if system != "latent_diffusion":
        return own
    first = place / "first"
    if not first.exists():
        flags = [*FLAGS, *OWN["latent_autoencoder"], "--run-dir", first]
        ended = processes.execute(context, "latent_autoencoder", *flags)
        assert ended.returncode == 0, ended.stderr
    return [*own, "--autoencoder", str(first)]


def attempt(context, system, flags, whole, numbered):
    """The outcome of one fault, and what was said."""
    i, fault = numbered
    folder = whole.parent / str(i) / "run"
    folder.parent.mkdir()
    execute = partial(processes.execute, context, system)
    try:
        flags, end = befall(fault, flags, whole, folder, execute)
        if fault.kind == "disk full" and end.returncode:
            outcome, said = verdicts.verdict(*end, folder, {})
            if outcome != verdicts.DETECTED:
                return outcome, f"when it was full: {said}"
        if fault.kind == "two writers":
            return second_writer(fault.name, folder, flags, execute, verdicts.result_of(whole))
        ended = execute(*flags, "--run-dir", folder)
        damaged = fault.name if fault.kind in cases.DAMAGES else None
        return verdicts.verdict(*ended, folder, verdicts.result_of(whole), damaged)
    finally:
        shutil.rmtree(folder.parent)


def befall(fault, flags, whole, folder, execute):
    """Leaves the folder as the fault does; the flags with which a user goes on, and the end."""
    end = None
    if fault.kind == "killed":
        end = execute(*flags, "--run-dir", folder, die_at=cases.PHASES[fault.name])
        assert end.returncode == -signal.SIGKILL, end.stderr
    elif fault.kind == "disk full":
        end = execute(*flags, "--run-dir", folder, most_bytes=int(fault.name))
    elif fault.name in cases.CLOCKS:
        jump = (*cases.PHASES["step"], cases.CLOCKS[fault.name])
        end = execute(*flags, "--run-dir", folder, jump_at=jump)
        assert end.returncode == 0, end.stderr
    else:
        copy_with(fault, whole, folder)
    has_begun = fault.kind not in ("killed", "disk full") or (folder / "config.json").is_file()
    # dead before its configuration: the same command again
    return (["--resume"] if has_begun else flags), end


def copy_with(fault, whole, folder):
    """A copy of a finished run which the fault has befallen."""
    shutil.copytree(whole, folder)
    if fault.kind in cases.DAMAGES:
        cases.damage(folder / fault.name, fault.kind, fault.seed)
        return
    cases.lose_newest(folder)
    if fault.kind == "clock":
        cases.date(folder, int(fault.name))


def second_writer(when, folder, flags, execute, expected):
    """The outcome of going on in a folder with another process: one has to be kept out of it."""
    from jaxgen.runs import run_folder

    if when in cases.WRITERS[:1]:
        with run_folder.in_use(folder):
            ended = execute(*flags, "--run-dir", folder)
        return verdicts.verdict(*ended, folder, {})
    with futures.ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda _: execute(*flags, "--run-dir", folder), range(2)))
    outcomes = [verdicts.verdict(*ended, folder, expected) for ended in ends]
    bad = [each for each in outcomes if each[0] in verdicts.BAD]
    if not bad and all(outcome == verdicts.DETECTED for outcome, _ in outcomes):
        return verdicts.WRONG, "both were kept out"
    return (bad or sorted(outcomes))[0]


def show(table):
    """Prints the table; the exit code, 1 if anything ended badly."""
    print(f"{'system':12} {'fault':12} {'tried':>5}", *(f"{o:>14}" for o in verdicts.OUTCOMES))
    for (system, kind), counts in table.items():
        numbers = (f"{counts[outcome]:14}" for outcome in verdicts.OUTCOMES)
        print(f"{system:12} {kind:12} {sum(counts.values()):5}", *numbers)
    total = sum(table.values(), collections.Counter())
    return int(any(total[outcome] for outcome in verdicts.BAD))


if __name__ == "__main__":
    sys.exit(main())
