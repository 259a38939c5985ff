# SPDX-License-Identifier: MIT
"""The tensors that a file has for one module -> the change of its weight, as matrices on the host.

A weight is PyTorch's, [O, I] or [O, I, kh, kw]; its matrix [O, K] has K = I kh kw. With scale s:

    LoRA    Hu et al. 2021 (arXiv:2106.09685) eq. 3                s up down
    LoCon   with a core: Yeh et al. 2023 (arXiv:2309.14859)        s up (mid x down)
    LoHa    the same, and Hyeon-Woo et al. 2021 (arXiv:2108.06098) s (w1a w1b) * (w2a w2b)
    LoKr    the same: a Kronecker product                          s w1 (x) w2
    full    a difference of weights                                diff
    DoRA    Liu et al. 2024 (arXiv:2402.09353) eq. 5: any of these, then new norms; `merge` does it
"""

import itertools
from collections.abc import Collection, Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.adapters import adapter_file
from jaxgen.adapters.adapter_file import Parts
from jaxgen.adapters.spellings import Module
from jaxgen.weights.tensors import Tensor

Shape = tuple[int, ...]
LORA = frozenset({"down", "up"})
LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
LOKR_FIRST = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
LOKR_SECOND = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
# the whole sets of tensors that describe the change of a weight -> its kind
WHOLE = {
    frozenset({"weight_difference"}): "full",
    LORA: "LoRA",
    LORA | {"mid"}: "LoRA",
    LOHA: "LoHa",
    LOHA | {"hada_t1", "hada_t2"}: "LoHa",
    **{frozenset(a | b): "LoKr" for a, b in itertools.product(LOKR_FIRST, LOKR_SECOND)},
}
MAGNITUDES = {"magnitude", "magnitude_out"}
LARGEST = 1e10  # of an adapter's values; those of real ones are far below 1e4


class MalformedError(ValueError):
    """A file's tensors are wrong in themselves, for every model."""


class Change(NamedTuple):
    """The change of one weight: scale * left @ right where it is of low rank, else `dense`.

    float32. The norms of DoRA belong to outputs (`by_output`) or to inputs.
    """

    left: np.ndarray | None = None  # [O, r]
    right: np.ndarray | None = None  # [r, K]
    dense: np.ndarray | None = None  # the weight's shape
    scale: float = 1.0
    magnitude: np.ndarray | None = None  # [O] or [I]
    by_output: bool = True


def of_weight(
    module: Module, parts: Parts, shape: Shape, scale: float | None = None
) -> Change | None:
    """Reads the change of a module's weight, whose shape is `shape`; None if the file has none.

    scale: alpha / r by the file's configuration; a tensor "alpha" of the module comes before it,
    and without either it is 1. Raises ValueError where tensors are missing or of another shape.
    """
    kind = _kind(module, parts)
    _check_values(module, parts)
    match kind:
        case "bias alone":
            return None
        case "full":
            return Change(dense=_read(module, parts["weight_difference"], shape))
        case "LoRA":
            change, rank = _lora(module, parts, shape), parts["down"].shape[0]
        case "LoHa":
            change, rank = _loha(module, parts, shape), parts["hada_w1_b"].shape[0]
        case _:
            change, rank = _lokr(module, parts, shape)
    if "alpha" in parts and rank:
        scale = float(_read(module, parts["alpha"], ())) / rank
    magnitude, by_output = _magnitude(module, parts, shape)
    return change._replace(
        scale=1.0 if scale is None else scale, magnitude=magnitude, by_output=by_output
    )


def _kind(module: Module, parts: Collection[str]) -> str:
    """Names the kind of change that these tensors describe, all of them together.

    Raises ValueError where one is missing, or where one would be left out or without effect.
    """
    magnitudes = MAGNITUDES.intersection(parts)
    kind = WHOLE.get(frozenset(parts) - {"alpha", "bias_difference"} - MAGNITUDES)
    if kind is None and set(parts) <= {"alpha", "bias_difference"} and "bias_difference" in parts:
        return "bias alone"
    if kind is None or (kind == "full" and magnitudes):
        raise MalformedError(
            f"{module} has the tensors {_named(parts)}, not a whole set; "
            "expected all of one kind and no others. Fetch or export the file again"
        )
    if len(magnitudes) > 1:
        raise MalformedError(
            f"{module} has two tensors of magnitudes (DoRA), dora_scale and lora_magnitude_vector; "
            "expected one, and nothing says which counts"
        )
    return kind


