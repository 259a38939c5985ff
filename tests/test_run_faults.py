# SPDX-License-Identifier: MIT
"""Runs that were killed, damaged, edited or entered twice: what `--resume` makes of them."""

import contextlib
import json
import math
import os
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from support import scripts
from support.scripts import call, newest_state, refusal, rows

from jaxgen import script
from jaxgen.pictures import images
from jaxgen.runs import checkpoint, command_line, experiment, log, run_folder
from jaxgen.train import loop

TINY = ["--batch-size", "32", "--log-every", "4", "--draw-every", "4", "--seed", "3"]


@pytest.fixture(scope="module", autouse=True)
def quick_curves():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "save_curves", scripts.list_curves)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed autoencoder of 10 steps; checkpoints at 4, 8 and 10, pictures too."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = [*TINY, "--steps", "10", "--checkpoint-every", "4", "--scan-steps", "1"]
    call("autoencoder", *flags, "--num-devices", "1", "--run-dir", folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it under the same name, which the curves show."""
    return shutil.copytree(whole, tmp_path / "run")


def resume(folder):
    return call("autoencoder", "--run-dir", folder, "--resume", "--num-devices", "1")


def files_of(folder):
    """The content of all files that a run leaves for people to look at."""
    paths = [*folder.glob("*.png"), *folder.glob("*.gif"), *folder.glob("pictures/*.png")]
    paths.append(folder / "metrics.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_run_killed_after_its_last_step_gets_its_pictures_and_its_summary(whole, run):
    for path in (*run.glob("*.png"), *run.glob("*.gif"), *run.glob("pictures/*-0000010.png")):
        path.unlink()
    (run / "summary.json").unlink()

    assert "has its 10 steps and its outputs" in resume(run)

    assert files_of(run) == files_of(whole)
    assert json.loads((run / "summary.json").read_text())["steps"] == 10


def test_a_run_killed_between_two_checkpoints_ends_with_the_same_pictures(whole, run):
    for step in (8, 10):
        shutil.rmtree(run / "checkpoints" / str(step))
    for path in run.glob("pictures/*-0000010.png"):
        path.unlink()

    resume(run)

    assert files_of(run) == files_of(whole)
    assert newest_state(run) == newest_state(whole)


def test_a_checkpoint_means_that_the_pictures_of_its_step_are_there():
    calls = []
    callbacks = loop.Callbacks(
        lambda done, row: None,
        lambda done, state: calls.append(("save", done)),
        lambda done, state: calls.append(("draw", done)),
        lambda done: False,
    )

    def step(state, batch, key):
        return state, {"loss": jnp.zeros(1)}

    loop.train(
        step, 0, lambda first, count: None, None, callbacks,
        start=0, stop=4, save_every=2, draw_every=2,
    )  # fmt: skip
    assert calls == [("draw", 2), ("save", 2), ("draw", 4), ("save", 4)]


def test_the_same_step_may_be_damaged_twice(whole, run):
    for _ in range(2):
        for path in (run / "checkpoints" / "10").rglob("*"):
            if path.is_file() and path.stat().st_size > 1000:
                path.write_bytes(path.read_bytes()[:-900])
        with pytest.warns(UserWarning, match="checkpoint skipped, step 10"):
            resume(run)

    assert (run / "checkpoints" / "damaged-10").is_dir()
    assert (run / "checkpoints" / "damaged-10-2").is_dir()
    assert newest_state(run) == newest_state(whole)


def test_a_folder_has_one_writer(run):
    with run_folder.in_use(run):
        message = refusal("autoencoder", "--run-dir", run, "--resume")
        overwriting = refusal("autoencoder", "--run-dir", run, "--overwrite")
        (run / run_folder.LOCK).unlink()  # as the message says, where the process is gone
        with run_folder.in_use(run):
            pass
    assert f"in use by process {os.getpid()} on " in message
    assert "in use by process" in overwriting
    assert not (run / run_folder.LOCK).exists()


def test_a_lock_that_a_killed_process_left_keeps_nobody_out(run):
    (run / run_folder.LOCK).write_text("process 1 on elsewhere since long ago\n")
    resume(run)


def test_a_changed_configuration_is_refused_until_somebody_says_that_it_was_meant(run):
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["config"]["run"]["seed"] = 4
    path.write_text(json.dumps(content))
    assert "its digest differs" in refusal("autoencoder", "--run-dir", run, "--resume")

    del content["digest"]
    path.write_text(json.dumps(content))
    resume(run)


@pytest.mark.parametrize("key", ["num_examples", "class_names", "digest_of_eight"])
def test_other_data_than_the_run_began_with_are_refused(run, key):
    facts = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(facts | {key: "other"}))
    message = refusal("autoencoder", "--run-dir", run, "--resume", "--steps", "12",
                      "--num-devices", "1")  # fmt: skip
    assert f"{key} was other and is " in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value):
    state = {"w": jnp.ones(3).at[1].set(value), "step": jnp.int32(7)}
    with (
        checkpoint.open_manager(tmp_path / "checkpoints") as manager,
        pytest.raises(loop.NonFiniteError, match="step 7: w not finite; the run stops and saves"),
    ):
        checkpoint.save(manager, 7, state)
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def test_tensorboard_hides_what_a_killed_run_wrote_after_its_checkpoint(tmp_path, monkeypatch):
    module = pytest.importorskip("tensorboardX")
    opened = []
    monkeypatch.setattr(
        module, "SummaryWriter", lambda *words, **options: opened.append(options) or Closed()
    )
    for start in (0, 600):
        with log.tensorboard(tmp_path, start):
            pass
    assert opened == [{}, {"purge_step": 601}]


class Closed:
    """A writer of which nothing but its end is asked."""

    def close(self):
        pass


def test_a_tilde_in_the_run_folder_is_home(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    call("autoencoder", "--run-dir=~/run", "--resume", "--num-devices", "1")
    monkeypatch.chdir(run.parent)
    assert not (run.parent / "~").exists()
    assert rows(run)[-1]["step"] == 10


def test_without_a_home_programs_are_compiled_and_not_kept(monkeypatch):
    changed = []
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(script.jax.config, "update", lambda name, value: changed.append(name))
    script.compilation_cache()
    assert "jax_compilation_cache_dir" not in changed


@pytest.mark.filterwarnings("always:Error reading persistent compilation")
def test_machine_code_that_cannot_be_read_is_one_note_and_made_anew(tmp_path, monkeypatch, capsys):
    """JAX compiles, but leaves the damaged file, and would compile at every start from then on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folder, before = tmp_path / "jaxgen" / "xla", jax.config.jax_compilation_cache_dir

    def start():
        jax.jit(lambda x: x + 41.5)(1.0)

    try:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()
        script.main(start)
        (path,) = folder.glob("*-cache")
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
        script.main(start)
        assert capsys.readouterr().err.count("note: Error reading persistent compilation") == 1
        assert len(path.read_bytes()) > len(whole) - 9
        script.main(start)
        assert capsys.readouterr().err == ""
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def test_an_error_that_nobody_foresaw_is_one_line_too(capsys, monkeypatch):
    def start():
        raise AssertionError("no GPU\nand more")

    monkeypatch.delenv("JAXGEN_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stopped:
        script.main(start)
    assert stopped.value.code == 2
    expected = "error: AssertionError: no GPU (JAXGEN_TRACEBACK=1 shows where)\n"
    assert capsys.readouterr().err == expected


def test_a_run_killed_before_its_configuration_leaves_a_folder_that_is_free(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / run_folder.LOCK).write_text("process 1 on elsewhere since long ago\n")
    run_folder.check_free(tmp_path, overwrite=False)


@pytest.mark.parametrize(
    "change",
    [
        {"mse": None}, {"loss": "x"}, {"loss": [1, True]}, {"other": 1}, {"loss": math.nan},
        {"loss": 10**400}, {"step": 1}, {"step": 900},
    ],
)  # fmt: skip
def test_rows_of_another_form_are_passed_over(run, change):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="1 lines are damaged"):
        steps = [row["step"] for row in log.read_rows(path)]
    assert steps == [json.loads(line)["step"] for line in (lines[0], *lines[2:])]


@pytest.mark.parametrize("change", ["a digit", "a row"])
def test_a_valid_row_that_was_changed_or_lost_is_said_when_the_run_goes_on(run, change):
    path = run / "metrics.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    first = rows[1].index('"loss": ') + len('"loss": ')
    digit = "3" if rows[1][first] == "2" else "2"
    rows[1] = rows[1][:first] + digit + rows[1][first + 1 :] if change == "a digit" else ""
    path.write_text("".join(rows))
    with pytest.warns(UserWarning, match="a row up to step 8 was changed or lost after"):
        resume(run)


def test_rows_have_the_same_digest_however_often_a_run_was_continued(whole, run):
    for step in ("8", "10"):
        shutil.rmtree(run / "checkpoints" / step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume(run)
        resume(run)
    assert not any("changed or lost" in str(warning.message) for warning in caught)
    assert newest_state(run) == newest_state(whole)  # the digest of the rows is one of these


def stopped_before_its_first_step(folder, *flags):
    """A continuation that is killed once it has noted its options."""

    def killed(*given, **named):
        raise KeyboardInterrupt

    flags = ["--run-dir", folder, "--resume", "--num-devices", "1", *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            call("autoencoder", *flags)


@pytest.mark.parametrize("every", [[], ["--log-every", "3"]], ids=["same", "other"])
def test_rows_stay_and_no_note_is_false_when_a_longer_run_is_killed_at_once(run, every):
    """Neither the row of the end, which a longer run lacks, nor the new --log-every counts."""
    before = rows(run)
    assert [row["step"] for row in before] == [1, 4, 8, 10]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped_before_its_first_step(run, "--steps", "14", *every)
        resume(run)
    assert [row["step"] for row in rows(run)] == [1, 4, 8, 12, 14]
    assert rows(run)[:3] == before[:3]


def test_a_checkpoint_that_says_nothing_of_its_rows_goes_on_all_the_same(run, monkeypatch):
    """As those of an earlier version."""
    before = rows(run)
    monkeypatch.setattr(checkpoint, "kept_rows", lambda manager, step: None)
    call("autoencoder", "--run-dir", run, "--resume", "--num-devices", "1", "--steps", "14")
    assert [row["step"] for row in rows(run)] == [1, 4, 8, 12, 14]
    assert rows(run)[:3] == before[:3]


def test_what_fails_in_a_step_fails_before_an_old_run_is_replaced(run, monkeypatch):
    def faulty(state, batch, key):
        raise ValueError("a step that cannot be")

    monkeypatch.setattr(experiment, "step_of", lambda system, options: faulty)
    before = files_of(run), newest_state(run)
    flags = ["--run-dir", run, "--num-devices", "1", *TINY]
    assert "a step that cannot be" in refusal("autoencoder", *flags, "--overwrite")
    both = refusal("autoencoder", *flags, "--overwrite", "--resume")
    assert "--resume goes on with a run and --overwrite deletes it; give one of them" in both
    assert (files_of(run), newest_state(run)) == before


def test_models_have_the_keys_of_runs_of_their_own_up_to_the_largest_seed():
    options = command_line.RunOptions(seed=2**32 - 3, num_models=3)
    for keys, stream in ((experiment.init_keys(options), 0), (experiment.train_keys(options), 1)):
        alone = [experiment.streams(options.seed + i)[stream] for i in range(3)]
        np.testing.assert_array_equal(
            jax.random.key_data(keys), [jax.random.key_data(key) for key in alone]
        )


def test_a_platform_without_a_device_is_named(monkeypatch):
    def no_device():
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(script.tune, "tune_cpu", no_device)
    monkeypatch.setattr(script, "compilation_cache", lambda: None)
    with pytest.raises(ValueError, match="no device of JAX_PLATFORMS=cuda"):
        script.set_up()


def test_what_orbax_says_of_a_run_that_is_read_is_not_shown(run, monkeypatch, caplog):
    caplog.set_level("WARNING", "absl")  # and as it was at the end
    monkeypatch.delenv("JAXGEN_TRACEBACK", raising=False)
    monkeypatch.setattr(script.tune, "tune_cpu", lambda: None)
    monkeypatch.setattr(script, "compilation_cache", lambda: None)
    script.set_up()
    with contextlib.closing(checkpoint.open_manager(run / "checkpoints", read_only=True)):
        pass
    assert caplog.records == []


def test_a_damaged_picture_of_an_earlier_step_is_left_out_and_said(run):
    path = run / "pictures" / "reconstructions-0000004.png"
    path.write_bytes(path.read_bytes()[:200])
    (run / "curves.png").unlink()
    with pytest.warns(UserWarning, match="picture left out: .*reconstructions-0000004"):
        resume(run)
    assert (run / "curves.png").is_file()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden", [64, "32"], r'hidden is \[64, "32"\], not tuple'),
        ("network", "densest", 'network is "densest", not Literal'),
        ("steps", "600", 'steps is "600", not'),
        ("seed", True, "seed is true, not int"),
        ("batch_size", 12.0, "batch_size is 12.0, not int"),
        ("learning_rate", None, "learning_rate is null, not float"),
        ("run_dir", 3, "run_dir is 3, not"),
        ("resume", "no", 'resume is "no", not bool'),
    ],
)
def test_a_value_of_the_wrong_type_in_the_configuration_is_named(run, field, value, message):
    path = run / "config.json"
    content = json.loads(path.read_text())
    config = content["config"]
    (config if field in config else config["run"])[field] = value
    del content["digest"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        command_line.read(autoencoder_config(), str(run), "autoencoder")


def autoencoder_config():
    with scripts.loaded("autoencoder") as module:
        return module.Config


def test_data_facts_that_are_gone_are_said(run):
    (run / "data.json").unlink()
    with pytest.warns(UserWarning, match="data.json is missing"):
        resume(run)
    assert (run / "data.json").is_file()


def test_checkpoints_that_are_gone_are_said_and_the_run_begins_again(run):
    before = rows(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.warns(UserWarning, match="no checkpoint; it begins again at step 0"):
        resume(run)
    assert rows(run)[: len(before)] == before


def test_a_folder_in_use_is_left_alone_also_by_overwrite(run):
    content = sorted(path.name for path in run.iterdir())
    with run_folder.in_use(run):
        flags = ["--run-dir", run, "--overwrite", "--num-devices", "1"]
        assert "in use by process" in refusal("autoencoder", *flags)
    assert sorted(path.name for path in run.iterdir()) == content
