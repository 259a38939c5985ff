# SPDX-License-Identifier: MIT
"""Executes the notebooks' sources and writes the .ipynb files, with outputs, beside them.

    python notebooks/build.py                    # all of them
    python notebooks/build.py 02_vae             # one
    python notebooks/build.py --quick            # short training, every cell, writes nothing
    python notebooks/build.py --text 02_vae      # executes nothing: new prose, comments, docstrings
    python notebooks/build.py --check            # executes nothing: are the .ipynb up to date?

The source of a notebook is its .py file, in jupytext's percent format. It runs from top to bottom
in a fresh kernel, in this folder. A cell that fails is named with its line in the .py file, and the
old .ipynb stays as it was. --text refuses a notebook whose statements differ from those executed.
With --quick the kernel sees JAXGEN_NOTEBOOK_QUICK=1 (quick.py), and the folded answers of the
exercises run too: each has to be judged right by its check.
"""

import argparse
import ast
import os
import re
import sys
import time
from importlib import metadata
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).parent
MOST_BYTES = 1_500_000  # of an .ipynb: what a browser still opens at once
CELL_SECONDS = 900  # a cell that takes longer hangs
QUICK = "JAXGEN_NOTEBOOK_QUICK"
_ANSWER = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class BuildError(Exception):
    """One sentence on what is wrong with a notebook."""


def names() -> list[str]:
    """The names of all notebooks, in the order in which they are read."""
    return sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.py"))


def read_source(name: str) -> nbformat.NotebookNode:
    """Reads a .py as a notebook without outputs, whose cells have ids that never change."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def answers(notebook: nbformat.NotebookNode) -> list[str]:
    """The Python code of the folded answers to the exercises."""
    texts = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [code for text in texts for code in _ANSWER.findall(text)]


def execute(name: str, notebook: nbformat.NotebookNode) -> None:
    """Runs all cells in a fresh kernel and keeps their outputs in the notebook.

    Raises BuildError that names the notebook, the cell and the line at which it failed.
    """
    places: list[int] = []
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
        coalesce_streams=True,
        on_cell_start=lambda cell, cell_index: places.append(cell_index),
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise BuildError(_place(name, notebook, places[-1], str(error))) from error
    except CellTimeoutError as error:
        fault = f"took more than {CELL_SECONDS} s"
        raise BuildError(_place(name, notebook, places[-1], fault)) from error
    except DeadKernelError as error:
        fault = "ended the kernel; is there enough memory?"
        raise BuildError(_place(name, notebook, places[-1], fault)) from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def _place(name: str, notebook: nbformat.NotebookNode, index: int, fault: str) -> str:
    """The sentence on a cell that failed: notebook, cell, line of the source, and the fault."""
    cell = notebook.cells[index]
    lines = _ANSI.sub("", fault).strip().splitlines()
    frame = next((line for line in lines if re.search(r"Cell In\[\d+\], line", line)), "")
    within = int(match[1]) if (match := re.search(r"line (\d+)", frame)) else 1
    source = (FOLDER / f"{name}.py").read_text()
    start = source.find(cell.source)
    code = cell.source.splitlines()[within - 1].strip() if cell.source else ""
    if start < 0:  # a folded answer
        return f"{name}: the answer of an exercise, `{code}`: {lines[-1]}"
    line = source.count("\n", 0, start) + within
    return f"{name}: cell {index}, notebooks/{name}.py line {line}, `{code}`: {lines[-1]}"


def build(name: str) -> str:
    """Executes a notebook, writes its .ipynb, and says how long and how large it was."""
    notebook, began = read_source(name), time.monotonic()
    execute(name, notebook)
    num_bytes = _write(name, notebook)
    return f"{name}: {time.monotonic() - began:.0f} s, {num_bytes / 1e6:.2f} MB"


def take_text(name: str) -> str:
    """Takes over what a reader reads, and keeps the outputs; executes nothing.

    Text cells may come and go. Raises BuildError where a code cell has other statements.
    """
    notebook = read_source(name)
    built = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    ours, theirs = _code_cells(notebook), _code_cells(built)
    if len(ours) != len(theirs):
        raise BuildError(
            f"{name}: {len(ours)} code cells, and {len(theirs)} in the .ipynb; run python "
            f"notebooks/build.py {name}"
        )
    for number, (cell, executed) in enumerate(zip(ours, theirs, strict=True)):
        if _statements(cell.source) != _statements(executed.source):
            raise BuildError(
                f"{name}: code cell {number} has other statements than the executed one; run "
                f"python notebooks/build.py {name}"
            )
        cell.outputs, cell.execution_count = executed.outputs, executed.execution_count
    return f"{name}: text taken over, {_write(name, notebook) / 1e6:.2f} MB"


def _code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _statements(code: str) -> str:
    """The statements of a cell, without comments, layout and docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def _write(name: str, notebook: nbformat.NotebookNode) -> int:
    """Writes the .ipynb whole, or leaves the old one; gives its bytes."""
    text = nbformat.writes(notebook) + "\n"
    if len(text) > MOST_BYTES:
        raise BuildError(
            f"{name}: {len(text):,} bytes with its outputs, and {MOST_BYTES:,} are allowed; draw "
            f"fewer or smaller pictures"
        )
    target = FOLDER / f"{name}.ipynb"
    partial = target.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(target)
    return len(text)


