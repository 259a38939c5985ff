# SPDX-License-Identifier: MIT
"""Signals and streams of a script as a shell sees them: one line, the exit code, none lost."""

import ast
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgen import at_start, script

ROOT = Path(__file__).parent.parent
WHILE_IMPORTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
from jaxgen import at_start
at_start.catch_signals()
assert "jax" not in sys.modules
os.kill(os.getpid(), signal.{name})
import time; time.sleep(20)
"""
IN_A_CALLBACK = """
import gc, os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
from jaxgen import script

def callback(phase, info):
    if phase == "start" and callback in gc.callbacks:
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass

def start():
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(20)  # which it ends, too
    print("not ended")

script.main(start)
"""
WITHOUT_A_READER = """
import os
from jaxgen import script

reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 1)
script.main(lambda: print("a line", flush=True))
"""
A_TERMINAL_THAT_CLOSES = """
import fcntl, os, signal, sys, termios, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from jaxgen import script

def start():
    with script.stop_requests() as received:
        print("begun", flush=True)
        while not received(): time.sleep(0.01)
        time.sleep(0.1)  # the terminal is gone by now
        print("to nobody", flush=True)
        open(sys.argv[1], "w").write(str(received()))

script.main(start)
"""
A_NAME_BEYOND_THE_ENCODING = """
from jaxgen import script
script.main(lambda: print("runs/\\xfc \\udcff"))
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_a_script_imports_is_one_line(name, code):
    ended = run(WHILE_IMPORTING.format(name=name))
    assert ended.returncode == code
    assert ended.stderr == "interrupted while starting; nothing was changed\n"


def test_a_control_c_inside_a_callback_is_not_lost():
    ended = run(IN_A_CALLBACK)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted\n"
    assert ended.stdout == ""


def test_output_that_nobody_reads_ends_a_script_in_one_line():
    ended = run(WITHOUT_A_READER)
    assert ended.returncode == 141
    assert ended.stderr.startswith("error: broken pipe")
    assert ended.stderr.count("\n") == 1


def test_a_name_that_the_terminal_cannot_show_is_escaped():
    ended = run(A_NAME_BEYOND_THE_ENCODING, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "runs/\\xfc \\udcff\n"


def test_every_script_catches_signals_before_its_slow_imports():
    paths = sorted((ROOT / "experiments").rglob("[a-z]*.py"))
    programs = [path for path in paths if "script.main(" in path.read_text()]
    assert len(programs) > 12
    for path in programs:
        first, second = [n for n in ast.parse(path.read_text()).body if not is_docstring(n)][:2]
        assert ast.unparse(first) == "from jaxgen import at_start", path
        assert "at_start.catch_signals()" in ast.unparse(second), path


def test_a_terminal_that_closes_asks_a_run_to_stop(tmp_path):
    command = [sys.executable, "-c", A_TERMINAL_THAT_CLOSES, str(tmp_path / "end")]
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    os.close(inside)
    while b"begun" not in os.read(terminal, 1000):
        pass
    os.close(terminal)
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "end").read_text() == str(int(signal.SIGHUP))


def test_nohup_keeps_its_meaning(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    assert signal.SIGHUP in at_start.stop_signals()
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    assert at_start.stop_signals() == [signal.SIGINT, signal.SIGTERM]


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_names_in_errors_and_notes_cannot_command_the_terminal(capsys):
    script._report(ValueError("no a\x1b[2J\u202e\nhelp"))
    script._report(KeyError("\x1b[2J"))
    script._show_note("b\x1b[2J", UserWarning, "", 0)
    errors = capsys.readouterr().err
    assert errors.startswith("error: no a\\x1b[2J\\u202e\nhelp\n")
    assert all(line.isprintable() for line in errors.splitlines())


def test_a_tilde_after_an_equals_sign_is_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = ["a.py", "--output=~/new", "--prompt", "~/x", "a=~b", "--lora=~", "--x=~nobody-here/y"]
    monkeypatch.setattr(sys, "argv", words)
    script.main(lambda: None)
    expected = ["--output=/home/me/new", "--prompt", "~/x", "a=~b", "--lora=/home/me"]
    assert sys.argv[1:] == [*expected, "--x=~nobody-here/y"]


WITH_CLOSED_STREAMS = """
import os, sys
from jaxgen import at_start
at_start.catch_signals()
file = open(sys.argv[1], "w")
print("to nowhere", file=sys.stderr)
print("to nowhere")
os.write(2, b"from a library")
file.write(str(file.fileno()))
"""


def test_closed_streams_lead_nowhere_and_into_no_file(tmp_path):
    command = '"$0" -c "$1" "$2" <&- >&- 2>&-'
    words = [sys.executable, WITH_CLOSED_STREAMS, str(tmp_path / "file")]
    assert subprocess.run(["sh", "-c", command, *words], cwd=ROOT, check=False).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2
