# SPDX-License-Identifier: MIT
"""Changed prose is taken over into an executed notebook, and changed code is refused."""

import sys
from pathlib import Path

import nbformat
import pytest

sys.path.append(str(Path(__file__).parent.parent / "notebooks"))
build = pytest.importorskip("build", reason="needs the extra notebooks")

OLD = '''# %% [markdown]
# Old.

# %%
def two():
    """Two."""
    return 2


print(two())
'''


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Writes the source of a notebook, and its .ipynb with an output."""
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    (tmp_path / "09_small.py").write_text(OLD)
    notebook = build.read_source("09_small")
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="2\n")]
    nbformat.write(notebook, tmp_path / "09_small.ipynb")
    return tmp_path


def test_new_text_is_taken_over_and_the_outputs_stay(executed):
    text = OLD.replace("Old.", "New, *and* longer.\n\n# %% [markdown]\n# A second cell.")
    text = text.replace('"""Two."""', '"""The number two."""').replace(
        "return 2", "return 2  # yes"
    )
    (executed / "09_small.py").write_text(text)

    build.take_text("09_small")

    build.check("09_small")
    notebook = nbformat.read(executed / "09_small.ipynb", as_version=4)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "markdown", "code"]
    assert notebook.cells[2].outputs[0].text == "2\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OLD.replace("return 2", "return 3"), "code cell 0 has other statements"),
        (OLD + "\n# %%\nx = 1\n", "2 code cells, and 1 in the .ipynb"),
    ],
)
def test_changed_code_is_refused_and_the_old_notebook_stays(executed, text, words):
    before = (executed / "09_small.ipynb").read_text()
    (executed / "09_small.py").write_text(text)

    with pytest.raises(build.BuildError, match=words):
        build.take_text("09_small")

    assert (executed / "09_small.ipynb").read_text() == before
