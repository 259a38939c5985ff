# SPDX-License-Identifier: MIT
"""What may stand in the KL's place: free bits, and beta-TC's three parts.

Each looks at the whole batch (`neighbours.all_examples`): a term of one example is such that the
mean over the batch is the paper's estimate.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.train import losses, neighbours
from jaxgen.train.losses import Apply, Likelihood
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params

# (z [D], mean [D], logvar [D], weight []) -> the term added to the reconstruction, and the parts
# that it is made of, if any: metrics in nats
Divergence = Callable[[Array, Array, Array, Array], tuple[Array, Metrics]]


def free_bits(nats: float) -> Divergence:
    """Builds the KL of every latent entry, without a reward for less than `nats` each.

        sum_d max(nats, mean over the batch of KL_d)

    Kingma et al. 2016 (arXiv:1606.04934), eq. 15, with one entry in each group.
    Raises ValueError for a negative number.
    """
    if not nats >= 0:
        raise ValueError(f"free bits of {nats} nats; use 0 (the KL itself) or more")

    def divergence(z: Array, mean: Array, logvar: Array, weight: Array) -> tuple[Array, Metrics]:
        kl = losses.kl_divergence(mean[:, None], logvar[:, None])  # [D]
        of_batch = jnp.mean(neighbours.all_examples(kl), axis=0)
        return weight * jnp.sum(jnp.where(of_batch > nats, kl, nats)), {}

    return divergence


def total_correlation(num_examples: int) -> Divergence:
    """Builds the KL in three parts; `weight` multiplies the dependence between the entries of z.

        I(x; z) + weight KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || p(z_d))

    Chen et al. 2018 (arXiv:1802.04942), eq. 2 and 4. q(z) is estimated from the batch of B images
    out of N = `num_examples` by minibatch-weighted sampling (appendix C.1):

        log q(z) ~ log 1/(N B) sum_j q(z | x_j)

    The parts add up to log q(z | x) - log p(z), so weight = 1 has the gradient of the one-sample
    bound; a warm-up of the weight is one of the dependence alone. The parts are metrics too.
    Raises ValueError for less than one example.
    """
    if num_examples < 1:
        raise ValueError(f"a training set of {num_examples} examples; use 1 or more")

    def divergence(z: Array, mean: Array, logvar: Array, weight: Array) -> tuple[Array, Metrics]:
        means, logvars = neighbours.all_examples(mean), neighbours.all_examples(logvar)  # [B, D]
        # log q(z_d | x_j) [B, D]: an axis of length 1 is what the density sums over
        densities = losses.gaussian_log_density(
            z[None, :, None], means[..., None], logvars[..., None]
        )
        count = math.log(num_examples * len(means))  # a product that 32 bits may not hold
        joint = jax.nn.logsumexp(jnp.sum(densities, axis=1)) - count  # log q(z)
        each = jnp.sum(jax.nn.logsumexp(densities, axis=0) - count)  # sum_d log q(z_d)
        posterior = losses.gaussian_log_density(z, mean, logvar)
        prior = losses.gaussian_log_density(z, jnp.zeros_like(z), jnp.zeros_like(z))
        parts = {
            "mutual_information_nats": posterior - joint,
            "total_correlation_nats": joint - each,
            "entries_kl_nats": each - prior,
        }
        information, dependence, entries = parts.values()
        return information + weight * dependence + entries, parts

    return divergence


def divergence_loss(
    encode: Apply,
    decode: Apply,
    log_likelihood: Likelihood,
    divergence: Divergence,
    beta: Callable[[Array], Array] | None = None,
    dynamic_binarization: bool = False,
) -> LossFn:
    """Builds -log p(x | z) plus a divergence, in nats: `vae_loss` with another term for the KL.

    The metrics are those of `losses.vae_loss`, with `kl_nats` the analytic KL and `neg_elbo_nats`
    the bound itself, and `divergence_nats`, the term that was added, with its parts.
    """
    beta = losses.linear_warmup(0) if beta is None else beta

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        binarize_key, eps_key = jax.random.split(key)
        x, label = example["image"], example.get("label")
        x = losses.binarize(binarize_key, x) if dynamic_binarization else x
        mean, logvar = jnp.split(encode(params["encoder"], x, label), 2, axis=-1)
        z = losses.reparameterize(eps_key, mean, logvar)
        recon = -log_likelihood(params, decode(params["decoder"], z, label), x)

        weight = beta(example["step"])
        term, parts = divergence(z, mean, logvar, weight)
        kl = losses.kl_divergence(mean, logvar)
        terms = {"recon_nats": recon, "kl_nats": kl, "neg_elbo_nats": recon + kl, "beta": weight}
        return recon + term, {"loss": recon + term, "divergence_nats": term, **parts, **terms}

    return loss
