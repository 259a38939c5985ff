# SPDX-License-Identifier: MIT
"""The README.md of an exported model: its flags are those of the script, its figures are right."""

import dataclasses
import functools
import pathlib

import numpy as np
import pytest
from support import checkpoints

from jaxgen.miniature import model_card
from jaxgen.runs import command_line
from jaxgen.weights import tokenizer

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
ACCURACY = {
    "seen": {"prompts": 3, "count": {"share": 0.9876, "asked": 3}, "all": {"share": 1, "asked": 3}},
    "held out": {"prompts": 2, "relation": {"share": 0.25, "asked": 1}},
}


@pytest.fixture
def scripts(monkeypatch):
    """The modules of the two scripts by name."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import latent_autoencoder
    import latent_diffusion

    return {script.NAME: script for script in (latent_autoencoder, latent_diffusion)}


@functools.cache
def model():
    return checkpoints.checkpoint()


def card(stages=(), accuracy=None, words=("red", "a")):
    made = model()
    tokens = made.tokenizers["tokenizer"]._replace(words=frozenset(words))
    made = made._replace(tokenizers={"tokenizer": tokens})
    return model_card.write(
        "a title", "on pictures", "a red", made, stages, accuracy, num_steps=7, guidance_scale=2.5,
        seed=9,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["latent_autoencoder", "latent_diffusion"])
@pytest.mark.parametrize(
    "flags",
    [
        [],
        # the defaults of RunOptions, which are not those of the scripts
        ["--warmup-steps", "0", "--clip-norm", "0", "--data-on", "host"],
        ["--num-scenes", "7", "--dtype", "bfloat16", "--seed", "3"],
        ["--schedule", "constant", "--batch-size", "128", "--learning-rate", "1e-3"],
    ],
)
def test_the_flags_of_a_run_give_its_configuration_again(scripts, name, flags):
    def parse(flags):
        return command_line.parse(name, {"world": scripts[name].WORLD}, "", flags)

    config = parse([*flags, "--run-dir", "somewhere", "--begin-with", "other"])
    text = card([(name, config, 1234)])
    assert f"## Run 1: {name}, 1,234 steps" in text
    assert "somewhere" not in text

    written = text.split(f"## Run 1: {name}")[1].split("```")[1].split()
    assert numbers_of(parse(written)) == numbers_of(config) - {("begin_with", "other")} | {
        ("begin_with", "")
    }


def numbers_of(config):
    """The options that change a number of the run."""
    values = dataclasses.asdict(config)
    flat = values.pop("run") | values
    changeable = command_line.changeable(config)
    return {(name, value) for name, value in flat.items() if name not in changeable}


def test_runs_are_numbered_in_their_order(scripts):
    config = scripts["latent_diffusion"].WORLD
    text = card([("one", config, 1), ("two", dataclasses.replace(config, begin_with="x"), 20_000)])
    first, second = [line for line in text.splitlines() if line.startswith("## Run")]
    assert first == "## Run 1: one, 1 steps"
    assert second.startswith("## Run 2: two, 20,000 steps")
    assert second.endswith("begun with the parameters of the run before")


def test_shares_are_percent_and_empty_where_nothing_was_asked():
    lines = card(accuracy=ACCURACY).splitlines()
    (head,) = [line for line in lines if line.startswith("| prompts of")]
    cells = {
        row.split("|")[1].strip(): dict(zip(_cells(head), _cells(row), strict=True))
        for row in lines
        if row.startswith(("| seen", "| held out"))
    }
    assert cells["seen"] == {
        "prompts of": "seen", "number": "3", "count": "98.8", "shape": "", "color": "", "size": "",
        "relation": "", "background": "", "all": "100.0",
    }  # fmt: skip
    assert cells["held out"]["relation"] == "25.0"
    assert "7 steps, guidance 2.5, seeds from 9" in "\n".join(lines)


def _cells(row):
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_parameters_are_counted():
    text = card()
    for name, component in model().components.items():
        count = sum(int(np.prod(tensor.shape)) for tensor in component.tensors.values())
        assert f"| {name} | {component.class_name} | {count:,} |" in text


def test_few_words_are_listed_and_many_are_counted():
    assert "## Words it knows\n\na, red\n" in card()
    assert "It knows the 201 words of its captions." in card(words=map(str, range(201)))
    assert tokenizer.EOS not in card()


def test_models_of_other_pictures_have_no_table_of_the_world():
    text = card()
    assert "held out" not in text
    assert "on pictures" in text
