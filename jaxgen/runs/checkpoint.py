# SPDX-License-Identifier: MIT
"""Checkpoints of any training state: whole or absent, asynchronous, verified when they are read.

Orbax writes them. It does not notice a flipped bit in an array, so every checkpoint also carries
one number per leaf, computed on the devices from the bits of the leaf and independent of how it is
sharded; a checkpoint whose numbers differ after reading is skipped for the one before it.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxgen import files
from jaxgen.runs import run_folder
from jaxgen.runs.log import Rows
from jaxgen.train import loop
from jaxgen.types import Array

# beside the paths of the state's leaves: of the metrics that a continuation keeps
ROWS, LAST_ROW = "rows of metrics.jsonl", "step of the last row"
_PATIENCE = 100 * 365 * 86400  # seconds


def open_manager(folder: Path, keep: int = 3, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens the checkpoints under `folder`, which is made if need be; the newest `keep` stay.

    With read_only nothing is changed, so that a run can be read while it is still training.
    Raises ValueError for pipes and devices in it, which would be read without an end.
    """
    _check_regular(folder)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else keep,
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=not read_only,
        read_only=read_only,
        async_options=_async_options(),
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "digests": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(Path(folder).resolve(), options=options, item_handlers=handlers)


def _async_options() -> ocp.AsyncOptions:
    """Lets one host wait for a write without limit; among several, orbax's limit finds a dead one.

    Orbax reads the wall clock, so a clock that is set, or a machine that slept, would end the run.
    """
    is_alone = jax.process_count() == 1
    return ocp.AsyncOptions(timeout_secs=_PATIENCE) if is_alone else ocp.AsyncOptions()


def _check_regular(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        paths = [os.path.join(place, name) for name in names]
        special = [path for path in paths if os.path.exists(path) and not os.path.isfile(path)]
        if special:
            raise ValueError(f"{files.printable(special[0])} is no regular file; remove it")


def save(manager: ocp.CheckpointManager, step: int, state: Any, rows: Rows | None = None) -> None:
    """Starts writing the state after `step` steps; returns once it is copied off the devices.

    rows: of the metrics up to here, which `kept_rows` gives back.

    Does nothing if that step is there already. Raises NonFiniteError for a state with NaN or
    infinite numbers, OSError if orbax declines to save.
    """
    if step in manager.all_steps():
        return
    if faulty := _non_finite(state):
        raise loop.NonFiniteError(step, faulty)
    numbers = digests(state)
    if rows is not None:
        numbers |= {ROWS: rows.digest, LAST_ROW: rows.last}
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(state), digests=ocp.args.JsonSave(numbers)
    )
    with files.named_when_full(Path(str(manager.directory))):  # also of the save before this one
        is_saved = manager.save(step, args=args)
    if not is_saved:
        raise OSError(f"orbax did not save step {step} in {manager.directory}")


def kept_rows(manager: ocp.CheckpointManager, step: int) -> Rows | None:
    """Reads what was saved with a step of the metrics' rows; None if there is nothing."""
    args = ocp.args.Composite(digests=ocp.args.JsonRestore())
    numbers = manager.restore(step, args=args)["digests"]
    return Rows(numbers[ROWS], numbers[LAST_ROW]) if LAST_ROW in numbers else None


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until every checkpoint is on disk. Raises NoRoomError where there is no room."""
    with files.named_when_full(Path(str(manager.directory))):
        manager.wait_until_finished()


def set_aside(manager: ocp.CheckpointManager, after: int) -> None:
    """Renames the checkpoints of later steps to damaged-STEP, or damaged-STEP-2, -3, ...

    They could not be read; under their own names they would keep the continued run from saving
    the same steps.
    """
    for step in manager.all_steps():
        if step > after and jax.process_index() == 0:
            path = Path(str(manager.directory)) / str(step)
            path.rename(run_folder.free(path.with_name(f"damaged-{step}")))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("set aside")
    manager.reload()


def restore(manager: ocp.CheckpointManager, like: Any) -> tuple[Any, int]:
    """Restores the newest state that can be read and whose digests agree; returns it and its step.

    like: a state of the expected structure, arrays or ShapeDtypeStructs with shardings. Warns of
    each checkpoint passed over. Raises FileNotFoundError if there is none at all, ValueError if
    the stored leaves have other shapes (naming them) or none can be trusted.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {manager.directory} yet; let the run go on to its first one"
        )
    faults, misfits = [], []
    for step in steps:
        try:
            state = _read(manager, step, like)
        except ShapeError as error:  # or its list of leaves is damaged: then an earlier one fits
            misfits.append(error)
            faults.append(files.first_line(error))
        except Exception as error:  # whatever a damaged file makes orbax or tensorstore raise
            faults.append(f"step {step}: {files.first_line(error)}")
        else:
            for fault in faults:
                warnings.warn(
                    f"checkpoint skipped, {fault}; going back to step {step}", stacklevel=2
                )
            return state, step
    if misfits:
        raise misfits[0]
    raise ValueError(f"no readable checkpoint in {manager.directory}: " + "; ".join(faults))


