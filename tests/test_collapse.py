# SPDX-License-Identifier: MIT
"""A VAE whose z tells nothing says so at the end of its run, in one line, with what to do."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import scripts

from jaxgen.evaluate import collapse
from jaxgen.runs.experiment import Examples

FLAGS = ["--hidden", "16", "--latent-dim", "3", "--batch-size", "64", "--draw-every", "0"]
FLAGS += ["--num-devices", "1"]
ADVICE = (
    r"the posterior has collapsed: z tells nothing \(0 of 3 units are active, KL \S+ nats\), so "
    r"samples of a class look alike; train again with a --beta below 50 or --kl-warmup-steps or "
    r"--objective free_bits or more steps \(docs/troubleshooting.md\)"
)


@pytest.mark.slow
def test_a_class_conditional_run_with_a_high_beta_ends_with_its_collapse(
    tmp_path, monkeypatch, capsys
):
    flags = [*FLAGS, "--conditional", "--beta", 50, "--steps", 200, "--learning-rate", "1e-2"]
    with scripts.loaded("vae", *flags, "--run-dir", tmp_path / "run") as vae:
        scripts.leave_out_pictures("vae", monkeypatch)
        vae.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "collapsed" in line]
    assert re.fullmatch(ADVICE, line)


class State:
    params = {"encoder": {}}


def remark_on(mean, flags=()):
    """What the script says of an encoder that gives these means and variance 1 to two images."""
    images = np.zeros((2, 8, 8, 1), np.uint8)
    examples = Examples(2, (8, 8, 1), (), images, np.zeros(2, np.int32))
    moments = jnp.concatenate([jnp.float32(mean), jnp.zeros((2, 3))], axis=-1)
    with scripts.loaded("vae") as vae:
        config = vae.command_line.parse("vae", vae.PRESETS, "", [*FLAGS, *flags])
        posterior_of = partial(vae.posterior, config, lambda *_: moments)
        return vae.remark(config, posterior_of, State(), examples, jax.random.key(0))


def test_a_model_that_uses_its_z_is_not_remarked_on():
    assert remark_on([[1, 0, 0], [-1, 0, 0]]) == ""


@pytest.mark.parametrize(
    ("mean", "flags", "words"),
    [
        # one unit moves, by 0.045 nats
        ([[0.3, 0, 0], [-0.3, 0, 0]], (), r"1 of 3 units are active, KL 0.045 nats"),
        # far from the prior, and the same for all images
        ([[3, 0, 0], [3, 0, 0]], (), r"0 of 3 units are active, KL 4.5 nats"),
        ([[3, 0, 0], [3, 0, 0]], ("--top-dim", "2"), r"0 of 3 units are active\), so"),
        # no other cure is needed yet
        (
            [[0, 0, 0]] * 2,
            ("--steps", "40"),
            r"alike; 40 steps are few, train for more \(docs/",
        ),
    ],
)
def test_a_z_that_tells_nothing_is_named_with_its_units_and_nats(mean, flags, words):
    assert re.search(words, remark_on(mean, flags))


def test_active_units_are_those_whose_mean_the_images_move():
    rng = np.random.default_rng(0)
    means = rng.standard_normal((500, 3)) * np.sqrt([0.5, 0.02, 0.002]) + 7
    assert collapse.active_units(means).tolist() == [True, True, False]
    assert collapse.active_units(means, 0.1).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="a variance over 1 images; use 2"):
        collapse.active_units(means[:1])
    with pytest.raises(ValueError, match="posterior means that are not finite"):
        collapse.active_units(means * np.nan)
