# SPDX-License-Identifier: MIT
"""Checkpoints: exact round trips, other device counts, damage found, wrong networks named."""

import contextlib
import json
import os
import pathlib
import shutil
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import systems

from jaxgen.runs import checkpoint
from jaxgen.train import parallel, step


def state_of(devices: int, seed: int = 0, width: int = 24):
    tx = optax.adam(1e-3)
    values = np.random.default_rng(seed).normal(size=(width, 16)).astype(np.float32)
    params = {"kernel": values, "half": values[0].astype(jnp.bfloat16)}
    return parallel.put(
        step.init_state(jax.tree.map(jnp.asarray, params), tx), parallel.data_mesh(devices)
    )


def template(state, devices: int):
    everywhere = jax.sharding.NamedSharding(
        parallel.data_mesh(devices), jax.sharding.PartitionSpec()
    )
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
    )


@pytest.fixture
def manager(tmp_path):
    with contextlib.closing(checkpoint.open_manager(tmp_path / "checkpoints")) as manager:
        yield manager


def write(manager, *steps: int):
    for i in steps:
        checkpoint.save(manager, i, state_of(1, seed=i))
    manager.wait_until_finished()


def files(manager, i: int) -> list:
    folder = pathlib.Path(manager.directory) / str(i) / "state"
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_clock_that_is_set_while_a_checkpoint_is_written_ends_nothing(manager, monkeypatch):
    right = time.time
    checkpoint.save(manager, 7, state_of(1))
    monkeypatch.setattr(time, "time", lambda: right() + 10**9)
    checkpoint.wait(manager)
    assert manager.all_steps() == [7]


def test_a_state_comes_back_bit_for_bit(manager):
    write(manager, 7)

    state, found = checkpoint.restore(manager, template(state_of(1), 1))

    assert found == 7
    assert systems.identical(state, state_of(1, seed=7))


def test_a_state_saved_on_eight_devices_comes_back_on_one_and_on_four(manager):
    checkpoint.save(manager, 3, state_of(8, seed=3))
    manager.wait_until_finished()

    for devices in (1, 4):
        state, _ = checkpoint.restore(manager, template(state_of(1), devices))
        assert systems.identical(state, state_of(1, seed=3))
        assert len(state.params["kernel"].sharding.device_set) == devices


def test_the_newest_few_are_kept(manager):
    write(manager, 1, 2, 3, 4)

    assert manager.all_steps() == [2, 3, 4]


def test_digests_do_not_depend_on_sharding():
    mesh = parallel.data_mesh(8)
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    whole = parallel.put({"x": x}, mesh)
    parts = parallel.put({"x": x}, mesh, parallel.EXAMPLES)

    assert checkpoint.digests(whole) == checkpoint.digests(parts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_any_flipped_bit_changes_the_digest(dtype):
    x = np.random.default_rng(0).integers(0, 2, 33).astype(dtype)
    before = checkpoint.digests({"x": jnp.asarray(x)})
    raw = x.view(np.uint8)
    bits = [0] if dtype == "bool" else range(8)

    for byte in range(0, raw.size, 5):
        for bit in bits:
            raw[byte] ^= 1 << bit
            assert checkpoint.digests({"x": jnp.asarray(x)}) != before
            raw[byte] ^= 1 << bit


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(manager):
    write(manager, 1, 2)
    generator = np.random.default_rng(0)
    largest = max(files(manager, 2), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[generator.integers(len(content) // 4, len(content))] ^= 4
    largest.write_bytes(bytes(content))

    with pytest.warns(UserWarning, match="checkpoint skipped, step 2: .*going back to step 1"):
        state, found = checkpoint.restore(manager, template(state_of(1), 1))

    assert found == 1
    assert systems.identical(state, state_of(1, seed=1))


def test_a_checkpoint_with_a_number_that_is_not_finite_is_passed_over(manager, monkeypatch):
    write(manager, 1)
    with monkeypatch.context() as older:  # versions that did not check what they saved
        older.setattr(checkpoint, "_non_finite", lambda state: [])
        broken = jax.tree.map(
            lambda x: x * jnp.asarray(jnp.nan, x.dtype), state_of(1, seed=2).params
        )
        checkpoint.save(manager, 2, state_of(1)._replace(params=broken))
        manager.wait_until_finished()

    with pytest.warns(UserWarning, match="step 2: params/.* holds NaN or infinity; going back"):
        _, step_ = checkpoint.restore(manager, template(state_of(1), 1))

    assert step_ == 1


def test_a_pipe_among_the_checkpoints_is_refused_and_not_waited_for(manager):
    write(manager, 1)
    os.mkfifo(files(manager, 1)[0].with_name("pipe"))
    with pytest.raises(ValueError, match="pipe is no regular file"):
        checkpoint.open_manager(pathlib.Path(manager.directory), read_only=True)


def test_no_flipped_bit_of_the_arrays_loads_silently(manager, tmp_path):
    """Flips all over the stored arrays: each is found, or harmless because the values are equal."""
    write(manager, 1, 2)
    generator = np.random.default_rng(1)
    largest = max(files(manager, 2), key=lambda path: path.stat().st_size)
    original = largest.read_bytes()
    found_damaged = 0

    for _ in range(12):
        content = bytearray(original)
        content[generator.integers(len(content))] ^= 1 << generator.integers(8)
        largest.write_bytes(bytes(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state, found = checkpoint.restore(manager, template(state_of(1), 1))
        assert systems.identical(state, state_of(1, seed=found))
        found_damaged += found == 1

    assert found_damaged >= 8


def test_a_list_of_leaves_without_one_of_them_is_damaged_and_no_other_network(manager):
    write(manager, 1, 2)
    path = pathlib.Path(manager.directory) / "2" / "state" / "_METADATA"
    metadata = json.loads(path.read_text())
    leaves = metadata["tree_metadata"]
    del leaves[next(name for name in leaves if "kernel" in name)]
    path.write_text(json.dumps(metadata))
    with pytest.warns(UserWarning, match="checkpoint skipped, .*step 2 .*; going back to step 1"):
        _, step = checkpoint.restore(manager, template(state_of(1), 1))
    assert step == 1


def test_a_deleted_file_is_passed_over_too(manager):
    write(manager, 1, 2)
    shutil.rmtree(manager.directory / "2" / "digests")

    with pytest.warns(UserWarning, match="going back to step 1"):
        _, found = checkpoint.restore(manager, template(state_of(1), 1))

    assert found == 1


def test_nothing_readable_is_one_error(manager):
    write(manager, 1)
    for path in files(manager, 1):
        path.write_bytes(b"")

    with pytest.raises(ValueError, match="no readable checkpoint in .*step 1"):
        checkpoint.restore(manager, template(state_of(1), 1))


def test_no_checkpoint_says_what_to_do(manager):
    with pytest.raises(FileNotFoundError, match="no checkpoint in .* yet; let the run go on"):
        checkpoint.restore(manager, template(state_of(1), 1))


def test_a_checkpoint_of_another_network_names_the_leaf_and_both_shapes(manager):
    write(manager, 1)

    with pytest.raises(ValueError, match=r"of another network: .*kernel: stored \(24, 16\), expec"):
        checkpoint.restore(manager, template(state_of(1, width=32), 1))
