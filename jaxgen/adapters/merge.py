# SPDX-License-Identifier: MIT
"""Adapters are merged into parameters: W' = W + sum_k strength_k change_k, from the untouched W.

Sums run on the device in float32, weight by weight, and only the weights that change are copied.
Parameters are data of the pipeline's programs, so that none of these is compiled anew. A merge's
own small programs depend on a weight's shape alone, since factors of low rank go to the device in
slices of RANK.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgen import files
from jaxgen.adapters import adapter_file, change, spec
from jaxgen.adapters.adapter_file import Adapter
from jaxgen.adapters.change import Change
from jaxgen.adapters.spec import Spec
from jaxgen.adapters.spellings import Module
from jaxgen.types import Array, Params
from jaxgen.weights import layout, tensors

ADAPTABLE = ("unet", "text_encoder", "text_encoder_2")
RANK = 32  # columns of a factor that one program adds
Path_ = layout.Path  # of a leaf in the tree
# the axes of a leaf in PyTorch's order, by its name and rank
TO_TORCH = {
    ("kernel", 4): (3, 2, 0, 1),
    ("kernel", 2): (1, 0),
    ("embedding", 2): (0, 1),
    ("scale", 1): (0,),
    ("bias", 1): (0,),
}


class Weighted(NamedTuple):
    """An adapter, and how strongly each component takes it."""

    adapter: Adapter
    strengths: dict[str, float]


def open_all(base: Mapping[str, Params], specs: Sequence[Spec]) -> list[Weighted]:
    """Reads the headers of adapters for the parameters of all components.

    specs: what `StableDiffusion.set_adapters` takes. Raises one ValueError that names the file.
    """
    adaptable = {name: leaves_of(params) for name, params in base.items() if name in ADAPTABLE}
    modules = {name: module_names(leaves) for name, leaves in adaptable.items()}
    return [_open(entry, modules) for entry in specs]


def merge(base: Mapping[str, Params], weighted: Sequence[Weighted]) -> dict[str, Params]:
    """Merges adapters into the parameters of all components; what nothing changes stays base's own.

    Raises one ValueError that names the file; `base` is never changed.
    """
    adaptable = {name: leaves_of(params) for name, params in base.items() if name in ADAPTABLE}
    for adapter, _ in weighted:
        _check_biases(adapter, adaptable)
    merged = dict(base)
    for name, leaves in adaptable.items():
        changed = {path: _merged_leaf(name, path, leaf, weighted) for path, leaf in leaves.items()}
        merged[name] = jax.tree.unflatten(jax.tree.structure(base[name]), changed.values())
    return merged


def leaves_of(params: Params) -> dict[Path_, Array]:
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {tuple(str(key.key) for key in keys): leaf for keys, leaf in flat}


def module_names(leaves: Mapping[Path_, Any]) -> list[str]:
    """The modules that have these leaves, in diffusers' spelling."""
    return list(dict.fromkeys(layout.tensor_name(path).rpartition(".")[0] for path in leaves))


def _open(entry: Spec, modules: Mapping[str, Sequence[str]]) -> Weighted:
    path, strength, factors = spec.parts_of(entry)
    absent = sorted(factors.keys() - {"text"} - modules.keys())
    if absent:
        raise ValueError(
            f"adapter {files.printable(path)} has a strength for {', '.join(absent)}, which this "
            f"model does not have; use text, or {', '.join(modules)}"
        )
    adapter = adapter_file.read(path, modules)
    strengths = {}
    for component in modules:
        every = factors.get("text", 1.0) if component.startswith("text_encoder") else 1.0
        strengths[component] = strength * factors.get(component, every)
    return Weighted(adapter, strengths)


def _check_biases(adapter: Adapter, leaves: Mapping[str, Mapping[Path_, Array]]) -> None:
    """Raises ValueError where a file changes a bias that the model does not have."""
    for module, parts in adapter.parts.items():
        path = (*layout.module_path(module.name), "bias")
        if "bias_difference" in parts and path not in leaves[module.component]:
            raise ValueError(f"{adapter.name} changes the bias of {module}, which has none")


def _merged_leaf(component: str, path: Path_, leaf: Array, weighted: Sequence[Weighted]) -> Array:
    """One leaf of a component, with the changes of all adapters that touch it."""
    name, kind = layout.tensor_name(path).rpartition(".")[0], path[-1]
    module, total = Module(component, name), None
    for adapter, strengths in weighted:
        parts, strength = adapter.parts.get(module), strengths[component]
        if parts is None or strength == 0:
            continue
        with named(adapter):
            own = change_of(module, parts, kind, leaf, adapter.scales.get(module))
            if own is not None:
                total = _widened(leaf) if total is None else total
                total = _add(total, leaf, own, strength, kind)
    return leaf if total is None else _narrowed(total, leaf)


