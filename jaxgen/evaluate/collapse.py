# SPDX-License-Identifier: MIT
"""Tells whether a VAE's posterior has collapsed onto its prior: then z says nothing of the image.

Bowman et al. 2016 (arXiv:1511.06349), section 3.1, met it in sentences; it is as common in images.
"""

import math

import jax.numpy as jnp
import numpy as np

from jaxgen.evaluate import likelihood
from jaxgen.train import losses
from jaxgen.types import Array

FEW_NATS = 0.1  # a code of fewer nats than these tells nothing about an image


def remark(mean: Array, logvar: Array, alike: str, cure: str, has_own_prior: bool = False) -> str:
    """Says that z carries nothing, and what to do; empty for a model that uses its z.

    mean, logvar: the posteriors [N, D] of N images. alike, cure: what follows from a collapse and
    what to do about it, in words. has_own_prior: the prior is not N(0, I), so no KL is known.
    """
    active = likelihood.active_units(np.asarray(mean)).sum()
    nats = math.inf if has_own_prior else float(jnp.mean(losses.kl_divergence(mean, logvar)))
    if active and nats >= FEW_NATS:
        return ""
    cost = "" if has_own_prior else f", KL {nats:.2g} nats"
    return (
        f"the posterior has collapsed: z tells nothing ({active} of {mean.shape[-1]} units are "
        f"active{cost}), so {alike}; {cure} (docs/troubleshooting.md)"
    )
