# SPDX-License-Identifier: MIT
"""Tensors in PyTorch's names and layouts -> a linen parameter tree, and back; both are checked.

Submodules of jaxgen's ported networks carry diffusers' names, so a tensor's place is its name with
".3" written "_3", and only five rows of layout remain:

    PyTorch                     linen        values
    conv    weight  O I H W     kernel       H W I O
    linear  weight  O I         kernel       I O        (also when either side is a 1x1 convolution)
    embedding weight            embedding    as they are
    norm    weight              scale        as they are
    any     bias                bias         as they are
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental.layout import Format
from jax.sharding import Sharding

from jaxgen import files
from jaxgen.types import Array, Params
from jaxgen.weights import tensors as tensors_io
from jaxgen.weights.tensors import Tensor

Path = tuple[str, ...]
Convert = Callable[[Path, np.ndarray], dict[Path, np.ndarray]]  # a leaf -> leaves, on the host

# AutoencoderKL's attention before diffusers 0.17; only where the parent is `attentions.N`.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Constants that old versions of transformers stored beside the weights.
IGNORED = ("embeddings.position_ids",)
# Names that end in a number without being an item of a list.
NOT_LISTS = ("linear_1", "linear_2")
# Modules that diffusers keeps as 1x1 convolutions where linen may have a Dense.
CONV_1X1 = ("conv_shortcut", "quant_conv", "post_quant_conv")
# PyTorch's order of the axes of a kernel in linen, by its rank.
STORED_ORDER = {4: (3, 2, 0, 1), 2: (1, 0)}

LISTED = 12  # faults of one kind that an error names before it counts the rest


def load(
    tensors: Mapping[str, Tensor],
    abstract: Params,
    dtype: Any = jnp.float32,
    sharding: Callable[[Path, tuple[int, ...]], Sharding | Format | None] | None = None,
    convert: Convert | None = None,
) -> Params:
    """The parameter tree whose shapes `abstract` gives, filled with `tensors` cast to `dtype`.

    abstract: the "params" of `jax.eval_shape(model.init, ...)`. sharding: where a leaf goes, by its
    path and shape, and with which order of axes in memory; None is the default device. convert: the
    leaves to keep instead of one. Tensors are read, laid out, cast, converted and moved to the
    devices one by one. Raises ValueError, before anything is read, that lists all unknown, missing,
    repeated and wrongly shaped tensors; and for values that `dtype` cannot hold.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(abstract)
    shapes = {_path(keys): tuple(leaf.shape) for keys, leaf in leaves}
    plan = match({name: tensor.shape for name, tensor in tensors.items()}, shapes)
    _check_floating(tensors, plan)
    put: dict[Path, Array] = {}
    for path, shape in shapes.items():
        values = linen_layout(path[-1], tensors[plan[path]].read(), shape, dtype)
        _check_range(plan[path], values, tensors[plan[path]].dtype)
        for own, kept in (convert(path, values) if convert else {path: values}).items():
            put[own] = _put(kept, sharding and sharding(own, kept.shape))
    return traverse_util.unflatten_dict(put)


def match(
    stored: Mapping[str, tuple[int, ...]], wanted: Mapping[Path, tuple[int, ...]]
) -> dict[Path, str]:
    """Which stored tensor fills which leaf: {leaf path: tensor name}.

    stored: tensor name -> shape. wanted: leaf path -> shape. Raises one ValueError with every
    tensor that has no leaf, every leaf that has no tensor or two, and every shape that differs.
    """
    plan: dict[Path, str] = {}
    unknown, repeated, misshaped = [], [], []
    for name, shape in stored.items():
        if name.endswith(IGNORED):
            continue
        path = leaf_path(name, wanted)
        if path is None:
            unknown.append(f"{name} {list(shape)}")
        elif path in plan:
            repeated.append(f"{name} and {plan[path]}")
        else:
            plan[path] = name
            laid_out = linen_shape(path[-1], shape, len(wanted[path]))
            if laid_out != wanted[path]:
                misshaped.append(
                    f"{name}: {list(shape)} in the file, but {'/'.join(path)} is "
                    f"{list(wanted[path])}"
                )
    missing = [f"{'/'.join(path)} {list(wanted[path])}" for path in wanted if path not in plan]
    _raise_faults(unknown, missing, repeated, misshaped)
    return plan


