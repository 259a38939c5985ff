# SPDX-License-Identifier: MIT
"""What became of a run: its state, metrics and pictures beside those of an undisturbed one."""

import json
import re

RECOVERED, DETECTED, NOTED = "recovered", "detected", "noted"
UNCLEAR, WRONG, TRACEBACK = "unclear", "silently wrong", "traceback"
OUTCOMES = (RECOVERED, DETECTED, NOTED, UNCLEAR, WRONG, TRACEBACK)
BAD = (UNCLEAR, WRONG, TRACEBACK)
PROGRESS = re.compile(r"run \d+/\d+ ")  # a line of the progress of a run in a folder "run"


def result_of(folder):
    """The bytes of metrics and pictures, and of the newest state's digests; None where absent."""
    steps = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()]
    state = folder / "checkpoints" / str(max(steps, default=0)) / "digests" / "metadata"
    paths = [folder / "metrics.jsonl", folder / "data.json", state]
    paths += [*folder.glob("*.png"), *folder.glob("*.gif"), *folder.glob("pictures/*")]
    content = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(paths) if p.is_file()}
    config, summary = _json(folder / "config.json"), _json(folder / "summary.json")
    # a continuation says its own folder and flags, a summary the speed of the machine
    run = {n: v for n, v in config["config"]["run"].items() if n not in ("resume", "run_dir")}
    content["config.json"] = {**config["config"], "run": run}
    content["summary.json"] = {name: summary.get(name) for name in ("steps", "of")}
    return content


def _json(path):
    """The object in a file; what a run leaves at least where there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {"config": {"run": {}}}


def verdict(returncode, stderr, folder, expected, damaged=None):
    """How a resumed run ended, and what it said or what differs.

    recovered: exit code 0, and everything equals the undisturbed run. detected: another exit code,
    and one line that names the run's folder. noted: exit code 0, one line names the damaged file,
    which cannot be made anew, and the state is right. unclear: an error that does not say where.
    All else is silently wrong or a traceback.
    """
    lines = [line for line in stderr.splitlines() if line and not PROGRESS.match(line)]
    errors = [line for line in lines if line.startswith("error: ")]
    strays = [line for line in lines if not line.startswith(("error: ", "note: "))]
    if strays or returncode not in (0, 2):
        return TRACEBACK, f"exit code {returncode}: {' | '.join(strays)[:300]}"
    if returncode == 2:
        names = len(errors) == 1 and len(errors[0]) < 500 and str(folder) in errors[0]
        return (DETECTED if names else UNCLEAR), " | ".join(errors)
    result = result_of(folder)
    differing = sorted(n for n in result | expected if result.get(n) != expected.get(n))
    if not differing:
        return RECOVERED, " | ".join(lines)
    is_noted = damaged and any(damaged.rpartition("/")[2] in line for line in lines)
    states = [name for name in differing if name.startswith("checkpoints") or ".json" in name]
    if is_noted and set(states) <= {damaged}:
        return NOTED, " | ".join(lines)
    return WRONG, f"{', '.join(differing)} differ; said: {' | '.join(lines)}"[:500]
