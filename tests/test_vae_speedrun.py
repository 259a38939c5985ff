# SPDX-License-Identifier: MIT
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.scripts import call, loaded, refusal

from jaxgen.train import step


def test_a_record_says_when_each_target_was_reached(tmp_path):
    x = np.zeros((60, 4, 4, 1), np.uint8)
    x[::2, :2] = 255  # black pictures and half-white ones: one bit, 0.69 nats
    np.savez(tmp_path / "x.npz", images=x, labels=np.arange(60) % 2)
    flags = ["--data", tmp_path / "x.npz", "--hidden", "16", "--latent-dim", "2"]
    flags += [
        "--batch-size",
        "10",
        "--epochs",
        "30",
        "--learning-rate",
        "0.02",
        "--record",
        tmp_path / "new" / "records.jsonl",
    ]
    call("vae_speedrun", *flags, "--targets", "1000", "2", "0.3")

    record = json.loads((tmp_path / "new" / "records.jsonl").read_text())
    reached = record["reached"]
    assert reached["1000"]["epochs"] == 1
    assert 1 < reached["2"]["epochs"] <= 30
    assert 0 < reached["1000"]["seconds"] <= reached["2"]["seconds"] <= record["seconds"]
    assert reached["0.3"] is None
    assert 0.6 < record["last_nats"] <= 2
    assert record["environment"]
    assert 0 < reached["1000"]["processor_seconds"] <= record["processor_seconds"]

    with loaded("vae_speedrun") as module:
        rows = module.table([record]).splitlines()[2:]
        old = {**record, "config": {"epochs": 30}}  # of before there was a choice
        assert "| apart |" in module.table([old])
    assert "| in order |" in rows[0]
    assert [row.split(" | ")[0] for row in rows] == ["| 1000", "| 2"]  # 0.3 was not reached
    assert f"| {reached['2']['epochs']} of 30 |" in rows[1]
    assert record["environment"]["commit"] in rows[1]


def test_pixels_in_order_have_a_density_and_see_only_those_before_them():
    rng = np.random.default_rng(0)
    params = {"before": jnp.asarray(rng.normal(size=(6, 6)))}
    logits = jnp.asarray(rng.normal(size=(2, 3, 1)))
    every = jnp.array(list(itertools.product([-1.0, 1.0], repeat=6))).reshape(-1, 2, 3, 1)
    with loaded("vae_speedrun") as module:
        log_p = lambda params, x: module.pixels_in_order(params, logits, x)  # noqa: E731
    np.testing.assert_allclose(jnp.exp(jax.vmap(log_p, (None, 0))(params, every)).sum(), 1, 1e-5)
    used = jax.grad(log_p)(params, every[37])["before"]  # 37 is 100101: some pixels are set
    assert (used[np.triu_indices(6)] == 0).all()
    assert (used[[1, 3, 5, 5], [0, 0, 0, 3]] != 0).all()


def test_a_race_stops_after_the_epoch_that_is_not_finite_and_names_its_step(tmp_path):
    """By Adam, a first step of the learning rate: 1e30 of every parameter, and no square of it."""
    flags = ["--data", "digits", "--hidden", "4", "--latent-dim", "2", "--batch-size", "750"]
    flags += ["--learning-rate", "1e30", "--record", tmp_path / "records.jsonl"]
    line = refusal("vae_speedrun", *flags)
    assert line == "error: not finite after step 2 (epoch 1); lower --learning-rate"
    assert not list(tmp_path.iterdir())


def test_a_number_of_the_state_alone_that_is_not_finite_is_found():
    with loaded("vae_speedrun") as module:
        state = step.init_state({"w": jnp.ones(3).at[1].set(jnp.inf)}, optax.sgd(1.0))
        with pytest.raises(ValueError, match=r"after step 0 \(epoch 1\); lower --learning-rate"):
            module.check_finite(state, 104.0, 1)
        module.check_finite(step.init_state({"w": jnp.ones(3)}, optax.sgd(1.0)), 104.0, 1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "0"], "--epochs is 0; use 1 or more"),
        (["--targets", "9", "9.0"], "--targets are 9.0 9.0; give each once"),
        (["--targets"], "--targets names none; give one or more, in nats"),
        (
            ["--data", "digits", "--batch-size", "1502"],
            "--batch-size is 1502, and digits has 1501 training images; use at most so many",
        ),
    ],
)
def test_a_race_that_is_refused_leaves_no_record(flags, words, tmp_path):
    assert words in refusal("vae_speedrun", *flags, "--record", tmp_path / "new" / "records.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_record_that_cannot_be_written_is_not_raced_for(tmp_path):
    assert "cannot be written (Is a directory)" in refusal("vae_speedrun", "--record", tmp_path)