def _check_values(module: Module, parts: Parts) -> None:
    """Raises ValueError for tensors that hold nothing, or what no weight can be changed by."""
    for role, tensor in parts.items():
        if role == "alpha" and jnp.issubdtype(tensor.dtype, jnp.integer):
            continue
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise MalformedError(
                f"the tensor {_named([role])} of {module} has the type {tensor.dtype}; expected "
                "floating point. Quantised adapters are not implemented: fetch the float16 or "
                "float32 file"
            )
        if 0 in tensor.shape:
            raise MalformedError(
                f"the tensor {_named([role])} of {module} is empty, {list(tensor.shape)}; expected "
                "at least one value, and so a rank of at least 1. Fetch or export the file again"
            )


def _named(roles: Iterable[str]) -> str:
    """Lists tensors as trainers name them."""
    return ", ".join(sorted(adapter_file.names_of(role)[0] for role in roles))


def _lora(module: Module, parts: Parts, shape: Shape) -> Change:
    """LoRA of a product or a convolution, and LoCon, whose core [r, r, kh, kw] has the kernel."""
    up, down = _whole(parts["up"]), _whole(parts["down"])
    _check_ranks(module, up.shape, down.shape, shape)
    left = up.reshape(up.shape[0], -1)
    if "mid" in parts:
        mid = _whole(parts["mid"])
        if mid.ndim != 4 or mid.shape[:2] != (up.shape[1], down.shape[0]):
            raise _misfit(module, parts, "up [O, r], mid [r, r, kh, kw] and down [r, I]")
        down = np.einsum("ijhw,jc->ichw", mid, down.reshape(down.shape[0], -1))
    _check(module, "up x down", (left.shape[0], *down.shape[1:]), shape)
    return Change(left=left, right=down.reshape(down.shape[0], -1))


def _loha(module: Module, parts: Parts, shape: Shape) -> Change:
    first, second = (
        _product(module, parts, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2)
    )
    if first.shape != second.shape:
        raise _misfit(module, parts, "two products of one shape, w1_a w1_b and w2_a w2_b")
    return Change(dense=_fit(module, first * second, shape))


def _lokr(module: Module, parts: Parts, shape: Shape) -> tuple[Change, int]:
    """The Kronecker product, and the rank that alpha is divided by: 0 where both are whole."""
    first, rank1 = _factor(module, parts, "w1")
    second, rank2 = _factor(module, parts, "w2")
    if first.ndim < 2 or second.ndim < first.ndim:
        raise _misfit(module, parts, "w1 [O1, I1] and w2 [O2, I2] or [O2, I2, kh, kw]")
    first = first.reshape(*first.shape, *(1,) * (second.ndim - first.ndim))
    return Change(dense=_fit(module, np.kron(first, second), shape)), rank2 or rank1


def _factor(module: Module, parts: Parts, name: str) -> tuple[np.ndarray, int]:
    """One factor of LoKr: whole (rank 0), a product, or one with a core."""
    if f"lokr_{name}" in parts:
        return _whole(parts[f"lokr_{name}"]), 0
    a, b = f"lokr_{name}_a", f"lokr_{name}_b"
    core = "lokr_t2" if name == "w2" else ""
    return _product(module, parts, a, b, core), parts[b].shape[0]


