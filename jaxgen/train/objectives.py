# SPDX-License-Identifier: MIT
"""The objectives of a VAE by name: a table of what each needs, and the loss."""

from collections.abc import Callable
from typing import NamedTuple

from jaxgen.train import bounds, divergences, losses
from jaxgen.train.latent_models import LatentModel
from jaxgen.train.losses import Apply, Likelihood
from jaxgen.types import Array, LossFn

VAE_OBJECTIVES = ("elbo", "free_bits", "beta_tc", *bounds.BOUNDS)
OF_WHOLE_BATCH = ("free_bits", "beta_tc")  # a batch that is accumulated in parts is another one


class VaeParts(NamedTuple):
    """What the losses of a VAE are made of."""

    encode: Apply  # (params, x, label) -> mean and logvar of the first layer
    decode: Apply
    log_likelihood: Likelihood
    model: LatentModel  # the same as densities, with any prior or second layer
    num_examples: int  # of the training set
    beta: Callable[[Array], Array] | None = None
    dynamic_binarization: bool = False


def vae_objective(
    name: str, parts: VaeParts, num_samples: int = 1, free_nats: float = 0.0
) -> LossFn:
    """The loss with this name; num_samples is for the bounds, free_nats for free bits.

    Raises ValueError for a name that is not in `VAE_OBJECTIVES`.
    """
    networks = (parts.encode, parts.decode, parts.log_likelihood)
    options = (parts.beta, parts.dynamic_binarization)
    match name:
        case "elbo":
            return losses.vae_loss(*networks, *options)
        case "free_bits":
            return divergences.divergence_loss(
                *networks, divergences.free_bits(free_nats), *options
            )
        case "beta_tc":
            correlation = divergences.total_correlation(parts.num_examples)
            return divergences.divergence_loss(*networks, correlation, *options)
        case "k_sample" | "iwae" | "dreg":
            return bounds.bound_loss(parts.model, bounds.BOUNDS[name], num_samples, *options)
    raise ValueError(f"unknown VAE objective {name!r}; use one of {', '.join(VAE_OBJECTIVES)}")


def check_prior(name: str, option: str) -> None:
    """Raises ValueError where `option` asks for a prior whose KL has no closed form."""
    if name not in bounds.BOUNDS:
        raise ValueError(
            f"objective {name} needs the KL to N(0, I); with {option} use one of "
            f"{', '.join(bounds.BOUNDS)}"
        )
