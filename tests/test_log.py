# SPDX-License-Identifier: MIT
import contextlib
import json
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.runs import log


def test_metrics_are_the_shortest_decimals_that_read_back_as_the_same_float32():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)
    for value in (*bits[np.isfinite(bits)], np.float32(0.1), np.float32(3e-41), np.float32(1e30)):
        text = json.dumps(log.plain(value))
        assert np.float32(json.loads(text)) == value
        assert len(text.split("e")[0].replace(".", "").strip("-0")) <= 9  # significant digits
    assert json.dumps(log.plain(np.float32(0.1))) == "0.1"


def test_metrics_of_any_kind_become_plain_numbers():
    assert log.plain(jnp.float32(0.25)) == 0.25
    assert log.plain(jnp.bfloat16(0.5)) == 0.5
    assert log.plain(3) == 3.0
    assert log.plain(jnp.array([0.1, 0.2])) == [0.1, 0.2]  # several seeds


def write(path, steps):
    with log.json_lines(path) as (record, _):
        for step in steps:
            record(step, {"loss": jnp.float32(step / 10), "kl_nats": 1.0})


def test_file_holds_one_object_for_each_step_and_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    write(path, [3])
    assert log.read_rows(path) == [
        {"step": s, "loss": s / 10, "kl_nats": 1.0} for s in (1, 2, 3)
    ]  # fmt: skip


def test_resumed_file_equals_the_uninterrupted_one_byte_for_byte(tmp_path):
    straight, resumed = tmp_path / "straight.jsonl", tmp_path / "resumed.jsonl"
    write(straight, range(1, 7))
    write(resumed, range(1, 6))  # ran on to 5 after its last checkpoint, at 3
    log.keep(resumed, lambda step: step <= 3)
    write(resumed, range(4, 7))
    assert resumed.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_last_line_that_a_kill_cut_off_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    path.write_bytes(path.read_bytes()[:-cut])
    log.keep(path, lambda step: True)
    rows = log.read_rows(path)
    assert [row["step"] for row in rows] == ([1, 2, 3] if cut == 1 else [1, 2])
    write(path, [9])  # and what follows begins a line of its own
    assert log.read_rows(path)[-1]["step"] == 9


@pytest.mark.parametrize("damage", [b"\xff", b"[1]", b"7", b"{}", b"[" * 10_000])
def test_only_the_damaged_line_is_lost_and_said(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3])
    lines = path.read_bytes().split(b"\n")
    lines[1] = damage
    path.write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match=r"metrics.jsonl: 1 lines are damaged .* first line 2"):
        assert [row["step"] for row in log.read_rows(path)] == [1, 3]
    with pytest.warns(UserWarning, match="passed over"):
        log.keep(path, lambda step: True)
    assert [row["step"] for row in log.read_rows(path)] == [1, 3]


def test_keeping_rows_of_no_file_makes_none(tmp_path):
    log.keep(tmp_path / "metrics.jsonl", lambda step: True)
    assert list(tmp_path.iterdir()) == []


def test_flushed_rows_are_in_the_file_while_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with log.json_lines(path) as (record, flush):
        record(1, {"loss": 0.5})
        flush()
        assert [row["step"] for row in log.read_rows(path)] == [1]


def test_rows_survive_an_error_in_the_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with contextlib.suppress(KeyboardInterrupt), log.json_lines(path) as (record, _):
        record(1, {"loss": 0.5})
        raise KeyboardInterrupt
    assert [row["step"] for row in log.read_rows(path)] == [1]


# --- TensorBoard and W&B --------------------------------------------------------------------


def scalars(path):
    """(tag, step, value) of an event file, whose records are length, checksum, event, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
        data = data[16 + length :]
    return found


def test_tensorboard_file_holds_every_scalar(tmp_path):
    pytest.importorskip("tensorboardX")
    with log.tensorboard(tmp_path) as record:
        record(1, {"loss": jnp.float32(0.5), "kl_nats": 2.0})
        record(7, {"loss": jnp.array([0.25, 0.75])})  # the mean of several seeds
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert scalars(path) == [("loss", 1, 0.5), ("kl_nats", 1, 2.0), ("loss", 7, 0.5)]


@pytest.mark.parametrize(
    ("module", "opened"),
    [
        ("tensorboardX", lambda folder: log.tensorboard(folder)),
        ("wandb", lambda folder: log.wandb(folder, "project", {})),
    ],
)
def test_missing_client_names_the_extra_to_install(monkeypatch, tmp_path, module, opened):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'pip install -e "\.\[log\]"'), opened(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_wandb_gets_the_config_every_scalar_and_the_end(monkeypatch, tmp_path):
    calls = []

    class Client:
        @staticmethod
        def init(**options):
            calls.append(("init", options))
            return Client()

        def log(self, metrics, step):
            calls.append(("log", metrics, step))

        def finish(self):
            calls.append(("finish",))

    monkeypatch.setitem(sys.modules, "wandb", Client)
    with log.wandb(tmp_path / "vae-1", "jaxgen", {"seed": 3}) as record:
        record(5, {"loss": jnp.array([0.25, 0.75])})
    folder = str(tmp_path / "vae-1")
    assert calls == [
        ("init", {"project": "jaxgen", "name": "vae-1", "dir": folder, "config": {"seed": 3}}),
        ("log", {"loss": 0.5}, 5),
        ("finish",),
    ]


@pytest.mark.parametrize("loss", ["deleted", "moved", "replaced"])
def test_a_log_that_is_no_longer_in_its_place_is_an_error_at_the_next_save(tmp_path, loss):
    path, gone = tmp_path / "metrics.jsonl", "was removed, moved or replaced"
    with contextlib.suppress(FileNotFoundError), log.json_lines(path) as (record, flush):
        record(1, {"loss": 2.0})
        flush()
        path.unlink() if loss == "deleted" else path.rename(tmp_path / "elsewhere.jsonl")
        if loss == "replaced":
            path.write_text('{"step": 1, "loss": 2.0}\n')
        with pytest.raises(FileNotFoundError, match=rf"metrics\.jsonl {gone}"):
            flush()
