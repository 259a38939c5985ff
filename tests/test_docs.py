# SPDX-License-Identifier: MIT
"""The documents: their links lead somewhere, and their commands name programs that exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
COMMAND = re.compile(r"^python (experiments/\S+\.py|-m benchmarks\S*)", re.MULTILINE)


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


def test_commands_name_programs_that_exist():
    programs = {name for page in PAGES for name in COMMAND.findall(page.read_text())}
    assert "experiments/vae.py" in programs
    for name in programs:
        path = name.removeprefix("-m ").replace(".", "/") if name.startswith("-m") else name
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), name
