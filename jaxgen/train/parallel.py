# SPDX-License-Identifier: MIT
"""One signature, three ways to spread a step over devices: jit, pmap, shard_map."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen import fields
from jaxgen.types import DATA_AXIS, Batch, Key, Metrics, Step

MODES = ("jit", "pmap", "shard_map")
EXAMPLES = P(DATA_AXIS)  # a batch: leaves [B, ...]
SCANNED = (P(), P(None, DATA_AXIS))  # (dataset on every device, indices [n, B])

Run = Callable[[Any, Batch, Key], tuple[Any, Metrics]]


def data_mesh(num_devices: int | None = None) -> Mesh:
    """Makes a mesh with one axis, `DATA_AXIS`, over the first `num_devices` devices, or over all.

    Raises ValueError for a number of devices that is not there.
    """
    available = jax.device_count()
    size = available if num_devices is None else num_devices
    if not 1 <= size <= available:
        raise ValueError(f"cannot use {size} devices; this process sees {available}")
    devices = jax.devices()[:size]
    return jax.make_mesh((size,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """Makes a mesh with one axis, `DATA_AXIS`, over the devices of this process."""
    devices = jax.local_devices()
    axes = (len(devices),), (DATA_AXIS,)
    return jax.make_mesh(*axes, axis_types=(AxisType.Auto,), devices=devices)


def parallelize(step: Step, mesh: Mesh, how: str = "jit", batch_spec: Any = EXAMPLES) -> Run:
    """Turns the step into a compiled function (state, global batch, key) -> (state, metrics).

    The state is replicated, has no device axis, and is donated: the caller's copy is gone after
    the call. `batch_spec` says how the batch lies on the mesh: `EXAMPLES` or `SCANNED`.
    All modes give the same run up to the order of float sums.
    Raises ValueError for an unknown mode, and for a batch that the devices cannot share.
    """
    match how:
        case "jit":
            run = _jit(step, mesh, batch_spec)
        case "shard_map":
            run = _jit(_shard_map(step, mesh, batch_spec), mesh, batch_spec)
        case "pmap":
            run = _pmap(step, mesh, batch_spec)
        case _:
            raise ValueError(
                f"unknown parallel mode {fields.shown(how)}; use one of {', '.join(MODES)}"
            )

    def checked(state: Any, batch: Batch, key: Key) -> tuple[Any, Metrics]:
        check_divisible(batch, batch_spec, mesh)
        return run(state, batch, key)

    return checked


def put(tree: Any, mesh: Mesh, spec: Any = P()) -> Any:
    """Puts a tree of host arrays on the mesh, as global device arrays.

    With the default spec every device gets a copy. Where the spec has `DATA_AXIS`, each process
    passes the rows of its own devices.
    """

    def place(spec: P, x: Any) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jax.make_array_from_process_local_data(
                sharding, np.asarray(jax.random.key_data(x))
            )
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(
        lambda s, part: jax.tree.map(partial(place, s), part),
        spec,
        tree,
        is_leaf=lambda s: isinstance(s, P),
    )


def check_divisible(batch: Batch, batch_spec: Any, mesh: Mesh) -> None:
    """Raises ValueError unless every device gets the same number of examples."""
    devices = mesh.size

    def check(spec: P, part: Any) -> None:
        if DATA_AXIS in spec:
            for leaf in jax.tree.leaves(part):
                size = leaf.shape[spec.index(DATA_AXIS)]
                if size % devices:
                    raise ValueError(
                        f"batch of {size} cannot be divided over {devices} devices; "
                        f"use a multiple of {devices}"
                    )

    jax.tree.map(check, batch_spec, batch, is_leaf=lambda s: isinstance(s, P))


def _jit(step: Step, mesh: Mesh, batch_spec: Any) -> Run:
    everywhere = NamedSharding(mesh, P())
    batch = jax.tree.map(
        lambda s: NamedSharding(mesh, s), batch_spec, is_leaf=lambda s: isinstance(s, P)
    )

    def on_mesh(state: Any, batch: Batch, key: Key) -> tuple[Any, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, batch, key)

    return jax.jit(
        on_mesh,
        in_shardings=(everywhere, batch, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )


def _shard_map(step: Step, mesh: Mesh, batch_spec: Any) -> Step:
    return jax.shard_map(
        partial(step, axis=DATA_AXIS),
        mesh=mesh,
        in_specs=(P(), batch_spec, P()),
        out_specs=(P(), P()),
    )


def _pmap(step: Step, mesh: Mesh, batch_spec: Any) -> Run:
    """Maps the step with pmap over the batch only: states and metrics have no device axis.

    With several processes pmap works on what each of them holds, so global arrays become local
    ones before the step and global ones again after it.
    """
    one_process = jax.process_count() == 1
    devices = mesh.size // jax.process_count()

    def axis_of(spec: P) -> int | None:
        return spec.index(DATA_AXIS) if DATA_AXIS in spec else None

    def split(spec: P, part: Any) -> Any:
        axis = axis_of(spec)
        if axis is None:
            return part
        return jax.tree.map(
            lambda x: x.reshape(*x.shape[:axis], devices, -1, *x.shape[axis + 1 :]), part
        )

    is_spec = lambda s: isinstance(s, P)  # noqa: E731
    in_axes = jax.tree.map(axis_of, batch_spec, is_leaf=is_spec)
    step_of_each = jax.pmap(
        partial(step, axis=DATA_AXIS),
        axis_name=DATA_AXIS,
        in_axes=(None, in_axes, None),
        out_axes=(None, None),
        devices=list(mesh.devices.flat),
        donate_argnums=(0,) if one_process else (),  # the parts belong to global arrays
    )

    def run(state: Any, batch: Batch, key: Key) -> tuple[Any, Metrics]:
        if not one_process:
            state, key = _to_local(state, P()), _to_local(key, P())
            batch = jax.tree.map(lambda s, x: _to_local(x, s), batch_spec, batch, is_leaf=is_spec)
        batch = jax.tree.map(split, batch_spec, batch, is_leaf=is_spec)
        result = step_of_each(state, batch, key)
        return result if one_process else _to_global(result, mesh)

    return run


def _to_local(tree: Any, spec: P) -> Any:
    """Takes what this process holds of global arrays: its rows where the spec has `DATA_AXIS`."""

    def local(x: jax.Array) -> jax.Array:
        if DATA_AXIS not in spec:
            return x.addressable_data(0)
        axis = spec.index(DATA_AXIS)
        shards = sorted(x.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
        return jnp.concatenate([jax.device_get(shard.data) for shard in shards], axis)

    return jax.tree.map(local, tree)


def _to_global(tree: Any, mesh: Mesh) -> Any:
    """Joins local arrays, the same on every device of every process, into global arrays."""
    everywhere = NamedSharding(mesh, P())

    def whole(x: jax.Array) -> jax.Array:
        copies = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, copies)

    return jax.tree.map(whole, tree)
