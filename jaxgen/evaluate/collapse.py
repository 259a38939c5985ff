# SPDX-License-Identifier: MIT
"""Which entries of z a VAE uses, and whether its posterior has collapsed onto its prior.

A collapsed one says nothing of the image. Bowman et al. 2016 (arXiv:1511.06349), section 3.1, met
it in sentences; it is as common in images.
"""

import math

import jax.numpy as jnp
import numpy as np

from jaxgen.train import losses
from jaxgen.types import Array

FEW_NATS = 0.1  # a code of fewer nats than these tells nothing about an image


def active_units(means: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Says which latent entries the images move: [N, D] -> bool [D].

        var over x of E_q(z | x) z_d > threshold

    means: the posterior means of N images. Burda et al. 2016 (arXiv:1509.00519), section 5.2.
    Raises ValueError for less than two images and for means that are not finite.
    """
    if not np.isfinite(means).all():
        raise ValueError("posterior means that are not finite; look at the images or the encoder")
    if len(means) < 2:
        raise ValueError(f"a variance over {len(means)} images; use 2 or more")
    return np.var(np.asarray(means, np.float64), axis=0) > threshold


def remark(mean: Array, logvar: Array, alike: str, cure: str, has_own_prior: bool = False) -> str:
    """Says that z carries nothing, and what to do; empty for a model that uses its z.

    mean, logvar: the posteriors [N, D] of N images. alike, cure: what follows from a collapse and
    what to do about it, in words. has_own_prior: the prior is not N(0, I), so no KL is known.
    """
    active = active_units(np.asarray(mean)).sum()
    nats = math.inf if has_own_prior else float(jnp.mean(losses.kl_divergence(mean, logvar)))
    if active and nats >= FEW_NATS:
        return ""
    cost = "" if has_own_prior else f", KL {nats:.2g} nats"
    return (
        f"the posterior has collapsed: z tells nothing ({active} of {mean.shape[-1]} units are "
        f"active{cost}), so {alike}; {cure} (docs/troubleshooting.md)"
    )
