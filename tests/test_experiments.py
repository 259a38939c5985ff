# SPDX-License-Identifier: MIT
"""The scripts: files they leave, exact resuming, signals, hosts, bad input.

As processes where bits, signals, hosts or exit codes are meant; else in this process.
"""

import dataclasses
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from support.scripts import (
    call,
    command,
    environment,
    execute,
    leave_out_pictures,
    loaded,
    newest_state,
    refusal,
    rows,
    width_of,
)

from jaxgen import script
from jaxgen.evaluate import latents
from jaxgen.pictures import images
from jaxgen.runs import checkpoint, command_line

SLOW = pytest.mark.slow
HOST = pathlib.Path(__file__).parent / "support" / "host.py"
TINY = ["--batch-size", "32", "--log-every", "1", "--draw-every", "0", "--seed", "3"]
ALONE = ["--num-devices", "1"]  # in this process, which has eight
SMALL = ["--hidden", "8"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> pathlib.Path:
    """An uninterrupted VAE of 60 steps; other tests compare with it, or go on with a copy."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    flags = ["--steps", "60", "--draw-every", "30", "--checkpoint-every", "20"]
    execute("vae", *TINY, *flags, "--run-dir", folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    """A small VAE of 12 steps in this process, to compare with as with `straight`."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    flags = ["--steps", "12", "--checkpoint-every", "4", "--run-dir", folder]
    call("vae", *TINY, *ALONE, *SMALL, *flags)
    return folder


@pytest.fixture
def unpainted(monkeypatch) -> None:
    leave_out_pictures("vae", monkeypatch)


def test_a_run_leaves_config_metrics_checkpoints_pictures_and_curves(straight):
    config = json.loads((straight / "config.json").read_text())

    assert config["config"]["run"]["steps"] == 60
    assert config["versions"].keys() >= {"jax", "flax", "optax", "jaxgen"}
    assert [row["step"] for row in rows(straight)] == list(range(1, 61))
    assert rows(straight)[0].keys() >= {"step", "loss", "recon_nats", "kl_nats", "neg_elbo_nats"}
    for name in ("samples", "reconstructions", "interpolation", "traversal", "curves"):
        assert width_of(straight / f"{name}.png") > 100
    with Image.open(straight / "progress.gif") as animation:
        assert animation.n_frames == 2
    assert json.loads((straight / "summary.json").read_text())["steps"] == 60


@SLOW
def test_a_gan_is_trained_and_sampled(tmp_path):
    folder = tmp_path / "run"
    call("gan", *TINY, *ALONE, *SMALL, "--steps", "12", "--run-dir", folder)
    drawn = call("gan", "--run-dir", folder, "--action", "sample", "--num-samples", "9")

    assert "9 samples" in drawn
    assert width_of(folder / "samples-drawn.png") > 100
    assert all(np.isfinite(row["loss"]) for row in rows(folder))


def test_a_finished_vae_can_be_evaluated(straight):
    out = call("vae", "--run-dir", straight, "--action", "evaluate", "--nll-samples", "10")

    nats = {line.split()[0]: float(line.split()[1]) for line in out.splitlines() if "+-" in line}
    assert nats["neg_elbo_nats"] == pytest.approx(nats["recon_nats"] + nats["kl_nats"], abs=2e-3)
    assert nats["nll_nats"] < nats["neg_elbo_nats"]
    assert "k = 10; too few: they make +- 0." in out
    assert int(out.split("active units")[1].split()[0]) in range(21)


@SLOW
def test_a_run_killed_at_a_random_moment_resumes_to_the_same_bits(straight, tmp_path):
    folder = tmp_path / "killed"
    flags = [*TINY, "--steps", "60", "--checkpoint-every", "5", "--scan-steps", "5"]
    flags += ["--run-dir", folder]
    process = subprocess.Popen(
        command("vae", *flags),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_checkpoint(folder, process)
    time.sleep(float(np.random.default_rng().uniform(0, 0.1)))
    process.send_signal(signal.SIGKILL)
    process.wait()

    if process.returncode != 0:  # otherwise it was faster than the kill
        execute("vae", *flags, "--resume")

    assert newest_state(folder) == newest_state(straight)
    assert (folder / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


@SLOW
def test_a_run_resumed_twice_on_other_devices_equals_a_straight_one(small, tmp_path, unpainted):
    folder = tmp_path / "elastic"
    call("vae", *TINY, *SMALL, "--steps", "4", "--run-dir", folder, "--num-devices", "2")
    call("vae", "--steps", "8", "--run-dir", folder, "--resume", "--num-devices", "1")
    call("vae", "--steps", "12", "--run-dir", folder, "--resume", "--num-devices", "4",
         "--parallel", "shard_map")  # fmt: skip

    expected = [row["loss"] for row in rows(small)]
    np.testing.assert_allclose([row["loss"] for row in rows(folder)], expected, rtol=2e-4)


def wait_for_checkpoint(folder: pathlib.Path, process: subprocess.Popen) -> None:
    while process.poll() is None:
        if any(p.name.isdigit() for p in folder.glob("checkpoints/*")):
            return
        time.sleep(0.01)


@SLOW
def test_a_signal_saves_the_last_finished_step_and_exits_with_its_code(tmp_path):
    folder = tmp_path / "stopped"
    flags = [*TINY, *SMALL, "--steps", "1000000", "--checkpoint-every", "100", "--run-dir", folder]
    process = subprocess.Popen(
        command("vae", *flags), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    wait_for_checkpoint(folder, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 143
    assert f"--run-dir {folder} --resume" in errors
    saved = max(int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit())
    assert f"saved at step {saved} of 1000000" in errors
    assert rows(folder)[-1]["step"] == saved


@SLOW
def test_ctrl_c_while_a_state_is_saved_keeps_the_steps_done(tmp_path, monkeypatch, capsys):
    folder, save = tmp_path / "stopped", checkpoint.save

    def interrupted(manager, step, *state):
        is_first = step not in manager.all_steps()  # a stop saves again, and would be the second
        save(manager, step, *state)
        if is_first:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "save", interrupted)
    flags = [*TINY, *ALONE, *SMALL, "--steps", "12", "--checkpoint-every", "4"]
    with loaded("vae", *flags, "--run-dir", folder) as vae, pytest.raises(SystemExit) as stopped:
        script.main(vae.main)

    assert stopped.value.code == 130
    expected = f"saved at step 4 of 12; go on with --run-dir {folder} --resume"
    assert expected in capsys.readouterr().err
    assert [row["step"] for row in rows(folder)] == [1, 2, 3, 4]
    assert (folder / "checkpoints" / "4").is_dir()


@SLOW
def test_several_models_are_trained_at_once(small, tmp_path):
    folder = tmp_path / "models"
    flags = ["--steps", "12", "--num-models", "3", "--run-dir", folder]
    call("vae", *TINY, *ALONE, *SMALL, *flags)

    losses = np.array([row["loss"] for row in rows(folder)])
    assert losses.shape == (12, 3)
    expected = [row["loss"] for row in rows(small)]
    np.testing.assert_allclose(losses[:, 0], expected, rtol=2e-4)  # model 0 has the run's seed


SHORT = ["--steps", "8", "--checkpoint-every", "4"]
LONG = ["--steps", "30", "--checkpoint-every", "5", "--scan-steps", "5"]


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> pathlib.Path:
    """A folder of runs by two processes of two devices each, one for each way to divide a step.

    "killed" is "shard_map" again; both processes were killed after its first checkpoint, and two
    others went on with it.
    """
    folder = tmp_path_factory.mktemp("hosts")
    jit, pmap, shard_map, killed = (
        [*TINY, *SMALL, *flags, "--parallel", how, "--run-dir", folder / name]
        for name, how, flags in (
            ("jit", "jit", SHORT), ("pmap", "pmap", SHORT), ("shard_map", "shard_map", LONG),
            ("killed", "shard_map", LONG),
        )
    )  # fmt: skip
    processes = start_hosts(jit, pmap, killed)
    wait_for_checkpoint(folder / "killed", processes[0])
    for process in processes:
        process.kill()
        process.communicate()
    to_the_end(start_hosts([*killed, "--resume"], shard_map))
    return folder


@pytest.mark.parametrize(
    ("how", "checkpoints"), [("jit", {"4", "8"}), ("pmap", {"4", "8"}), ("shard_map", {"25", "30"})]
)
@SLOW
def test_two_processes_train_and_checkpoint_together(how, checkpoints, small, of_two_processes):
    folder = of_two_processes / how
    expected = [row["loss"] for row in rows(small)[:8]]
    np.testing.assert_allclose([row["loss"] for row in rows(folder)[:8]], expected, rtol=2e-4)
    assert {p.name for p in folder.glob("checkpoints/*")} >= checkpoints
    last = max(checkpoints, key=int)
    assert f"step {last}" in call("vae", "--run-dir", folder, "--action", "sample")


@SLOW
def test_two_processes_killed_at_once_resume_to_the_same_bits(of_two_processes):
    """Neither saves what the other has not; both begin again from the newest checkpoint."""
    killed, whole = (of_two_processes / name for name in ("killed", "shard_map"))
    assert newest_state(killed) == newest_state(whole)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def to_the_end(processes: list[subprocess.Popen]) -> None:
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


def start_hosts(*runs: list) -> list[subprocess.Popen]:
    """Two processes over loopback, of two devices each, that do these runs of vae.py in turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, *rest = runs
    flags = [[*first, "--distributed"], *rest]  # what joins them is done once
    return [
        subprocess.Popen(
            [sys.executable, HOST, json.dumps(flags, default=str)],
            env=environment(2)
            | {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]


def as_after_checkpoint(run: pathlib.Path, folder: pathlib.Path, step: int) -> None:
    """Copies a finished run as a kill right after the checkpoint of this step would leave it."""
    shutil.copytree(run, folder)
    for path in (folder / "checkpoints").iterdir():
        if path.name != str(step):
            shutil.rmtree(path)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:step]))
    for path in folder.glob("*.*"):
        if path.suffix in (".png", ".gif") or path.name == "summary.json":
            path.unlink()


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("vq_vae", ["--width", "4", "--codes", "8", "--code-dim", "2"]),
        (
            "vae",
            ["--objective", "dreg", "--bound-samples", "2", "--top-dim", "2", "--hidden", "8"],
        ),
        ("vae", ["--objective", "k_sample", "--pseudo-inputs", "3", "--hidden", "8"]),
        (
            "gan",
            [
                "--objective", "relativistic", "--conditional", "--conditioning", "auxiliary",
                "--hidden", "8",
            ],
        ),
        ("vae", ["--objective", "beta_tc", "--hidden", "8"]),
        ("vae", ["--objective", "iwae", "--bound-samples", "2", "--hidden", "8"]),
        ("vae", ["--objective", "free_bits", "--free-bits", "0.2", "--hidden", "8"]),
        (
            "gan",
            [
                "--objective", "hinge", "--spectral", "--slope", "8", "--diff-augment",
                "--hidden", "8",
            ],
        ),
        ("autoencoder", ["--mmd", "1", "--sparse", "4", "--contractive", "1", "--hidden", "8"]),
    ],
)  # fmt: skip
@SLOW
def test_objectives_resume_to_the_same_bits_and_are_drawn_and_evaluated(
    script, flags, tmp_path, monkeypatch
):
    monkeypatch.setattr(images, "save_curves", lambda *inputs: None)
    if script == "vae":  # distances of samples know nothing of the objective, and take a third
        monkeypatch.setattr(latents, "report", lambda *inputs: [])
    flags = [*TINY, *ALONE, *flags, "--scan-steps", "1", "--checkpoint-every", "4"]
    call(script, *flags, "--steps", "8", "--run-dir", tmp_path / "whole")
    as_after_checkpoint(tmp_path / "whole", tmp_path / "parts", 4)
    call(script, *ALONE, "--run-dir", tmp_path / "parts", "--resume")

    assert newest_state(tmp_path / "parts") == newest_state(tmp_path / "whole")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    if script != "gan":  # its judge takes longer than all else here
        assert "+-" in call(script, "--run-dir", tmp_path / "parts", "--action", "evaluate")
    flags = ["--run-dir", tmp_path / "parts", "--action", "sample", "--num-samples", "9"]
    drawn = call(script, *flags)
    assert "pictures are PNG: end it in .png" in refusal(script, *flags, "--output", "notes.txt")
    assert "9 samples" in drawn
    assert "step 8" in drawn
    assert width_of(tmp_path / "parts" / "samples-drawn.png") > 100
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path / "parts"))


def test_slope_and_augmentation_of_a_gan_reach_its_losses():
    """A hinge costs the generator -D(G(z)); here D is the mean pixel and G paints one grey."""
    paint = lambda params, z, label: jnp.full((8, 8, 1), 0.25)  # noqa: E731
    mean = lambda params, x, label: jnp.mean(x)  # noqa: E731
    example = {"discriminator": None, "label": None}

    def cost(*flags):
        with loaded("gan") as gan:
            shared = ["--objective", "hinge", "--spectral"]
            config = command_line.parse("gan", gan.PRESETS, "", [*shared, *flags])
            _, loss = gan.gan_model.losses_of(config, paint, mean)
        return float(loss(None, example, jax.random.key(0))[0])

    assert cost("--slope", "8") == -8 * 0.25
    augmented = cost("--diff-augment")
    assert abs(augmented + 0.25) > 1e-3  # brightness and cutout are drawn
    assert cost("--diff-augment", "--slope", "8") == pytest.approx(8 * augmented)


@SLOW
def test_the_contractive_penalty_is_in_the_loss_of_a_run(tmp_path, monkeypatch):
    leave_out_pictures("autoencoder", monkeypatch)
    flags = ["--contractive", "0.5", "--steps", "2", "--run-dir", tmp_path / "run"]
    call("autoencoder", *TINY, *ALONE, *SMALL, *flags)
    for row in rows(tmp_path / "run"):
        assert row["contraction"] > 0
        assert row["loss"] == pytest.approx(row["mse"] + 0.5 * row["contraction"], rel=1e-5)


@SLOW
def test_streamed_data_trains_and_resumes_to_the_same_bits(tmp_path):
    pytest.importorskip("grain")
    flags = [*TINY, *ALONE, "--data-on", "host", "--checkpoint-every", "8"]
    call("autoencoder", *flags, "--steps", "16", "--run-dir", tmp_path / "whole")
    as_after_checkpoint(tmp_path / "whole", tmp_path / "parts", 8)
    call("autoencoder", *ALONE, "--run-dir", tmp_path / "parts", "--resume")

    assert newest_state(tmp_path / "parts") == newest_state(tmp_path / "whole")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_an_existing_run_is_neither_overwritten_nor_continued_as_another(straight):
    before = (straight / "metrics.jsonl").read_bytes()

    taken = refusal("vae", *TINY, "--run-dir", straight)
    other = refusal("vae", "--run-dir", straight, "--resume", "--latent-dim", "8")
    script = refusal("gan", "--run-dir", straight, "--resume")

    assert "already holds a run; pass --resume" in taken
    assert "latent_dim is 20, not 8" in other
    assert "is a run of vae, not of gan" in script
    assert (straight / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        ("vae", ["--data", "mnits"], "mnist"),
        ("vae", ["--data", "./nowhere"], "nowhere"),
        ("vae", ["--latent-dim", "0"], "--latent-dim is 0; use 1 or more"),
        ("vae", ["--learning-rate", "-1"], "learning rate -1"),
        ("vae", ["--batch-size", "4000"], "the training set has 1501"),
        ("vae", ["--batch-size", "0"], "--batch-size is 0"),
        ("vae", ["--network", "conv", "--image-size", "9"], "9x9 cannot be halved"),
        ("vae", ["--resume"], "say which run with --run-dir"),
        ("vae", ["--preset", "imagenet"], "unknown preset 'imagenet'"),
        ("gan", ["--discriminator-steps", "0"], "--discriminator-steps is 0; use 1 or more"),
        ("gan", ["--r1", "-1"], "--r1 is -1.0; use 0 or more"),
        ("gan", ["--slope", "8"], "--slope needs --spectral"),
        ("gan", ["--spectral", "--slope", "0"], "--slope 0 makes the discriminator constant"),
        ("gan", ["--conditioning", "auxiliary"], "--conditioning needs --conditional; leave it"),
        ("gan", ["--discriminator-width", "32"], "--discriminator-width needs --network conv"),
        ("gan", ["--classification-score"], "--classification-score needs --conditional"),
        ("vae", ["--free-bits", "5"], "--free-bits needs --objective free_bits; leave it out"),
        ("vae", ["--likelihood", "gaussian", "--binarize"], "needs --likelihood bernoulli"),
        ("vae", ["--width", "7", "--norm", "group"], "--width needs --network conv"),
        ("vae", ["--network", "conv", "--hidden=8"], "--hidden needs --network dense"),
        ("vae", ["--nll_samples", "50"], "--nll-samples needs --action evaluate"),
        ("vae", ["--objective", "iwae"], "iwae with one draw is the ELBO; give --bound-samples 2"),
        ("autoencoder", ["--codes", "mixture"], "--codes needs --action sample"),
        ("vq_vae", ["--num-samples", "9"], "--num-samples needs --action sample"),
        ("lora", ["--data", "x", "--output", "y"], "--output needs --action export"),
        ("latent_diffusion", ["--num-prompts", "9"], "--num-prompts needs --action export"),
        ("gan", ["--ema-decay", "2"], "--ema-decay is 2.0"),
        ("vae", ["--beta", "nan"], "--beta is nan"),
        ("vae", ["--top-dim", "2"], "objective elbo needs the KL to N(0, I); with --top-dim use"),
        ("vae", ["--bound-samples", "5"], "--bound-samples needs --objective k_sample or iwae or"),
        (
            "vae",
            ["--objective", "iwae", "--top-dim", "2", "--pseudo-inputs", "9"],
            "are two priors",
        ),
        (
            "vae",
            ["--objective", "dreg", "--pseudo-inputs", "9", "--conditional"],
            "have no labels",
        ),
        ("vae", ["--objective", "beta_tc", "--accumulate", "2"], "use --accumulate 1"),
        ("vae", ["--objective", "free_bits", "--free-bits", "-1"], "--free-bits is -1.0; use 0"),
        ("autoencoder", ["--sparse", "17"], "--sparse is 17; use 0 to 16"),
        ("autoencoder", ["--mmd", "1", "--accumulate", "2"], "use --accumulate 1"),
        ("autoencoder", ["--mmd", "1", "--batch-size", "1"], "use a --batch-size of 2 or more"),
        ("vq_vae", ["--stages", "4"], "8x8 is no multiple of 16"),
        ("vq_vae", ["--codebook-decay", "1"], "a codebook's decay of 1.0; use 0 to below 1"),
        ("vq_vae", ["--accumulate", "2"], "use --accumulate 1"),
        ("vae", ["--steps", "2147483648"], "--steps is 2147483648; use 1 to 2147483647"),
        ("vae", ["--epochs", "1e9"], "--epochs 1e+09 are 1.17e+10 steps; use fewer, at most 2147"),
        ("gan", ["--warmup-steps", "3000000000"], "use 0 to 2147483647"),
        ("vae", ["--kl-warmup-steps", "3000000000"], "--kl-warmup-steps is 3000000000; use 0 to 2"),
        ("vae", ["--hidden", "0"], "--hidden is 0; use 1 or more"),
        ("vae", ["--seed", "99999999999999999999"], "--seed is 99999999999999999999"),
        ("vae", ["--epochs", "inf"], "--epochs is inf; use a positive number"),
        ("vae", ["--steps", "5", "--epochs", "2"], "give one of them"),
        ("autoencoder", ["--data-on", "host", "--scan-steps", "4"], "needs the data on the device"),
    ],
)
def test_bad_input_is_one_line_before_any_work(script, flags, words, tmp_path):
    folder = tmp_path / "run"
    where = [] if "--resume" in flags else ["--run-dir", folder]

    assert words in refusal(script, *ALONE, *flags, *where)
    assert not folder.exists()


def test_a_process_ends_with_one_line_and_no_traceback(tmp_path):
    done = subprocess.run(
        command("gan", "--r1", "-1", "--run-dir", tmp_path / "run"), env=environment(),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "--r1 is -1.0; use 0 or more" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_found_before_an_old_run_is_replaced(straight, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)

    line = refusal("vae", "--run-dir", straight, "--overwrite", "--tensorboard")

    assert 'TensorBoard logs need: pip install -e ".[log]"' in line
    assert newest_state(straight)


def test_unreadable_images_are_found_before_the_run_folder_is_made(tmp_path):
    for i in range(40):
        path = tmp_path / "images" / "a" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(path)
    whole = path.read_bytes()
    for i in range(40):
        (tmp_path / "images" / "a" / f"{i:02d}.png").write_bytes(whole[:-30])
    flags = ["--data", tmp_path / "images", "--batch-size", "8", "--run-dir", tmp_path / "run"]

    errors = refusal("vae", *ALONE, *flags)

    assert "cannot be read" in errors or "truncated" in errors
    assert not (tmp_path / "run").exists()


def test_overwrite_deletes_runs_only(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    errors = refusal("vae", "--run-dir", tmp_path, "--overwrite")

    assert "is not a run folder" in errors
    assert (tmp_path / "config.json").exists()


def test_a_share_that_cannot_be_dealt_is_refused_before_any_work(tmp_path):
    flags = ["--batch-size", "16", "--accumulate", "8", "--parallel", "pmap"]
    errors = refusal("vae", *flags, "--run-dir", tmp_path / "run")

    assert "each of 8 devices has 2 examples of a step, which cannot be dealt into 8" in errors
    assert not (tmp_path / "run").exists()


@SLOW
def test_a_run_killed_before_its_first_checkpoint_begins_again(small, tmp_path):
    folder = tmp_path / "early"
    shutil.copytree(small, folder)
    for path in (folder / "checkpoints").iterdir():
        shutil.rmtree(path)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 7.0}\n{"step": 2, "lo')

    with pytest.warns(UserWarning, match="metrics up to step 1 and no checkpoint"):
        call("vae", *ALONE, "--run-dir", folder, "--resume")

    assert newest_state(folder) == newest_state(small)
    assert (folder / "metrics.jsonl").read_bytes() == (small / "metrics.jsonl").read_bytes()


@SLOW
def test_a_run_goes_on_past_a_damaged_checkpoint(small, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(small, folder)
    files = [p for p in (folder / "checkpoints" / "12").rglob("*") if p.is_file()]
    for path in (large := [p for p in files if p.stat().st_size > 1000]):
        path.write_bytes(path.read_bytes()[:-900])
    assert large

    with pytest.warns(UserWarning, match="checkpoint skipped, step 12"):
        call("vae", *ALONE, "--run-dir", folder, "--resume")

    assert (folder / "checkpoints" / "damaged-12").is_dir()
    assert newest_state(folder) == newest_state(small)
    assert (folder / "metrics.jsonl").read_bytes() == (small / "metrics.jsonl").read_bytes()


def test_looking_at_a_run_does_not_touch_its_checkpoints(straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    unfinished = folder / "checkpoints" / "70.orbax-checkpoint-tmp"
    unfinished.mkdir()

    call("vae", "--run-dir", folder, "--action", "sample")

    assert unfinished.is_dir()


def test_a_failed_resume_leaves_the_configuration_alone(straight):
    before = (straight / "config.json").read_bytes()
    errors = refusal("vae", "--run-dir", straight, "--resume", "--steps", "7")
    preset = refusal("vae", "--run-dir", straight, "--resume", "--preset", "mnist")

    assert "has its 60 steps already; raise --steps to go on" in errors
    assert "preset is digits, not mnist" in preset
    assert (straight / "config.json").read_bytes() == before


@SLOW
def test_the_length_of_a_run_with_a_schedule_is_fixed(tmp_path):
    folder = tmp_path / "run"
    call("vae", *TINY, *ALONE, *SMALL, "--steps", "6", "--schedule", "cosine", "--run-dir", folder)
    errors = refusal("vae", "--run-dir", folder, "--resume", "--steps", "12")

    assert "steps is 6, not 12" in errors


@SLOW
def test_steps_replace_the_epochs_of_a_preset(tmp_path):
    folder = tmp_path / "run"
    flags = ["--preset", "mnist", "--data", "digits", "--hidden", "8", "--steps", "5"]
    call("vae", *flags, *ALONE, "--run-dir", folder)
    assert rows(folder)[-1]["step"] == 5

    call("vae", *ALONE, "--run-dir", folder, "--resume", "--steps", "70", "--log-every", "7")
    assert [row["step"] for row in rows(folder)] == [1, *range(7, 71, 7)]


@SLOW
def test_tiny_test_sets_draw_what_they_have(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (45, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "tiny.npz", x_train=pixels[:40], x_test=pixels[40:])
    for name in ("autoencoder", "vae"):
        flags = ["--data", tmp_path / "tiny.npz", "--batch-size", "8", "--steps", "5"]
        call(name, *flags, *SMALL, *ALONE, "--run-dir", tmp_path / name)
        assert width_of(tmp_path / name / "interpolation.png") > 50


def test_a_batch_that_devices_cannot_share_is_refused_before_any_work(tmp_path):
    errors = refusal("vae", "--batch-size", "100", "--run-dir", tmp_path / "run")

    assert "batch of 100 cannot be divided over 8 devices; use a multiple of 8" in errors
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(tmp_path):
    folder = tmp_path / "run"
    errors = refusal(
        "autoencoder", *TINY, *ALONE, "--steps", "400", "--learning-rate", "1e18",
        "--checkpoint-every", "1", "--scan-steps", "1", "--run-dir", folder,
    )  # fmt: skip

    assert "not finite; the run stops" in errors
    step = int(errors.split("error: step ")[1].split(":")[0])
    saved = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()]
    assert all(s < step for s in saved)


@SLOW
def test_the_demo_leaves_one_picture_of_all_three_systems(tmp_path, monkeypatch):
    with loaded("demo") as demo:
        for system in (demo.autoencoder, demo.vae, demo.gan):
            preset = system.PRESETS["digits"]
            short = dataclasses.replace(preset.run, steps=20, num_devices=1)
            monkeypatch.setitem(system.PRESETS, "digits", dataclasses.replace(preset, run=short))
        monkeypatch.setattr(demo, "NUM_STEPS", 2)
        out = call("demo", "--quick", "--run-dir", tmp_path / "demo")

    assert str(tmp_path / "demo" / "overview.png") in out
    assert width_of(tmp_path / "demo" / "overview.png") > 1000