@contextlib.contextmanager
def named(adapter: Adapter) -> Iterator[None]:
    """Adds the file, and what it was made for, to errors about its tensors."""
    try:
        yield
    except tensors.NotFiniteError:  # which no other model mends
        raise
    except change.MalformedError as error:
        raise ValueError(f"{adapter.name}: {error}") from None
    except ValueError as error:
        base = f" The file was made for {adapter.base}." if adapter.base else ""
        raise ValueError(
            f"{adapter.name}: {error}.{base} Load a pipeline of the model that it was trained on"
        ) from None


def change_of(
    module: Module, parts: adapter_file.Parts, kind: str, leaf: Array, scale: float | None
) -> Change | None:
    shape = tuple(leaf.shape[axis] for axis in TO_TORCH[kind, leaf.ndim])
    if kind == "bias":
        result = change.of_bias(module, parts, shape)
    else:
        result = change.of_weight(module, parts, shape, scale)
    if result is not None:
        change.check_finite(module, result)
    return result


def _add(total: Array, leaf: Array, own: Change, strength: float, kind: str) -> Array:
    """Adds an adapter's change of one leaf to the sum."""
    if own.magnitude is None:
        return _add_plain(total, own, strength * own.scale, kind)
    # V = W + change; with strength s, W' = W + s (m V / |V| - W)
    changed = _add_plain(_widened(leaf), own, own.scale, kind)
    return _add_with_norms(
        total, leaf, changed, own.magnitude, np.float32(strength), by_output=own.by_output
    )


def _add_plain(total: Array, own: Change, scale: float, kind: str) -> Array:
    """Adds scale * change: factors by slices of RANK columns, which zeros fill up."""
    if own.left is None or own.right is None:
        assert own.dense is not None
        order = np.argsort(TO_TORCH[kind, own.dense.ndim]) if kind == "kernel" else None
        dense = own.dense if order is None else own.dense.transpose(order)
        return _add_dense(total, dense.reshape(total.shape), np.float32(scale))
    left, right = _filled(own.left.T).T, _filled(own.right)
    kernel = (total.shape[-2], *total.shape[:-2])  # I kh kw, the order of `right`
    for start in range(0, left.shape[1], RANK):
        columns = slice(start, start + RANK)
        rows = np.moveaxis(right[columns].reshape(RANK, *kernel), 1, -1).reshape(RANK, -1)
        total = _add_product(total, rows, left[:, columns], np.float32(scale))
    return total


def _filled(factor: np.ndarray) -> np.ndarray:
    """A factor [r, N] with zeros up to a multiple of RANK rows."""
    return np.pad(factor, ((0, -len(factor) % RANK), (0, 0)))


@jax.jit
def _widened(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) + 0  # a copy, which the sum may use up


@partial(jax.jit, donate_argnums=0)
def _add_product(total: Array, right: Array, left: Array, scale: Array) -> Array:
    """Adds scale * (left right)^T: total [kh, kw, I, O], right [r, kh kw I], left [O, r]."""
    product = jnp.matmul(right.T, left.T, precision=lax.Precision.HIGHEST)
    return total + scale * product.reshape(total.shape)


@partial(jax.jit, donate_argnums=0)
def _add_dense(total: Array, dense: Array, scale: Array) -> Array:
    return total + scale * dense


@partial(jax.jit, donate_argnums=0, static_argnames="by_output")
def _add_with_norms(
    total: Array, leaf: Array, changed: Array, magnitude: Array, strength: Array, by_output: bool
) -> Array:
    """Adds strength * (m V / |V| - W), with the norms over all axes but one; leaf [..., I, O]."""
    axis = leaf.ndim - (1 if by_output else 2)
    others = tuple(i for i in range(leaf.ndim) if i != axis)
    norms = jnp.sqrt(jnp.sum(changed**2, axis=others, keepdims=True))
    norms = jnp.where(norms == 0, 1, norms)  # a weight of zeros stays one
    sizes = [-1 if i == axis else 1 for i in range(leaf.ndim)]
    adapted = changed * magnitude.reshape(sizes) / norms
    return total + strength * (adapted - leaf.astype(jnp.float32))


def _narrowed(total: Array, leaf: Any) -> Array:
    """The sum in the type of the leaf, an array, and where and as that lies."""
    narrow = total.astype(leaf.dtype)
    # a leaf that asks for no device keeps that: asking would compile the programs anew
    return jax.device_put(narrow, leaf.format) if leaf.committed else narrow
