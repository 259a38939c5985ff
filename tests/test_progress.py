# SPDX-License-Identifier: MIT
"""The progress on the screen: lines, the bar, and the images per second that both show."""

import io
import sys

import jax.numpy as jnp

from jaxgen.runs import progress


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def monotonic(self):
        return self.now


def test_lines_come_at_the_first_and_last_step_and_every_ten_seconds(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with progress.display("vae", 0, 100, progress.throughput(0, 100, 1, 32), ("loss",)) as record:
        for step in range(1, 101):
            clock.now += 0.5
            record(step, {"loss": jnp.float32(1 / step), "hidden": 0.0})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [
        "1/100",
        "21/100",
        "41/100",
        "61/100",
        "81/100",
        "100/100",
    ]
    assert lines[0] == "vae 1/100  compiled  loss 1"
    # 20 steps of 32 images in 10 s, the first step with its compilation not counted
    assert lines[1].startswith("vae 21/100  64 images/s")
    assert lines[-1] == "vae 100/100  64 images/s  0 s left  loss 0.01"


def test_lines_of_a_resumed_run_count_from_where_it_started(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with progress.display("gan", 50, 54, progress.throughput(50, 54, 1, 10), ("loss",)) as record:
        for step in (51, 54):
            clock.now += 3.0
            record(step, {"loss": 2.0})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "gan 51/54  compiled  loss 2"
    assert lines[1] == "gan 54/54  10 images/s  0 s left  loss 2"


def test_terminal_shows_a_bar_with_rate_and_metrics(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    clock, terminal = Clock(), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with progress.display("vae", 0, 10, progress.throughput(0, 10, 1, 5), ("loss",)) as record:
        for step in range(1, 11):
            clock.now += 1.0
            record(step, {"loss": 0.125})
    shown = terminal.getvalue()
    for part in ("vae", "10/10", "5 images/s", "loss 0.125"):
        assert part in shown


def test_throughput_counts_whole_dispatches_after_the_first(monkeypatch):
    clock = iter([100.0, 104.0, 106.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    speed = progress.throughput(0, 25, 10, 8)
    said = [speed(step) for step in range(1, 26)]

    assert said[:19] == [None] * 19
    assert said[19:24] == [10 * 8 / 4] * 5
    assert said[24] == 15 * 8 / 6