def _non_finite(state: Any) -> list[str]:
    """Lists the leaves with NaN or infinite numbers: the last update may have overflowed."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    floats = [(path, x) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    finite = jax.device_get([_is_finite(x) for _, x in floats])
    return [
        _path(path) for (path, _), is_finite in zip(floats, finite, strict=True) if not is_finite
    ]


# one leaf at a time: the leaves of a network have few different shapes, and XLA takes seconds to
# compile one program of hundreds of leaves
@jax.jit
def _is_finite(leaf: Array) -> Array:
    return jnp.isfinite(leaf).all()


class ShapeError(ValueError):
    """The checkpoint is of another network than the one to be restored."""


def digests(state: Any) -> dict[str, int]:
    """Computes one 32-bit number per leaf, by path; any single flipped bit changes it.

    sum_i bits_i * (2 h(i) + 1) mod 2^32, h a hash of the place: odd weights, so that no
    difference of a power of two vanishes. Integer sums do not depend on their order, so neither
    on the sharding.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    numbers = jax.device_get([_digest(leaf) for _, leaf in leaves])
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]
    return {path: int(n) for path, n in zip(paths, numbers, strict=True)}


@jax.jit
def _digest(x: Array) -> Array:
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}.get(x.dtype.itemsize, jnp.uint32)
    bits = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, width)
    bits = bits.reshape(-1).astype(jnp.uint32)
    index = jax.lax.iota(jnp.uint32, bits.size)
    weights = 2 * (index * jnp.uint32(2654435761)) + 1
    return jnp.sum(bits * weights, dtype=jnp.uint32)


def _read(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """Reads the state of one step; raises ValueError where digests differ or NaN is in it."""
    _check_shapes(manager, step, like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like), digests=ocp.args.JsonRestore())
    items = manager.restore(step, args=args)
    numbers = digests(items["state"])
    faults = [path for path, n in numbers.items() if items["digests"].get(path) != n]
    if faults:
        raise ValueError(f"{len(faults)} damaged leaves, first {faults[0]}")
    if faults := _non_finite(items["state"]):
        raise ValueError(f"{faults[0]} holds NaN or infinity")
    return items["state"]


def _check_shapes(manager: ocp.CheckpointManager, step: int, like: Any) -> None:
    """Raises ShapeError listing the leaves whose stored shape is not the expected one."""
    metadata = manager.item_metadata(step)["state"]
    stored = {
        _path(p): tuple(m.shape) for p, m in jax.tree_util.tree_leaves_with_path(metadata.tree)
    }
    expected = {_path(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(like)}
    wrong = [
        f"{path}: stored {stored.get(path, 'absent')}, expected {expected.get(path, 'absent')}"
        for path in sorted(stored.keys() | expected.keys())
        if stored.get(path) != expected.get(path)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ShapeError(
            f"the checkpoint of step {step} is of another network: {'; '.join(wrong[:3])}{more}"
        )


def _path(path: tuple) -> str:
    """Writes a path as text, in which a NamedTuple's field and a dict's key look the same."""
    names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(name) for name in names)
