# SPDX-License-Identifier: MIT
"""Imports run one way through the layers of docs/design.md, read from the code."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# from the ground up; a place knows the layers below its own, and of its own layer only itself
LAYERS = (
    ("jaxgen.types", "jaxgen.files", "jaxgen.fields", "jaxgen.at_start"),
    (
        "jaxgen.nn", "jaxgen.train", "jaxgen.diffusion", "jaxgen.world", "jaxgen.measure",
        "jaxgen.cpu", "jaxgen.data", "jaxgen.weights", "jaxgen.pictures",
    ),
    ("jaxgen.script", "jaxgen.adapters", "jaxgen.warm"),
    ("jaxgen.runs", "jaxgen.stable_diffusion", "jaxgen.evaluate"),
    ("jaxgen.miniature",),
    ("experiments.parts",),
    ("experiments",),
    ("benchmarks",),
)  # fmt: skip
PACKAGE = sorted((ROOT / "jaxgen").rglob("*.py"))
FILES = [*PACKAGE, *sorted((ROOT / "experiments").rglob("*.py"))]
FILES += sorted((ROOT / "benchmarks").rglob("*.py"))
# what scripts import by a bare name, as Python finds it when it runs them
BARE = {path.stem for path in (ROOT / "experiments").iterdir() if path.suffix in ("", ".py")}
MOST_MODULES = 16  # in a folder, its __init__ not counted
EXTRAS = (
    "torch", "tensorflow", "tensorflow_datasets", "grain", "diffusers", "transformers", "wandb",
    "tensorboardX", "mlxtend",
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


def place_of(name):
    """(layer, place) of a dotted name, or None if no layer has it."""
    for layer, places in enumerate(LAYERS):
        for place in places:
            if below(name, (place,)):
                return layer, place
    return None


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def forbidden(path, tree):
    """Imports of our own code that the place of the file does not allow."""
    here = place_of(module_name(path))
    for line, name in imports(tree):
        if path.is_relative_to(ROOT / "experiments") and name.split(".")[0] in BARE:
            name = f"experiments.{name}"
        ours = below(name, ("jaxgen", "experiments", "benchmarks")) or name.startswith(".")
        if not ours or (here is None and path == ROOT / "jaxgen" / "__init__.py"):
            continue  # the package's own names are fetched when asked for, from any layer
        if name in ("jaxgen", "jaxgen.StableDiffusion", "jaxgen.__version__"):
            allowed = here is not None and here[0] > place_of("jaxgen.miniature")[0]
        else:
            there = place_of(name)
            allowed = None not in (here, there) and (there[0] < here[0] or there == here)
        if not allowed:
            yield f"{path.relative_to(ROOT)}:{line} imports {name}"


def parsed():
    return [(path, ast.parse(path.read_text(), str(path))) for path in FILES]


def test_imports_run_one_way():
    assert [fault for path, tree in parsed() for fault in forbidden(path, tree)] == []


def test_every_module_has_a_layer_and_no_folder_is_crowded():
    loose = [path for path in PACKAGE if path.parent == ROOT / "jaxgen"]
    assert len(loose) <= 1 + 5  # __init__ is the package itself
    assert [
        path for path in FILES if path not in loose and place_of(module_name(path)) is None
    ] == []
    for folder in {path.parent for path in FILES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, folder


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("jaxgen/nn/new.py", "from jaxgen.train import step"),
        ("jaxgen/nn/new.py", "import jaxgen.data.sets"),
        ("jaxgen/nn/new.py", "from jaxgen import types, data"),
        ("jaxgen/train/new.py", "from jaxgen.runs import run"),
        ("jaxgen/train/new.py", "from jaxgen import script"),
        ("jaxgen/train/new.py", "from . import step"),
        ("jaxgen/evaluate/new.py", "def f():\n    from jaxgen.runs import run"),
        ("jaxgen/runs/new.py", "from jaxgen.stable_diffusion import loading"),
        ("jaxgen/stable_diffusion/new.py", "from jaxgen.miniature import model"),
        ("jaxgen/script.py", "from jaxgen.runs import run"),
        ("jaxgen/train/new.py", "from jaxgen import __version__"),
        ("jaxgen/types.py", "from jaxgen.nn import blocks"),
        ("jaxgen/runs/new.py", "from experiments import vae"),
        ("experiments/new.py", "from benchmarks import race"),
        ("experiments/parts/new.py", "from vae import build"),
        ("experiments/parts/new.py", "import latent_autoencoder"),
        ("experiments/parts/new.py", "from studies import rate_distortion"),
        ("experiments/parts/new.py", "from experiments import gan"),
    ],
)
def test_a_breach_of_the_rule_is_seen(place, line):
    assert len(list(forbidden(ROOT / place, ast.parse(line)))) == 1


def test_extras_are_imported_where_they_are_used():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, tree in parsed()
        for line, name in imports(tree, top_only=True)
        if below(name, EXTRAS) and path in PACKAGE
    ]
    assert found == []


def test_torch_and_tensorflow_are_not_imported_at_all():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, tree in parsed()
        for line, name in imports(tree)
        if below(name, ("torch", "tensorflow", "diffusers", "transformers")) and path in PACKAGE
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


def test_scripts_have_their_own_parts_whatever_is_installed(tmp_path):
    for name in ("parts", "studies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    code = "import experiments, parts, studies; print(parts.__file__); print(studies.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folders = [Path(line).parent for line in done.stdout.splitlines()]
    assert folders == [ROOT / "experiments/parts", ROOT / "experiments/studies"]


def test_importing_every_module_needs_no_extra():
    """With the extras hidden, as in a plain installation."""
    modules = [module_name(path) for path in PACKAGE]
    code = (
        "import sys, importlib\n"
        f"for name in {EXTRAS!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
