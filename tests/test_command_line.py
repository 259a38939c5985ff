# SPDX-License-Identifier: MIT
"""The command line of the training scripts: groups of options, presets, continuations."""

import contextlib
import dataclasses
import importlib
import pathlib
import re

import pytest

from jaxgen.runs import command_line, run_folder
from jaxgen.runs.command_line import GROUPS, MainOptions, RunOptions

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
SCRIPTS = ("autoencoder", "vae", "vq_vae", "gan", "latent_autoencoder", "latent_diffusion", "lora")


@pytest.fixture
def script(monkeypatch):
    """Loads a script by name."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


def presets(module):
    return getattr(module, "PRESETS", None) or {"world": module.WORLD}


def parse(module, name, *flags):
    return command_line.parse(name, presets(module), module.__doc__, [*map(str, flags)])


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_one_example_a_line_and_options_in_groups(script, name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    module = script(name)
    with pytest.raises(SystemExit) as stopped:
        parse(module, name, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out

    examples = [line for line in module.__doc__.splitlines() if line.startswith("    python ")]
    assert len(examples) >= 3
    assert all(example in text.splitlines() for example in examples)
    plain = re.sub("[│╭╮╰╯─]|-{9,}", " ", text)  # a terminal gets boxes, a file lines
    boxes = re.split(r"(?m)^ +(\w+) options +$", plain)
    assert boxes[1::2] == ["main", "model", "data", "training", "output"]
    kinds = {"main": MainOptions, "model": module.Config, **GROUPS}
    for title, box in zip(boxes[1::2], boxes[2::2], strict=True):
        names = [field.name for field in dataclasses.fields(kinds[title]) if field.name != "run"]
        flags = [f"--{name.replace('_', '-')}" for name in names]
        assert re.findall(r"(?m)^ {1,3}(--[a-z0-9-]+)", box) == flags
        # every option says what it is before its default
        words = [re.sub(r"\s+", " ", part) for part in re.split(r"(?m)^ {1,3}--", box)[1:]]
        assert all(re.search(r"[^}\]] [a-zA-Z].{6,} \(default: ", option) for option in words)


def test_the_main_group_has_ten_options_and_no_option_is_in_two_groups():
    names = [field.name for kind in GROUPS.values() for field in dataclasses.fields(kind)]
    assert len(dataclasses.fields(MainOptions)) == 10
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(RunOptions))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_flags_give_the_first_preset(script, name):
    module = script(name)
    assert parse(module, name) == next(iter(presets(module).values()))


def test_flags_of_every_group_reach_the_configuration(script):
    config = parse(
        script("gan"), "gan", "--preset", "cifar10", "--batch-size", 8, "--hidden", 3, 4,
        "--channels", 1, "--clip-norm", 2, "--wandb", "project",
    )  # fmt: skip
    expected = presets(script("gan"))["cifar10"]
    run = dataclasses.replace(
        expected.run, batch_size=8, channels=1, clip_norm=2.0, wandb="project"
    )
    assert config == dataclasses.replace(expected, hidden=(3, 4), run=run)


@pytest.fixture
def folder(script, tmp_path):
    """A run of vae.py with its configuration alone."""
    config = parse(script("vae"), "vae", "--latent-dim", 7, "--hidden", 5, "--steps", 9)
    run_folder.write_config(tmp_path, "vae", dataclasses.asdict(config))
    return tmp_path


def test_a_continuation_has_the_options_of_its_run(script, folder):
    config = parse(script("vae"), "vae", "--run-dir", folder, "--resume", "--log-every", 3)
    assert (config.latent_dim, config.hidden, config.run.steps) == (7, (5,), 9)
    assert (config.run.log_every, config.run.resume, config.run.run_dir) == (3, True, str(folder))


@pytest.mark.parametrize("name", ["vae", "gan", "latent_diffusion"])
def test_options_that_may_change_are_said_beside_each(script, name):
    config = presets(script(name))
    names = command_line.changeable(next(iter(config.values())))
    assert {"steps", "run_dir", "parallel", "action", "output"} <= names
    assert not names & {"seed", "batch_size", "learning_rate", "data", "dtype", "begin_with"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--latent-dim", 8], "latent_dim is 7, not 8"),
        (["--seed", 1, "--beta", 2], "beta is 1.0, not 2.0"),
        (["--seed", 1, "--beta", 2], "seed is 0, not 1"),
        (["--preset", "mnist"], "preset is digits, not mnist"),
    ],
)
def test_a_flag_that_makes_it_another_run_is_an_error(script, folder, flags, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(script("vae"), "vae", "--run-dir", folder, "--resume", *flags)


READ_WITH = {("network", "dense"): ("hidden",), ("likelihood", "bernoulli"): ("binarize",)}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--network", "conv", "--hidden", 9], "--hidden needs --network dense; leave it out, or"),
        (["--preset", "cifar10", "--hidden=9"], "--hidden needs --network dense"),
        (["--preset", "cifar10", "--binarize"], "--binarize needs --likelihood bernoulli"),
        (
            ["--run-dir", "RUN", "--action", "sample", "--log_every", 9],
            "--log-every needs --action",
        ),
        (["--run-dir", "RUN", "--action", "evaluate", "--resume"], "--resume needs --action train"),
    ],
)
def test_a_flag_that_nothing_reads_is_an_error(script, folder, flags, words):
    flags = [str(folder) if flag == "RUN" else str(flag) for flag in flags]
    with pytest.raises(ValueError, match=words):
        command_line.parse("vae", presets(script("vae")), "", flags, READ_WITH)


@dataclasses.dataclass(frozen=True)
class Study:
    """The options of a script that is no training script."""

    action: str = "run"
    lora: str | None = None
    strengths: tuple[float, ...] = (1.0,)
    steps: int = 7


OF_STUDY = {("action", "run"): ("steps",), ("lora", True): ("strengths",)}


@pytest.mark.parametrize(
    ("config", "flags", "words"),
    [
        (Study("table"), ["--steps=7"], "--steps needs --action run; leave it out, or give that"),
        (Study(), ["--strengths", "1"], "--strengths needs --lora; leave it out, or give that"),
        (Study(), ["--steps", "7"], None),  # action "run" is no training, and reads them
        (Study("table", "a.safetensors"), ["--lora", "a.safetensors", "--strengths", "1"], None),
        (Study("table"), [], None),
    ],
)
def test_scripts_that_do_not_train_refuse_what_nothing_reads_by_the_same_rule(config, flags, words):
    refused = pytest.raises(ValueError, match=words) if words else contextlib.nullcontext()
    with refused:
        command_line.check_read(config, OF_STUDY, flags)


def test_values_of_presets_and_of_the_run_are_no_flags_and_what_is_off_is_not_unread(
    script, folder
):
    take = lambda *flags: command_line.parse(  # noqa: E731
        "vae", presets(script("vae")), "", [*map(str, flags)], READ_WITH
    )
    assert take("--preset", "cifar10", "--no-binarize").network == "conv"
    assert take("--likelihood", "gaussian", "--no-binarize").binarize is False
    assert take("--run-dir", folder, "--action", "sample").hidden == (5,)


def test_an_option_without_its_value_is_one_line(script):
    with pytest.raises(ValueError, match="--preset: expected one argument; --help lists"):
        parse(script("vae"), "vae", "--preset", "-inf")


def test_a_run_of_another_script_is_named(script, folder):
    with pytest.raises(ValueError, match="is a run of vae, not of gan; use experiments/vae.py"):
        parse(script("gan"), "gan", "--run-dir", folder, "--resume")


def test_the_length_is_fixed_where_the_learning_rate_depends_on_it(script, tmp_path):
    module = script("vae")
    config = parse(module, "vae", "--schedule", "cosine", "--steps", 6)
    run_folder.write_config(tmp_path, "vae", dataclasses.asdict(config))
    with pytest.raises(ValueError, match="steps is 6, not 12"):
        parse(module, "vae", "--run-dir", tmp_path, "--resume", "--steps", 12)
