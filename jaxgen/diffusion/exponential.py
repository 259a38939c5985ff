# SPDX-License-Identifier: MIT
"""One exponential-integrator step in lambda = log(alpha / sigma), as a combination."""

import math
from collections.abc import Sequence

import numpy as np

from jaxgen.diffusion.table import NOISE

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def vp_level(sigma: float) -> tuple[float, float]:
    """(alpha, sigma) of the variance-preserving latent at the noise level sigma / alpha."""
    alpha = 1 / math.sqrt(sigma**2 + 1)
    return alpha, sigma * alpha


def log_snr(sigma: float) -> float:
    """lambda = log(alpha / sigma) at the noise level sigma / alpha; infinite at 0."""
    return -math.log(sigma) if sigma > 0 else math.inf


def step(
    algorithm: str,
    base: np.ndarray,
    source: float,
    target: float,
    derivatives: Sequence[np.ndarray],
    midpoint: bool,
) -> np.ndarray:
    """The latent at level `target` from `base` at level `source`, an array [8].

    derivatives: the value (x_0 for the ++ forms, else eps), then its first and second derivative in
    lambda, times h and h^2. With z the exponent of the integrating factor over the step,

        x' = a x + b (E D0 + (E / z - 1) D1 + ((E - z) / z^2 - 1/2) D2) + c noise,   E = e^z - 1

    Lu et al. 2022 (arXiv:2211.01095). midpoint: D1 weighs E / 2 instead, the same to
    second order.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = vp_level(source), vp_level(target)
    h = log_snr(target) - log_snr(source)
    noise, half = 0.0, -0.5
    match algorithm:
        case "dpmsolver++":
            z, keep, factor = -h, sigma_t / sigma_s, -alpha_t
        case "dpmsolver":
            z, keep, factor = h, alpha_t / alpha_s, -sigma_t
        case "sde-dpmsolver++":
            z, keep, factor = -2 * h, sigma_t / sigma_s * math.exp(-h), -alpha_t
            noise = sigma_t * math.sqrt(-math.expm1(-2 * h))
            half = 0.5  # diffusers' sign; the integral gives -1/2, as for the others
        case _:
            z, keep, factor = h, alpha_t / alpha_s, -2 * sigma_t
            noise = sigma_t * math.sqrt(math.expm1(2 * h))
    grown = math.expm1(z)
    change = grown * derivatives[0]
    if z != 0 and len(derivatives) > 1:
        change = change + (grown / 2 if midpoint else grown / z - 1) * derivatives[1]
    if z != 0 and len(derivatives) > 2:
        change = change + ((grown - z) / z**2 + half) * derivatives[2]
    return keep * base + factor * change + noise * NOISE
