# SPDX-License-Identifier: MIT
"""types <- rooms <- doorways <- experiments, read from the code; the rooms are `ROOMS`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("nn", "train", "diffusion", "evaluate", "io", "measure", "world")
FILES = sorted((ROOT / "jaxgen").rglob("*.py"))
EXTRAS = (
    "torch", "tensorflow", "tensorflow_datasets", "grain", "diffusers", "transformers", "wandb",
    "tensorboardX",
)  # fmt: skip
DEPRECATED = ("flax.training", "flax.jax_utils")


def imports(tree, top_only=False):
    """Full dotted names that a module imports, (line, name); `from a import b` gives a.b.

    top_only: those run when the module itself is imported, at any depth but inside functions.
    """
    nodes = list(_outside_functions(tree)) if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _outside_functions(node):
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _outside_functions(child)


def below(name, modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def forbidden(path, tree):
    """Imports of jaxgen itself that the place of the file does not allow."""
    parts = path.relative_to(ROOT / "jaxgen").parts
    if parts == ("types.py",):
        allowed = ()
    elif parts == ("__init__.py",):
        allowed = ("jaxgen.pipeline",)  # its public names, fetched when asked for (see below)
    elif len(parts) == 1:
        allowed = ("jaxgen",)  # a doorway joins the rooms
    else:
        allowed = ("jaxgen.types", f"jaxgen.{parts[0]}")
    # a run records the version it was made with
    version = ("jaxgen", "jaxgen.__version__") if parts[0] == "io" else ()
    for line, name in imports(tree):
        unknown = below(name, ("jaxgen",)) and not below(name, allowed) and name not in version
        if name.startswith(".") or below(name, ("experiments",)) or unknown:
            yield f"{path.relative_to(ROOT)}:{line} imports {name}"


def parsed():
    return [(path, ast.parse(path.read_text(), str(path))) for path in FILES]


def test_rooms_know_types_and_themselves_only():
    assert [fault for path, tree in parsed() for fault in forbidden(path, tree)] == []


def test_every_folder_of_the_package_is_a_room():
    folders = {
        path.relative_to(ROOT / "jaxgen").parts[0] for path in FILES if path.parent.name != "jaxgen"
    }
    assert folders == set(ROOMS)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("nn/new.py", "from jaxgen.train import step"),
        ("nn/new.py", "import jaxgen.data.sets"),
        ("nn/new.py", "from jaxgen import types, io"),
        ("train/new.py", "from jaxgen import run"),
        ("train/new.py", "from . import step"),
        ("evaluate/new.py", "def f():\n    from jaxgen.nn import blocks"),
        ("train/new.py", "from jaxgen import __version__"),
        ("types.py", "from jaxgen.nn import blocks"),
        ("run.py", "from experiments import vae"),
    ],
)
def test_a_breach_of_the_rule_is_seen(place, line):
    assert len(list(forbidden(ROOT / "jaxgen" / place, ast.parse(line)))) == 1


def test_extras_are_imported_where_they_are_used():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, tree in parsed()
        for line, name in imports(tree, top_only=True)
        if below(name, EXTRAS)
    ]
    assert found == []


def test_torch_and_tensorflow_are_not_imported_at_all():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, tree in parsed()
        for line, name in imports(tree)
        if below(name, ("torch", "tensorflow", "diffusers", "transformers"))
    ]
    assert found == []


def test_no_deprecated_corner_of_flax_and_no_raw_keys():
    faults = []
    for path, tree in parsed():
        faults += [
            f"{path}:{line} {name}" for line, name in imports(tree) if below(name, DEPRECATED)
        ]
        names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        names += [name.split(".")[-1] for _, name in imports(tree)]
        faults += [f"{path}: {name}" for name in names if name in ("PRNGKey", "jax_utils")]
    assert faults == []


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("jax", "flax", "numpy", "optax", "matplotlib", *EXTRAS)
    code = f"import sys, jaxgen; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_every_module_needs_no_extra():
    """With the extras hidden, as in a plain installation."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
    ]
    code = (
        "import sys, importlib\n"
        f"for name in {EXTRAS!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
