# SPDX-License-Identifier: MIT
"""Every documented command is one that its script takes: in --help, on pages, in notebooks."""

import argparse
import ast
import importlib
import pathlib
import re
import shlex
import sys

import pytest
import tyro

from jaxgen.runs import command_line

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("jaxgen/models/*/*.md")]
NOTEBOOKS = sorted(ROOT.glob("notebooks/0*.py"))
SCRIPTS = [
    *(path for path in sorted(ROOT.glob("experiments/*.py")) if "def main()" in path.read_text()),
    *sorted(ROOT.glob("experiments/studies/[!_]*.py")),
    *(path for path in sorted(ROOT.glob("benchmarks/**/*.py")) if "tyro.cli(" in path.read_text()),
    ROOT / "docs/images/make.py", ROOT / "docs/record.py", ROOT / "docs/tables.py",
    ROOT / "notebooks/build.py",
    ROOT / "tests/faults/__main__.py", ROOT / "tests/fuzz/__main__.py",
    ROOT / "tests/fuzz/options.py",
]  # fmt: skip
BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TICKED = re.compile(r"`(python (?:experiments/|benchmarks/|notebooks/|docs/|-m )[^`]+)`")
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*python (?P<place>-m \S+|\S+\.py)(?P<flags> .*)?")
OF_OTHERS = ("-m pytest", "-m venv", "-m sphinx")


def examples(script):
    """The commands in the docstring of a script, which its --help shows."""
    return commands(ast.get_docstring(ast.parse(script.read_text())) or "", script.name)


def commands(text, place):
    """(place, command) of the lines that call Python, without their comments."""
    lines = text.replace("\\\n", " ").splitlines()
    bare = [re.split(r"\s{2,}#", line.strip())[0] for line in lines]
    return [(place, line) for line in bare if COMMAND.fullmatch(line)]


def documented():
    """(where, command) of all pages, notebooks and scripts, each command once."""
    pairs = [pair for script in SCRIPTS for pair in examples(script)]
    for path in (*PAGES, *NOTEBOOKS):
        text = path.read_text()
        if path in NOTEBOOKS:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        blocks = "\n".join(BASH.findall(text)).replace(" && ", "\n")
        pairs += commands("\n".join([blocks, *TICKED.findall(text)]), path.name)
    first = {}
    for where, command in pairs:
        place = COMMAND.fullmatch(command)["place"]
        if place not in OF_OTHERS and "/minimal/" not in place:
            first.setdefault(command, where)
    return [(where, command) for command, where in first.items()]


DOCUMENTED = documented()


class Parsed(Exception):
    """The command line was taken."""


def stop_after(parse):
    """The function, which ends by raising Parsed."""

    def wrapper(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    return wrapper


@pytest.fixture
def taken(monkeypatch):
    """A function: does the script that a command names take its flags?"""
    # a run that goes on, or is looked at, has the options of its script
    monkeypatch.setattr(command_line, "read", lambda kind, run_dir, name: kind())

    def check(command):
        match = COMMAND.fullmatch(command)
        place = match["place"]
        path = ROOT / (f"{place[3:].replace('.', '/')}.py" if place.startswith("-m ") else place)
        path = path if path.exists() else path.with_suffix("") / "__main__.py"
        source = path.read_text()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [path.name, *shlex.split(match["flags"] or "")])
            patch.syspath_prepend(str(path.parent))
            if "tyro.cli(" in source:
                patch.setattr(tyro, "cli", stop_after(tyro.cli))
            elif "command_line.parse(" in source:
                patch.setattr(command_line, "parse", stop_after(command_line.parse))
            else:
                parser = argparse.ArgumentParser
                patch.setattr(parser, "parse_args", stop_after(parser.parse_args))
            name = place[3:] if place.startswith("-m ") else path.stem
            name += ".__main__" * (path.stem == "__main__")
            with pytest.raises(SystemExit if "--help" in sys.argv else Parsed):
                importlib.import_module(name).main()

    return check


def test_every_script_shows_examples():
    assert [path.name for path in SCRIPTS if not examples(path)] == []


IDS = [f"{where}-{number}" for number, (where, _) in enumerate(DOCUMENTED)]


@pytest.mark.parametrize(("where", "command"), DOCUMENTED, ids=IDS)
def test_a_documented_command_is_taken_by_its_script(where, command, taken):
    taken(command)
