# SPDX-License-Identifier: MIT
"""Odd values of options are taken or refused with exit code 2, before any work.

`python -m tests.fuzz.options` tries all of them, a few thousand.
"""

import warnings

import pytest
from fuzz import options


@pytest.mark.parametrize("name", options.SCRIPTS)
def test_odd_values_of_options_are_taken_or_refused(name):
    few = 5 if name in options.TRAINING or name == "text_to_image" else 40
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # which the script shows as notes
        assert options.faults(options.cases([name], few)) == []


@pytest.mark.parametrize(
    ("name", "flags", "end"),
    [
        ("gan_study", ["--b1", "0", "nan"], "refused"),
        ("vae_speedrun", ["--learning-rate", "inf"], "refused"),
        ("studies.rate_distortion", ["--learning-rate", "nan"], "refused"),
        ("studies.rate_distortion", ["--betas", "1", "inf"], "refused"),
        ("iwae_table", ["--cells", "3x7"], "refused"),
        ("prompt_following", ["--guidance", "nan"], "refused"),
        ("compress", ["--seed", "-1"], "refused"),
        ("gan_study", ["--b1", "0", "0.9"], "taken"),
        ("vae_speedrun", ["--hidden", "8", "8"], "taken"),
        ("iwae_table", ["--cells", "1x5"], "taken"),
    ],
)
def test_numbers_of_studies_are_checked(name, flags, end):
    assert options.outcome(name, flags) == end
