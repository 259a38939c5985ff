# SPDX-License-Identifier: MIT
"""Odd values for every option of every script, up to where training or drawing would begin.

    python -m tests.fuzz.options --scripts vae lora

Prints what is neither taken nor refused with exit code 2: another exception, a value that is no
number and yet is taken, half a minute without an answer.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "experiments")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxgen import script
from jaxgen.cpu import tune
from jaxgen.runs import run
from jaxgen.runs.command_line import RunOptions
from jaxgen.stable_diffusion.pipeline import StableDiffusion

VALUES = (
    "", "-1", "0", "nan", "inf", "-inf", "1e308", "1e-320", "99999999999999999999", "0.5", "x",
    "None", "true", "a\x1b[2J\u202e\nb", "\udcff", "x" * 5000, "/dev/null", "[1", "{}", "1,2",
)  # fmt: skip
NO_NUMBERS = ("nan", "inf", "-inf")
TRAINING = (
    "autoencoder", "vae", "vq_vae", "gan", "latent_autoencoder", "latent_diffusion", "lora",
)  # fmt: skip
# script -> its usual flags, and what stands for the work that its options are checked before
SCRIPTS: dict[str, tuple[list[str], list[tuple[object | str, str]]]] = {
    **{name: ([], [(run, "_folder")]) for name in TRAINING},
    "latent_autoencoder": (["--num-scenes", "64"], [(run, "_folder")]),
    "text_to_image": (["--prompt", "a red circle"], [(StableDiffusion, "__init__")]),
    "prompt_following": ([], [(StableDiffusion, "__init__")]),
    "compress": (["--run-dir", "no-run", "--file", "no-file"], [(run, "restore")]),
    "iwae_table": (
        ["--data", "mnist5k"],
        [("iwae_table", "run"), ("parts.iwae_results", "write_table")],
    ),
    "gan_study": ([], [("gan_study", "study")]),
    "studies.rate_distortion": ([], [("studies.rate_distortion", "curve")]),
    "vae_speedrun": (["--data", "mnist5k"], [("vae_speedrun", "race")]),
}
SECONDS = 30


class Taken(BaseException):
    """The script would begin its work."""


class TooLong(BaseException):
    """The script gives no answer."""


def options_of(name: str) -> list[str]:
    """The flags of a script, from its dataclasses."""
    module = importlib.import_module(name)
    flags: list[str] = []

    def collect(kind: type) -> None:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(hints[field.name]):
                collect(hints[field.name])
            elif field.name != "run":
                flags.append(f"--{field.name.replace('_', '-')}")

    collect(module.Config)
    if name in TRAINING:
        collect(RunOptions)
    return sorted(set(flags))


def outcome(name: str, flags: list[str]) -> str:
    """ "taken", "refused", or what is wrong."""
    usual, stops = SCRIPTS[name]
    module, errors = importlib.import_module(name), io.StringIO()

    def stop(*inputs: object, **own: object) -> None:
        raise Taken

    def alarm(*_: object) -> None:
        raise TooLong

    with contextlib.ExitStack() as stack:
        stack.enter_context(_changed(sys, "argv", [f"{name}.py", *usual, *flags]))
        stack.enter_context(_changed(script, "compilation_cache", lambda: None))
        stack.enter_context(_changed(tune, "tune_cpu", lambda: None))
        for place, attribute in stops:
            place = importlib.import_module(place) if isinstance(place, str) else place
            stack.enter_context(_changed(place, attribute, stop))
        stack.enter_context(contextlib.redirect_stderr(errors))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        signal.signal(signal.SIGALRM, alarm)
        signal.alarm(SECONDS)
        try:
            script.main(module.main)
        except Taken:
            return "taken"
        except TooLong:
            return f"no answer within {SECONDS} s"
        except SystemExit as ended:
            return _refusal(ended.code, errors.getvalue())
        except BaseException as error:  # what `script.main` does not turn into a line
            return f"raises {type(error).__name__}"
        finally:
            signal.alarm(0)
    return "ended without its work"


def _refusal(code: object, said: str) -> str:
    # as the standard stream of errors writes what is no text
    lines = said.encode("utf-8", "backslashreplace").decode().split("\n")
    if code != 2:
        return f"exit code {code}"
    if "Traceback" in said or "JAXGEN_TRACEBACK" in said:
        return f"was not foreseen: {said[-200:]}"
    if any(not line.isprintable() for line in lines if line.startswith("error: ")):
        return "prints control characters"
    by_us = sum(line.startswith("error: ") for line in lines)
    # or the box of tyro, which quotes the words of the command line as they are
    is_one = by_us == 1 or (not by_us and "-----" in said)
    return "refused" if is_one else f"says {said[:200]}"


@contextlib.contextmanager
def _changed(place: object, attribute: str, value: object):
    own = getattr(place, attribute)
    setattr(place, attribute, value)
    try:
        yield
    finally:
        setattr(place, attribute, own)


def cases(names: list[str], most: int | None, seed: int = 0) -> list[tuple[str, str, str]]:
    """(script, flag, value) of all cases, or as many of them drawn at random."""
    every = [(n, flag, value) for n in names for flag in options_of(n) for value in VALUES]
    return random.Random(seed).sample(every, min(most, len(every))) if most else every


def faults(chosen: list[tuple[str, str, str]]) -> list[str]:
    """What is wrong, a line a case; files that are written lie in a folder that is removed."""
    wrong, here = [], Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            for name, flag, value in chosen:
                end = outcome(name, [flag, value])
                if end == "taken" and value in NO_NUMBERS and flag not in WORDS:
                    end = "takes what is no number"
                if end not in ("taken", "refused"):
                    wrong.append(f"{name} {flag} {value[:40]!a}: {end}")
        finally:
            os.chdir(here)
    return wrong


# Options whose values are words, of which "nan" is one; a limit that may be infinite; and numbers
# that mean nothing, and are not looked at, without the option that they belong to.
WORDS = {
    "--run-dir", "--data-dir", "--data", "--prompt", "--negative", "--file", "--folder", "--table",
    "--output", "--record", "--sampler", "--lora", "--embedding", "--wandb", "--cells",
    "--variants", "--features", "--figure", "--results", "--guidance-limit", "--hires-strength",
    "--control-scale",
}  # fmt: skip


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.options", description=__doc__)
    parser.add_argument("--scripts", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--cases", type=int, help="of each script, drawn at random; all by default")
    options, total = parser.parse_args(), 0
    for name in options.scripts:
        began, chosen = time.monotonic(), cases([name], options.cases)
        wrong = faults(chosen)
        total += len(wrong)
        seconds = time.monotonic() - began
        print(f"{name}: {len(chosen)} cases, {len(wrong)} faults, {seconds:.0f} s", flush=True)
        print(*(f"  {line}" for line in wrong), sep="\n", flush=True)
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