def try_quickly(name: str) -> str:
    """Executes a notebook with short training, and the answers of its exercises; writes nothing."""
    os.environ[QUICK] = "1"
    os.environ |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": _quick_flags()}
    notebook, began = read_source(name), time.monotonic()
    first = len(notebook.cells)
    for number, code in enumerate(answers(notebook)):
        cell = nbformat.v4.new_code_cell(code)
        cell.id = f"answer-{number}"
        notebook.cells.append(cell)
    execute(name, notebook)
    for number, cell in enumerate(notebook.cells[first:], 1):
        printed = "".join(output.get("text", "") for output in cell.outputs)
        if not printed.startswith("right"):
            raise BuildError(f"{name}: its check calls answer {number} not right: {printed!r}")
    return f"{name}: {time.monotonic() - began:.0f} s, {len(notebook.cells) - first} answers"


def _quick_flags() -> str:
    """XLA's flags for short runs, which the compiler takes longer for than the arithmetic."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"
    flags += " --xla_cpu_parallel_codegen_split_count=1"
    older = tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11)
    return flags + " --xla_cpu_use_fusion_emitters=false" * older  # later jaxlib lacks the flag


def check(name: str) -> str:
    """Compares the cells of the .ipynb with those of the .py. Raises BuildError if they differ."""
    target, mend = FOLDER / f"{name}.ipynb", f"run python notebooks/build.py {name}"
    if not target.exists():
        raise BuildError(f"{name}: there is no notebooks/{name}.ipynb; {mend}")
    source, built = _cells(read_source(name)), _cells(nbformat.read(target, as_version=4))
    for number, (expected, cell) in enumerate(zip(source, built, strict=False)):
        if expected != cell:
            raise BuildError(f"{name}: cell {number} differs from that in the .py; {mend}")
    if len(source) != len(built):
        raise BuildError(f"{name}: {len(built)} cells, and {len(source)} in the .py; {mend}")
    return f"{name}: up to date"


def _cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 02_vae; default: all")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="short training; writes nothing")
    how.add_argument("--text", action="store_true", help="take over changed prose only")
    how.add_argument("--check", action="store_true", help="compare only; executes nothing")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in names()]
    if unknown:
        parser.error(f"no notebook {', '.join(unknown)}; known are {', '.join(names())}")
    chosen = {try_quickly: options.quick, take_text: options.text, check: options.check}
    action = next((action for action, is_asked in chosen.items() if is_asked), build)
    faults = 0
    for name in options.names or names():
        try:
            print(action(name), flush=True)
        except BuildError as error:
            print(error, file=sys.stderr, flush=True)
            faults += 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
