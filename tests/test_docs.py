# SPDX-License-Identifier: MIT
"""The documents: their links lead somewhere, their code runs, their errors are the code's."""

import ast
import json
import pathlib
import re
import sys
import tomllib

import jax
import pytest
from support import documents

from jaxgen.train import adversarial, objectives

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
CODE = [
    "README.md", "docs/start.md", "docs/run_on.md", "docs/your_own.md", "docs/stable_diffusion.md",
    "docs/adapters.md", "docs/controlnet.md", "docs/objectives.md", "docs/design.md",
    "CONTRIBUTING.md",
]  # fmt: skip


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(page.read_text()):
        if path.startswith(("http://", "https://", "mailto:")):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {path}#{anchor}"


def test_all_pages_with_code_are_run():
    coded = {str(page.relative_to(ROOT)) for page in PAGES if documents.blocks(page)}
    assert coded == set(CODE)


@pytest.fixture
def a_folder(tmp_path, monkeypatch):
    """A folder with all that documents call path/to/...; the process is afterwards as before."""
    cache = jax.config.jax_compilation_cache_dir
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    documents.stand_ins(tmp_path)
    with jax.debug_key_reuse(False):  # as users run it; the search takes a quarter of the time
        yield
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.mark.slow
@pytest.mark.parametrize("name", CODE)
def test_code_of_a_page_runs(name, a_folder):
    page = ROOT / name
    runnable = [text for _, text, reason in documents.blocks(page) if not reason]
    assert documents.run_page(page) == len(runnable)


@pytest.mark.slow
def test_code_of_the_embedded_model_s_card_runs(a_folder):
    card = ROOT / "jaxgen/models/shapes/README.md"
    assert documents.run_page(card, without="import diffusers") == 1  # tests/oracle has that one


def test_the_repository_has_one_address():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    address = urls["Repository"].removeprefix("https://")
    files = [*PAGES, ROOT / "CITATION.cff", *ROOT.glob("docs/*.py"), *ROOT.glob("notebooks/*.py")]
    text = "\n".join(path.read_text() for path in files)
    own = re.findall(r"github\.com/[\w-]+/jaxgen\b", text)
    assert len(own) == 8  # citation, run_on, six notebooks
    assert set(own) == {address}


def sentences_of(source):
    """The strings of a module, each with `...` where a value is put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (
                part.value if isinstance(part, ast.Constant) else "..." for part in node.values
            )
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_errors_of_troubleshooting_are_those_of_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    known = "\n".join(
        sentence
        for path in sorted((ROOT / "jaxgen").rglob("*.py"))
        for sentence in sentences_of(path.read_text())
    )
    assert len(quoted) > 15
    assert [error for error in quoted if error not in known] == []


def test_pictures_are_made_by_one_script_and_shown(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "images"))
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import make

    assert make.faults() == []


def test_evaluations_are_of_the_commands_that_make_them(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import record

    for path in record.FOLDER.glob("*.json"):
        runs = {run.label: list(run.commands) for run in record.MEASUREMENTS[path.stem]()}
        kept = {run["label"]: run["commands"] for run in json.loads(path.read_text())["runs"]}
        assert kept == runs, path
    with pytest.raises(ValueError, match="failed: .*unknown"):
        record.output("python docs/record.py everything")

    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setitem(record.MEASUREMENTS, "one", lambda: [record.Run("a", ("python b", "c"))])
    monkeypatch.setattr(record, "output", lambda command: [command])
    (made,) = json.loads(record.measure("one").read_text())["runs"]
    assert (made["label"], made["lines"]) == ("a", ["c"])
    monkeypatch.setattr(record, "output", None)  # nothing is measured twice
    record.measure("one")
    monkeypatch.setitem(record.MEASUREMENTS, "one", lambda: [record.Run("a", ("other",))])
    with pytest.raises(ValueError, match="'a' by other commands"):
        record.measure("one")


def test_what_is_checked_is_said_of_every_objective_and_by_tests_that_are_there():
    page = (ROOT / "docs" / "objectives.md").read_text()
    checked = page.split("\n## What is checked of every objective\n")[1].split("\n## ")[0]
    names = [row.split(" | ")[0] for row in checked.splitlines() if row.startswith("| ")]
    games = adversarial.OBJECTIVES | adversarial.RELATIVISTIC
    assert {*objectives.VAE_OBJECTIVES, *games} <= {*re.findall(r"`(\w+)`", " ".join(names))}
    files = {*re.findall(r"`(test_\w+\.py)`", checked)}
    assert len(files) > 5
    assert [name for name in files if not (ROOT / "tests" / name).is_file()] == []


def test_tables_are_those_of_their_raw_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import tables

    text = tables.PAGE.read_text()
    assert tables.renewed(text) == text
    with pytest.raises(ValueError, match="has places for"):
        tables.renewed(text.replace("<!-- table: iwae_table -->", ""))
