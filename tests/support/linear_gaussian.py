# SPDX-License-Identifier: MIT
"""A linear-Gaussian VAE, probabilistic PCA, whose likelihood is known in closed form.

x = W z + b + scale * noise with orthogonal columns in W, so that the posterior of z is diagonal:
precision M = I + W^T W / scale^2, mean M^-1 W^T (x - b) / scale^2 (Tipping & Bishop 1999).
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

SHAPE = (3, 2, 1)
PIXELS, LATENT, SCALE = 6, 2, 0.5


def weights():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((PIXELS, LATENT)))[0]
    return directions * np.array([1.5, 0.6]), rng.standard_normal(PIXELS)


def encode(params, x, label):
    mean = params["gain"] @ (x.ravel() - params["bias"])
    return jnp.concatenate([mean, params["logvar"]])


def decode(params, z, label):
    return (params["gain"] @ z + params["bias"]).reshape(SHAPE)


def model(worse=0.0):
    """Parameters with the true posterior, or one whose variance is exp(worse) times it."""
    w, b = weights()
    precision = np.diag(np.eye(LATENT) + w.T @ w / SCALE**2)
    gain = w.T / SCALE**2 / precision[:, None]
    encoder = {"gain": gain, "bias": b, "logvar": worse - np.log(precision)}
    params = {"encoder": encoder, "decoder": {"gain": w, "bias": b}, "log_scale": np.log([SCALE])}
    return jax.tree.map(jnp.float32, params)


def drawn(count=40):
    w, b = weights()
    rng = np.random.default_rng(1)
    z, noise = rng.standard_normal((count, LATENT)), rng.standard_normal((count, PIXELS))
    images = (z @ w.T + b + SCALE * noise).reshape(count, *SHAPE)
    return {"images": images.astype(np.float32), "labels": np.zeros(count, np.int32)}


def exact_nll(test):
    w, b = weights()
    marginal = scipy.stats.multivariate_normal(b, w @ w.T + SCALE**2 * np.eye(PIXELS))
    return -np.atleast_1d(marginal.logpdf(test["images"].reshape(-1, PIXELS)))
