# SPDX-License-Identifier: MIT
"""Bits per dimension of distributions whose entropy is known."""

import math

import pytest

from jaxgen.evaluate import likelihood


@pytest.mark.parametrize("num_bytes", [1, 784, 3072])
@pytest.mark.parametrize(("values", "bits"), [(256, "8.0000"), (2, "1.0000"), (1, "0.0000")])
def test_a_uniform_distribution_has_the_logarithm_of_its_values_in_bits(values, bits, num_bytes):
    nats = num_bytes * math.log(values)
    terms = {"neg_elbo_nats": (nats, 0.0), "recon_nats": (nats, 0.0), "kl_nats": (0.0, 0.0)}
    assert likelihood.lines(terms, num_bytes)[-1].split() == ["bits", "per", "dim", bits]
    assert not any("bits" in line for line in likelihood.lines(terms))  # of another likelihood