def _product(module: Module, parts: Parts, a: str, b: str, core: str) -> np.ndarray:
    """The product of two factors of LoHa or LoKr: [O, ...], with the core's kernel if it has one.

    a: [O, r], b: [r, I] or [r, I, kh, kw]; with a core [r, r, kh, kw] a: [r, O] and b: [r, I].
    """
    first, second = _whole(parts[a]), _whole(parts[b])
    if core in parts:
        middle = _whole(parts[core])
        ranks = (len(first), len(second)) if first.ndim == second.ndim == 2 else ()
        if middle.ndim != 4 or middle.shape[:2] != ranks:
            raise _misfit(module, parts, f"{core} [r, r, kh, kw], {a} [r, O] and {b} [r, I]")
        return np.einsum("ijhw,jc,io->ochw", middle, second, first)
    if first.ndim != 2 or second.ndim < 2 or first.shape[1] != second.shape[0]:
        raise _misfit(module, parts, f"{a} [O, r] and {b} [r, I]")
    product = first @ second.reshape(second.shape[0], -1)
    return product.reshape(first.shape[0], *second.shape[1:])


def _misfit(module: Module, parts: Parts, expected: str) -> MalformedError:
    """The error about factors whose shapes do not go together."""
    shapes = ", ".join(f"{_named([role])} {list(parts[role].shape)}" for role in sorted(parts))
    return MalformedError(
        f"{module} has {shapes} in the file; expected {expected}. Fetch or export it again"
    )


def _magnitude(module: Module, parts: Parts, shape: Shape) -> tuple[np.ndarray | None, bool]:
    """The norms of DoRA, and whether they are the outputs'.

    PEFT's are; LyCORIS has both, and the shapes tell: [O, 1, ...] or [1, I, ...].
    """
    role = next((role for role in parts if role in MAGNITUDES), None)
    if role is None:
        return None, True
    norms = _whole(parts[role])
    by_output = role == "magnitude_out" or norms.ndim < 2 or norms.shape[0] != 1
    count = shape[0] if by_output else shape[1]
    if norms.size != count:
        raise ValueError(
            f"{module} has {norms.size} magnitudes (DoRA) in the file; the weight has "
            f"{count} {'outputs' if by_output else 'inputs'}"
        )
    return norms.reshape(-1), by_output


def of_bias(module: Module, parts: Parts, shape: Shape) -> Change | None:
    """Reads the change of a module's bias [O]; None if the file has none."""
    if "bias_difference" not in parts:
        return None
    _check_values(module, parts)
    return Change(dense=_read(module, parts["bias_difference"], shape))


def _check_ranks(module: Module, up: Shape, down: Shape, shape: Shape) -> None:
    if len(up) < 2 or len(down) < 2 or up[1] != down[0] or set(up[2:]) - {1}:
        raise ValueError(
            f"{module} has up {list(up)} and down {list(down)} in the file; expected [O, r] and "
            f"[r, I] of a weight {list(shape)}"
        )


def _fit(module: Module, values: np.ndarray, shape: Shape) -> np.ndarray:
    """A product in the shape of the weight, as which it may be stored flat: [O, I kh kw]."""
    if values.ndim == 2 and len(shape) == 4 and values.shape == (shape[0], np.prod(shape[1:])):
        values = values.reshape(shape)
    _check(module, "the change", values.shape, shape)
    return values.reshape(shape)


def _check(module: Module, what: str, stored: Shape, shape: Shape) -> None:
    """Raises ValueError unless two shapes are one, but for the axes of a 1x1 kernel."""
    if _squeezed(stored) != _squeezed(shape):
        raise ValueError(
            f"{what} of {module} is {list(stored)} in the file, and the weight is {list(shape)}"
        )


def _squeezed(shape: Shape) -> Shape:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _read(module: Module, tensor: Tensor, shape: Shape) -> np.ndarray:
    _check(module, "the tensor", tensor.shape if shape else (), shape)
    values = _whole(tensor)
    if values.size != np.prod(shape, dtype=int):
        raise ValueError(f"{module} has {values.size} values where {list(shape)} are expected")
    return values.reshape(shape)


def _whole(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.read(), np.float32)


def check_finite(module: Module, change: Change) -> None:
    """Raises ValueError where a change would put NaN or infinity into the model.

    Finite values of damaged files do so, too, once they are multiplied.
    """
    arrays = (change.left, change.right, change.dense, change.magnitude, np.float32(change.scale))
    if not all(array is None or (np.abs(array) <= LARGEST).all() for array in arrays):
        raise MalformedError(
            f"the adapter's tensors for {module} are not finite, or beyond {LARGEST:g}; fetch the "
            "file again"
        )
