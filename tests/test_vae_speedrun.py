# SPDX-License-Identifier: MIT
import json

import numpy as np
from support.scripts import call, loaded, refusal


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
        tmp_path / "records.jsonl",
    ]
    call("vae_speedrun", *flags, "--targets", "1000", "9", "0.3")

    record = json.loads((tmp_path / "records.jsonl").read_text())
    reached = record["reached"]
    assert reached["1000"]["epochs"] == 1
    assert 1 < reached["9"]["epochs"] <= 30
    assert 0 < reached["1000"]["seconds"] <= reached["9"]["seconds"] <= record["seconds"]
    assert reached["0.3"] is None
    assert 0.3 < record["last_nats"] <= 9
    assert record["environment"]
    assert 0 < reached["1000"]["processor_seconds"] <= record["processor_seconds"]

    with loaded("vae_speedrun") as module:
        rows = module.table([record]).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 1000", "| 9"]  # 0.3 was not reached
    assert f"| {reached['9']['epochs']} of 30 |" in rows[1]
    assert record["environment"]["commit"] in rows[1]


def test_a_race_of_no_epochs_is_refused():
    assert "--epochs is 0; use 1 or more" in refusal("vae_speedrun", "--epochs", "0")
