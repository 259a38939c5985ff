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

from typing import NamedTuple

import numpy as np

from jaxgen.adapters.adapter_file import Parts
from jaxgen.adapters.spellings import Module
from jaxgen.weights.tensors import Tensor

Shape = tuple[int, ...]
LORA, LOHA = {"down", "up"}, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
LOHA_CORES, MAGNITUDES = {"hada_t1", "hada_t2"}, {"magnitude", "magnitude_out"}
LOKR = {f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
LARGEST = 1e10  # of an adapter's values; those of real ones are far below 1e4


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
    if "weight_difference" in parts:
        return Change(dense=_read(module, parts["weight_difference"], shape))
    roles = set(parts) - {"alpha", "bias_difference"} - MAGNITUDES
    if not roles:
        return None
    if LORA <= roles <= LORA | {"mid"}:
        change = _lora(module, parts, shape)
        rank = parts["down"].shape[0]
    elif LOHA <= roles <= LOHA | LOHA_CORES:
        change = _loha(module, parts, shape)
        rank = parts["hada_w1_b"].shape[0]
    elif roles <= LOKR:
        change, rank = _lokr(module, parts, shape)
    else:
        raise ValueError(f"{module} has the tensors {', '.join(sorted(roles))}, not a whole set")
    if "alpha" in parts and rank:
        scale = float(_read(module, parts["alpha"], ())) / rank
    magnitude, by_output = _magnitude(module, parts, shape)
    return change._replace(
        scale=1.0 if scale is None else scale, magnitude=magnitude, by_output=by_output
    )


def _lora(module: Module, parts: Parts, shape: Shape) -> Change:
    """LoRA of a product or a convolution, and LoCon, whose core [r, r, kh, kw] has the kernel."""
    up, down = _whole(parts["up"]), _whole(parts["down"])
    _check_ranks(module, up.shape, down.shape, shape)
    left = up.reshape(up.shape[0], -1)
    if "mid" in parts:
        mid = _whole(parts["mid"])
        down = np.einsum("ijhw,jc->ichw", mid, down.reshape(down.shape[0], -1))
    _check(module, "up x down", (left.shape[0], *down.shape[1:]), shape)
    return Change(left=left, right=down.reshape(down.shape[0], -1))


def _loha(module: Module, parts: Parts, shape: Shape) -> Change:
    a1, b1, a2, b2 = (_whole(parts[f"hada_{n}"]) for n in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if "hada_t1" in parts and "hada_t2" in parts:
        first = np.einsum("ijhw,jc,io->ochw", _whole(parts["hada_t1"]), b1, a1)
        second = np.einsum("ijhw,jc,io->ochw", _whole(parts["hada_t2"]), b2, a2)
    else:
        first, second = a1 @ b1, a2 @ b2
    return Change(dense=_fit(module, first * second, shape))


def _lokr(module: Module, parts: Parts, shape: Shape) -> tuple[Change, int]:
    """The Kronecker product, and the rank that alpha is divided by: 0 where both are whole."""
    first, rank1 = _factor(module, parts, "w1")
    second, rank2 = _factor(module, parts, "w2")
    first = first.reshape(*first.shape, *(1,) * (second.ndim - first.ndim))
    return Change(dense=_fit(module, np.kron(first, second), shape)), rank2 or rank1


def _factor(module: Module, parts: Parts, name: str) -> tuple[np.ndarray, int]:
    """One factor of LoKr: whole (rank 0), a product, or one with a core."""
    if f"lokr_{name}" in parts:
        return _whole(parts[f"lokr_{name}"]), 0
    if f"lokr_{name}_a" not in parts or f"lokr_{name}_b" not in parts:
        raise ValueError(f"{module} lacks lokr_{name}, or lokr_{name}_a and lokr_{name}_b")
    a, b = _whole(parts[f"lokr_{name}_a"]), _whole(parts[f"lokr_{name}_b"])
    if name == "w2" and "lokr_t2" in parts:
        return np.einsum("ijhw,jc,io->ochw", _whole(parts["lokr_t2"]), b, a), b.shape[0]
    product = a @ b.reshape(b.shape[0], -1)
    return product.reshape(a.shape[0], *b.shape[1:]), b.shape[0]


def _magnitude(module: Module, parts: Parts, shape: Shape) -> tuple[np.ndarray | None, bool]:
    """The norms of DoRA, and whether they are the outputs'.

    PEFT's are; LyCORIS has both, and the shapes tell: [O, 1, ...] or [1, I, ...].
    """
    present = MAGNITUDES & set(parts)
    if not present:
        return None, True
    role = present.pop()
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
    return Change(dense=_read(module, parts["bias_difference"], shape))


def _check_ranks(module: Module, up: Shape, down: Shape, shape: Shape) -> None:
    if len(up) < 2 or len(down) < 2 or up[1] != down[0] or set(up[2:]) - {1}:
        raise ValueError(
            f"{module} has up {list(up)} and down {list(down)} in the file; expected [O, r] and "
            f"[r, I] of a weight {list(shape)}"
        )


def _fit(module: Module, values: np.ndarray, shape: Shape) -> np.ndarray:
    """A product in the shape of the weight, as which it may be stored flat: [O, I kh kw]."""
    if values.ndim == 2 and len(shape) == 4 and values.size == np.prod(shape):
        values = values.reshape(values.shape[0], *shape[1:])
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
        raise ValueError(
            f"the adapter's tensors for {module} are not finite, or beyond {LARGEST:g}; fetch the "
            "file again"
        )
