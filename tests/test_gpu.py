# SPDX-License-Identifier: MIT
"""What only a GPU can show; run with JAXGEN_TEST_PLATFORM=cuda on a machine that has one."""

import jax
import numpy as np
import pytest
from support import systems

from benchmarks import correctness

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
]


def test_attention_norms_and_convolutions_are_float64s_up_to_their_type():
    wrong = [row for row in correctness.comparisons(False) if not row["error"] < row["bound"]]
    assert not wrong


@pytest.mark.parametrize("name", systems.NAMES)
@pytest.mark.parametrize("network", ["dense", "conv"])
def test_training_goes_as_on_cpu(name, network):
    """In float32 without TF32; SGD, since Adam makes a rounded zero a full step."""
    with jax.default_matmul_precision("highest"):
        state, metrics = systems.run(name, network=network)
        with jax.default_device(jax.devices("cpu")[0]):
            init, one = systems.make(name, network)
            expected = init(jax.random.key(0))
            data = systems.dataset()
            for i in range(4):
                rows = np.arange(32 * i, 32 * i + 32) * 7 % 64
                batch = {field: values[rows] for field, values in data.items()}
                expected, _ = jax.jit(one)(expected, batch, jax.random.key(1))
    assert all(np.isfinite(values).all() for values in metrics.values())
    assert systems.largest_difference(state, jax.device_get(expected)) < 1e-4
