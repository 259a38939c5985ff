# SPDX-License-Identifier: MIT
"""The short form of `python -m tests.faults`: damaged files of one tiny run, in this process."""

import shutil
import warnings

import pytest
from faults import cases, verdicts
from support import scripts
from support.scripts import call, loaded, refusal, rows

from jaxgen import script
from jaxgen.pictures import images

FLAGS = ["--batch-size", "32", "--log-every", "4", "--draw-every", "4", "--seed", "3"]
STEPS = ["--steps", "10", "--checkpoint-every", "4", "--scan-steps", "1"]


@pytest.fixture(scope="module", autouse=True)
def quick_curves():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "save_curves", scripts.list_curves)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed autoencoder of 10 steps; checkpoints at 4, 8 and 10, pictures too."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    call("autoencoder", *FLAGS, *STEPS, "--num-devices", "1", "--run-dir", folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it under the same name, which the curves show."""
    return shutil.copytree(whole, tmp_path / "run")


SHORT_MATRIX = [
    ("config.json", "truncated", verdicts.DETECTED),
    ("config.json", "deleted", verdicts.DETECTED),
    ("data.json", "truncated", verdicts.DETECTED),
    ("summary.json", "truncated", verdicts.RECOVERED),
    ("metrics.jsonl", "truncated", verdicts.NOTED),
    ("metrics.jsonl", "deleted", verdicts.NOTED),
    ("curves.png", "deleted", verdicts.RECOVERED),
    ("progress.gif", "flipped", verdicts.RECOVERED),
    ("pictures/reconstructions-0000010.png", "flipped", verdicts.RECOVERED),
    ("pictures/reconstructions-0000004.png", "flipped", verdicts.NOTED),
    ("pictures/reconstructions-0000004.png", "deleted", verdicts.NOTED),
    ("pictures/sha256sums", "deleted", verdicts.RECOVERED),
    ("checkpoints/10/state/manifest.ocdbt", "flipped", verdicts.RECOVERED),
    ("checkpoints/10/_CHECKPOINT_METADATA", "deleted", verdicts.RECOVERED),
    ("checkpoints/10/digests/metadata", "flipped", verdicts.RECOVERED),
]


@pytest.mark.parametrize(("name", "kind", "outcome"), SHORT_MATRIX)
@pytest.mark.slow
def test_a_damaged_file_is_made_anew_or_named(whole, run, capsys, name, kind, outcome):
    """The short form of `python -m tests.faults`."""
    cases.damage(run / name, kind, seed=1)
    flags = ["--run-dir", run, "--resume", "--num-devices", "1"]

    capsys.readouterr()
    code = 0
    with loaded("autoencoder", *flags) as module, warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            script.main(module.main)
        except SystemExit as ended:
            code = ended.code

    stderr = capsys.readouterr().err
    came_out, what = verdicts.verdict(code, stderr, run, verdicts.result_of(whole), name)
    assert came_out == outcome, what


@pytest.mark.parametrize("count", [0, 1])
def test_rows_that_are_gone_before_a_checkpoint_are_said_and_the_run_goes_on(run, count):
    path, before = run / "metrics.jsonl", rows(run)
    shutil.rmtree(run / "checkpoints" / "10")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    last = before[count - 1]["step"] if count else 0
    with pytest.warns(UserWarning, match=f"the rows after step {last}, up to step 8, are missing"):
        call("autoencoder", "--run-dir", run, "--resume", "--num-devices", "1")
    assert rows(run) == before[:count] + [row for row in before if row["step"] > 8]


@pytest.mark.parametrize(
    ("most_bytes", "place", "how"),
    [(2**10, "config.json", "start the run again"), (2**16, "checkpoints", "go on with --run-dir")],
)
def test_a_run_without_room_on_disk_says_how_to_go_on(tmp_path, capfd, most_bytes, place, how):
    folder = tmp_path / "run"
    with cases.room_for(most_bytes):
        message = refusal("autoencoder", *FLAGS, *STEPS, "--num-devices", "1", "--run-dir", folder)
    assert message.startswith(f"error: {folder / place} could not be written: File too large")
    assert f"Make room, and {how}" in message
    assert "Traceback" not in capfd.readouterr().err
