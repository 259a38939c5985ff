# SPDX-License-Identifier: MIT
"""The notebooks: source and .ipynb agree, part one is the minimal script, and every cell runs."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "notebooks"))
build = pytest.importorskip("build", reason="needs the extra notebooks")

NAMES = build.names()
WHOLE = {  # notebook -> the script in experiments/minimal whose code its part one is
    "01_autoencoder": "autoencoder",
    "02_vae": "vae",
    "03_gan": "gan",
    "05_text_to_image_from_nothing": "diffusion",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def cells(name, tag=None):
    """The cells of a notebook's source, or those with a tag."""
    every = build.read_source(name).cells
    return [cell for cell in every if tag is None or tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("name", NAMES)
def test_the_built_notebook_has_the_cells_of_its_source(name):
    build.check(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small(name):
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size <= build.MOST_BYTES


def statements(code):
    """The statements of a script as text, without its docstring and what only its end needs."""
    tree = ast.parse(code)
    body = [node for node in tree.body if not isinstance(node, ast.If)]
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    names = {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name)}
    kept = []
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound = [(alias.asname or alias.name).split(".")[0] for alias in node.names]
            if not any(name in names for name in bound):
                continue
        kept.append(ast.dump(node))
    return kept


@pytest.mark.parametrize("name", [name for name in NAMES if name in WHOLE])
def test_part_one_is_the_code_of_the_minimal_script(name):
    script = (ROOT / "experiments" / "minimal" / f"{WHOLE[name]}.py").read_text()
    part = "\n\n".join(cell.source for cell in cells(name, "whole"))

    assert statements(part) == statements(script)


def test_every_notebook_begins_with_its_badge_and_the_same_setup():
    setups = set()
    for name in NAMES:
        first, second = cells(name)[:2]
        assert f"colab.research.google.com/github/{REPOSITORY.split('/', 3)[3]}/" in first.source
        assert f"/notebooks/{name}.ipynb)" in first.source
        assert f"[view source]({name}.py)" in first.source
        assert second.metadata["tags"] == ["setup"]
        setups.add(second.source)
    assert len(setups) == 1
    assert f'{REPOSITORY}"' in setups.pop()


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere_and_named_tests_exist(name):
    text = "\n".join(cell.source for cell in cells(name) if cell.cell_type == "markdown")
    for label, target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        path = ROOT / "notebooks" / target.split("#")[0]
        assert path.exists(), f"{name} links to {target}"
        if (test := label.strip("`")).startswith("test_") and not test.endswith(".py"):
            assert f"def {test}(" in path.read_text(), f"{target} has no {test}"


@pytest.mark.parametrize("name", NAMES)
def test_equations_are_numbered_and_computed_and_checked_beside_them(name):
    """An assert in one of the next two cells checks an equation, or a test that is linked there."""
    text = cells(name)
    numbers = [re.findall(r"\\tag\{(\d+)\}|^\| \((\d+)\) \|", cell.source, re.M) for cell in text]
    all_numbers = sorted(int(a or b) for found in numbers for a, b in found)
    assert all_numbers == list(range(1, len(all_numbers) + 1))
    for i, equations in enumerate(numbers):
        near = text[i : i + 3]
        linked = any(re.search(r"\[`test_\w+`\]", cell.source) for cell in near)
        asserted = any("assert" in cell.source for cell in near if cell.cell_type == "code")
        assert linked or asserted or not equations, f"{name}: nothing checks {equations}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs_and_every_folded_answer_is_right(name):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, ROOT / "notebooks" / "build.py", name, "--quick"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def call(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "notebooks" / "build.py", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip


def test_an_unknown_notebook_is_refused_with_the_known_ones():
    done = call("07_nothing")
    assert done.returncode == 2
    assert "no notebook 07_nothing; known are 01_autoencoder" in done.stderr


def test_a_failing_cell_is_named_and_the_old_notebook_stays(tmp_path, monkeypatch):
    source = "# %%\nx = 1\n\n# %%\ny = 2\nassert x == y\n"
    (tmp_path / "09_wrong.py").write_text(source)
    (tmp_path / "09_wrong.ipynb").write_text("old")
    monkeypatch.setattr(build, "FOLDER", tmp_path)

    with pytest.raises(build.BuildError, match=r"09_wrong: cell 1, .*line 6, `assert x == y`"):
        build.build("09_wrong")

    assert (tmp_path / "09_wrong.ipynb").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["09_wrong.ipynb", "09_wrong.py"]