def leaf_path(name: str, wanted: Mapping[Path, Any]) -> Path | None:
    """The leaf of `wanted` that a tensor called `name` belongs to, None if there is none."""
    *module, kind = modern_name(name).split(".")
    path = module_path(".".join(module))
    if kind == "bias":
        candidates = ["bias"]
    else:
        candidates = ["kernel", "scale", "embedding"] if kind == "weight" else []
    leaves = [(*path, leaf) for leaf in candidates if (*path, leaf) in wanted]
    return leaves[0] if len(leaves) == 1 else None


def modern_name(name: str) -> str:
    """Today's diffusers name of a tensor."""
    parts = name.split(".")
    if len(parts) > 4 and parts[-4] == "attentions" and parts[-2] in OLD_NAMES:
        parts[-2] = OLD_NAMES[parts[-2]]
    return ".".join(parts)


def module_path(module: str) -> Path:
    """ "down_blocks.0.resnets.1.conv1" -> ("down_blocks_0", "resnets_1", "conv1")."""
    return tuple(re.sub(r"\.(\d+)(?=\.|$)", r"_\1", module).split("."))


def linen_shape(leaf: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    """The shape that a stored tensor takes in a leaf of that name and rank, None if it cannot."""
    if leaf != "kernel":
        return shape if len(shape) == rank else None
    match (len(shape), rank):
        case (4, 4):
            o, i, h, w = shape
            return (h, w, i, o)
        case (2, 2):
            return shape[::-1]
        case (4, 2) if shape[2:] == (1, 1):
            return shape[1::-1]
        case (2, 4):
            return (1, 1, *shape[::-1])
    return None


def linen_layout(leaf: str, values: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A stored tensor's values in the layout and type of a leaf.

    In new memory, unless they lie in memory of that layout that nobody can write to.
    """
    with np.errstate(over="ignore"):  # `load` says more than NumPy's warning
        values = values.astype(dtype, copy=False)  # casting strided values would be far slower
    turned = _turned(leaf, values, shape)
    if tensors_io.is_aligned(turned) and not turned.flags.writeable:
        return turned
    result = tensors_io.aligned_empty(shape, values.dtype)
    if leaf != "kernel" or values.ndim == len(shape) == 4:
        result[...] = turned
    else:
        o, i = values.shape[:2]
        linear, flat = values.reshape(o, i), result.reshape(i, o)
        for start in range(0, o, 16):  # strips fit the cache: five times faster than in one go
            flat[:, start : start + 16] = linear[start : start + 16].T
    return result


def to_linen_tensors(params: Params) -> dict[str, Tensor]:
    """The parameter tree as tensors in linen's own names, joined by "/", and layouts.

    A file of them is read faster than one of `to_tensors`: nothing is laid out anew.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        "/".join(_path(keys)): Tensor(
            tuple(leaf.shape), np.dtype(leaf.dtype), partial(np.asarray, leaf)
        )
        for keys, leaf in leaves
    }


def from_linen_tensors(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of `to_linen_tensors` under diffusers' names, as views in its layouts.

    Others, whose names have no "/", are given back as they are.
    """
    result = {}
    for name, tensor in stored.items():
        *module, leaf = name.split("/")
        if module:
            order = STORED_ORDER.get(len(tensor.shape)) if leaf == "kernel" else None
            result[tensor_name((*module, leaf))] = tensors_io.transposed(tensor, order)
        else:
            result[name] = tensor
    return result


def to_tensors(params: Params, conv_1x1: tuple[str, ...] = CONV_1X1) -> dict[str, Tensor]:
    """The parameter tree as tensors in diffusers' names and layouts, the inverse of `load`.

    conv_1x1: names of modules whose kernel [I, O] diffusers stores as [O, I, 1, 1]. Values are
    fetched from the devices one by one, when they are read.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    result = {}
    for keys, leaf in leaves:
        path = _path(keys)
        name = tensor_name(path)
        if name in result:
            raise ValueError(f"two leaves of the tree are called {name}; one of them is misplaced")
        result[name] = _to_tensor(path, leaf, conv_1x1)
    return result


def tensor_name(path: Path) -> str:
    """("down_blocks_0", "resnets_1", "conv1", "bias") -> "down_blocks.0.resnets.1.conv1.bias"."""
    *module, leaf = path
    if leaf not in ("kernel", "scale", "embedding", "bias"):
        raise ValueError(
            f"{'/'.join(path)} has no place in a diffusers checkpoint, whose leaves are kernel, "
            "scale, embedding and bias"
        )
    parts = [p if p in NOT_LISTS else re.sub(r"_(\d+)$", r".\1", p) for p in module]
    return ".".join([*parts, "bias" if leaf == "bias" else "weight"])


def _to_tensor(path: Path, leaf: Array, conv_1x1: tuple[str, ...]) -> Tensor:
    if path[-1] != "kernel":
        return Tensor(tuple(leaf.shape), np.dtype(leaf.dtype), partial(np.asarray, leaf))
    if leaf.ndim not in STORED_ORDER:
        raise ValueError(f"{'/'.join(path)} has rank {leaf.ndim}; a kernel has rank 2 or 4")
    in_linen = Tensor(tuple(leaf.shape), np.dtype(leaf.dtype), partial(np.asarray, leaf))
    stored = tensors_io.transposed(in_linen, STORED_ORDER[leaf.ndim])
    if leaf.ndim == 2 and path[-2] in conv_1x1:
        return tensors_io.reshaped(stored, (*stored.shape, 1, 1))
    return stored


def _turned(leaf: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A view of a stored tensor's values with the axes of a leaf."""
    if leaf != "kernel":
        return values
    if values.ndim == len(shape) == 4:
        return values.transpose(2, 3, 1, 0)
    return values.reshape(values.shape[:2]).T.reshape(shape)


def _path(keys: Any) -> Path:
    return tuple(str(key.key) for key in keys)


def _check_floating(tensors: Mapping[str, Tensor], plan: Mapping[Path, str]) -> None:
    wrong = [
        f"{name} ({tensors[name].dtype})"
        for name in plan.values()
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating)
    ]
    if wrong:
        raise ValueError(
            f"weights must be floating point; these are not: {_list(wrong)}. Quantised checkpoints "
            "are not supported: fetch the float16 or float32 one"
        )


def _check_range(name: str, values: np.ndarray, stored: np.dtype) -> None:
    """Raises ValueError where a cast from the stored type made finite values infinite."""
    narrows = jnp.finfo(values.dtype).max < jnp.finfo(stored).max
    if narrows and not tensors_io.all_finite(values):
        raise ValueError(
            f"{files.printable(name)} holds values that {values.dtype} cannot: they became "
            "infinite. Load the model with dtype bfloat16 or float32"
        )


def _put(values: np.ndarray, sharding: Any) -> Array:
    # Waiting frees the host copy: otherwise every transfer in flight would hold its own.
    return jax.block_until_ready(jax.device_put(values, sharding))


def _raise_faults(unknown: list, missing: list, repeated: list, misshaped: list) -> None:
    faults = {
        "unknown tensors (in the file, not in the model)": unknown,
        "missing tensors (in the model, not in the file)": missing,
        "tensors for the same place": repeated,
        "wrong shapes": misshaped,
    }
    lines = [f"{len(f)} {title}: {_list(f)}" for title, f in faults.items() if f]
    if lines:
        raise ValueError(
            "the checkpoint does not fit the model; check that its config.json belongs to these "
            "weights.\n" + "\n".join(lines)
        )


def _list(faults: list[str]) -> str:
    rest = f" ... and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    return "; ".join(files.printable(fault, 300) for fault in faults[:LISTED]) + rest
