# SPDX-License-Identifier: MIT
"""What a model's output says about x_0 and eps, resolved once per row on the host."""

import math

import numpy as np

from jaxgen import fields
from jaxgen.diffusion import table

ALPHA_ZERO = (
    "an epsilon model says nothing about x_0 at pure noise (zero terminal SNR); use a "
    "v_prediction model, or leading spacing"
)


def denoised_and_noise(
    prediction_type: str, alpha: float, sigma: float, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Combinations (x_0, eps) of LATENT and OUTPUT, each [8].

    The model saw scale * LATENT = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1.
    v = alpha eps - sigma x_0, Salimans & Ho 2022 (arXiv:2202.00512), appendix D.
    """
    x, out = scale * table.LATENT, table.OUTPUT
    match prediction_type:
        case "epsilon":
            if alpha == 0:
                raise ValueError(ALPHA_ZERO)
            return (x - sigma * out) / alpha, out
        case "v_prediction":
            return alpha * x - sigma * out, alpha * out + sigma * x
        case "sample":
            return out, (x - alpha * out) / sigma
    raise ValueError(
        f"prediction_type is {fields.shown(prediction_type)}; the schedule should have refused it"
    )


def at_unit_variance(
    prediction_type: str, level: float
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """(alpha, sigma, x_0, eps) for a latent of unit variance at the noise level sigma / alpha."""
    alpha = 1 / math.sqrt(level**2 + 1)
    sigma = level * alpha
    return alpha, sigma, *denoised_and_noise(prediction_type, alpha, sigma)


def at_level(prediction_type: str, sigma: float) -> tuple[float, np.ndarray, np.ndarray]:
    """(scale, x_0, eps) for a latent x_0 + sigma eps, which the model sees divided by its norm."""
    alpha = 1 / math.sqrt(sigma**2 + 1)
    return alpha, *denoised_and_noise(prediction_type, alpha, sigma * alpha, alpha)


def at_edm_level(
    prediction_type: str, sigma: float, sigma_data: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """(scale, x_0, eps) for a latent x_0 + sigma eps, with the preconditioning of EDM.

    Karras et al. 2022 (arXiv:2206.00364) table 1. sigma_data: the spread of the data. Of a
    v_prediction the output has the other sign, as in diffusers.
    """
    if prediction_type == "sample":
        raise ValueError("prediction_type 'sample' is not implemented with sigma_data")
    norm = math.sqrt(sigma**2 + sigma_data**2)
    sign = -1 if prediction_type == "v_prediction" else 1
    x0 = (sigma_data / norm) ** 2 * table.LATENT + sign * sigma * sigma_data / norm * table.OUTPUT
    return 1 / norm, x0, (table.LATENT - x0) / sigma
