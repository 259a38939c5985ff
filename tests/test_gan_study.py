# SPDX-License-Identifier: MIT
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scripts import call, loaded, refusal

TINY = ["--num-runs", "2", "--steps", "3", "--batch-size", "4", "--width", "4"]


def test_a_study_leaves_a_row_for_each_run(tmp_path):
    path = tmp_path / "study.json"
    out = call("gan_study", *TINY, "--variants", "hinge", "relativistic_r1_r2", "--output", path)
    rows = json.loads(path.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["hinge"] * 2 + ["relativistic_r1_r2"] * 2
    assert rows[0]["learning_rate"] == rows[2]["learning_rate"] != rows[1]["learning_rate"]
    assert all(row["of"] == 8 and 0 <= row["modes"] <= 8 for row in rows)
    assert "| relativistic_r1_r2 |" in out


def test_runs_side_by_side_are_the_runs_alone():
    with loaded("gan_study") as module:
        config = module.Config(num_runs=2, steps=4, batch_size=4, width=4)
        data = jnp.float32(np.random.default_rng(0).standard_normal((50, 2)))
        points = module.points_of(config, module.VARIANTS["non_saturating_r1"], data, 3.0)
        keys = lambda: jax.random.split(jax.random.key(0), 2)  # noqa: E731
        both = points(jnp.array([1e-2, 1e-3]), keys())
        alone = points(jnp.array([1e-3]), keys()[1:])
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-4, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.01


def test_a_run_that_is_not_finite_is_a_row_and_no_error():
    with loaded("gan_study") as module:
        row = module.count_of(module.modes.ring(), np.full((5, 2), np.nan))
    assert row == {"modes": 0, "of": 8, "high_quality": 0.0, "diverged": True}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--variants", "softmax"], "unknown variant 'softmax'; use some of minimax"),
        (["--rates", "1", "0.1"], "give a lower and an upper positive number"),
        (["--num-runs", "0"], "--num-runs is 0; use 1 or more"),
    ],
)
def test_bad_input_of_a_study_is_one_line(flags, words):
    assert words in refusal("gan_study", *flags)
