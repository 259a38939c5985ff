# SPDX-License-Identifier: MIT
"""The curve of a linear-Gaussian VAE is Shannon's: reverse water-filling of the variances."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.scripts import call, refusal

from jaxgen.evaluate import rate_distortion
from jaxgen.train import losses, optimizer

VARIANCES, SCALE = np.array([4.0, 1.0, 0.25]), 0.5
BETAS = (0.4, 2.0, 8.0)  # water levels of 0.1, 0.5 and 2


def data(count=600):
    """Points whose mean is 0 and whose covariance is exactly diag(VARIANCES), turned."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 3))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / count)).T * np.sqrt(VARIANCES)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    return np.float32(x @ turn.T).reshape(count, 3, 1, 1)


def loss_of(beta):
    encode = lambda p, x, label: jnp.concatenate([p["mean"] @ x.ravel(), p["logvar"]])  # noqa: E731
    decode = lambda p, z, label: (p @ z).reshape(3, 1, 1)  # noqa: E731
    fixed = {"log_scale": jnp.log(jnp.array([SCALE]))}
    density = lambda params, mean, x: losses.gaussian(fixed, mean, x)  # noqa: E731
    return losses.vae_loss(encode, decode, density, lambda step: beta)


def test_points_of_probabilistic_pca_lie_on_the_known_curve():
    """For a level s = beta sigma^2, in nats:

        rate = 1/2 sum log max(1, v_i / s)
        distortion = 3/2 log(2 pi sigma^2) + sum min(v_i, s) / (2 sigma^2)

    Cover & Thomas 2006, theorem 10.3.3. beta scales sigma^2 in the optimum of a linear VAE, which
    is probabilistic PCA: Tipping & Bishop 1999, Lucas et al. 2019 (arXiv:1911.02469).
    """
    rng, x = np.random.default_rng(1), data()
    encoder = {"mean": 0.1 * rng.standard_normal((3, 3)), "logvar": np.zeros(3)}
    params = jax.tree.map(
        jnp.float32, {"encoder": encoder, "decoder": 0.1 * rng.standard_normal((3, 3))}
    )
    tx = optimizer.adam(optimizer.schedule(0.02, 2500, "cosine"))
    train_key, test_key = jax.random.split(jax.random.key(0))
    trained = rate_distortion.train(loss_of, params, tx, BETAS, {"image": x}, 2500, 128, train_key)
    many = np.tile(x, (20, 1, 1, 1))  # more draws of z
    test = {"images": many, "labels": np.zeros(len(many), np.int32)}
    points = rate_distortion.points(loss_of(1.0), trained, BETAS, test, test_key)

    for point in points:
        level = point.beta * SCALE**2
        rate = 0.5 * np.sum(np.log(np.maximum(1, VARIANCES / level)))
        distortion = 1.5 * np.log(2 * np.pi * SCALE**2)
        distortion += np.sum(np.minimum(VARIANCES, level)) / (2 * SCALE**2)
        assert point.rate == pytest.approx(rate, abs=0.05)
        assert point.distortion == pytest.approx(distortion, abs=0.02 * point.beta + 0.03)
        assert point.rate_error < 0.02


def test_a_model_that_is_not_finite_is_named():
    params = {"encoder": {"mean": jnp.full((1, 3, 3), jnp.nan), "logvar": jnp.zeros((1, 3))}}
    params |= {"decoder": jnp.zeros((1, 3, 3))}
    test = {"images": data(4), "labels": np.zeros(4, np.int32)}
    with pytest.raises(ValueError, match="beta 2 is at .*nan.* lower the learning rate"):
        rate_distortion.points(loss_of(1.0), params, [2.0], test, jax.random.key(0))
    with pytest.raises(ValueError, match=r"betas \(1.0, 0.0\); give one or more positive"):
        rate_distortion.train(loss_of, {}, None, (1.0, 0.0), {}, 1, 1, jax.random.key(0))


def test_training_stops_at_the_chunk_that_is_not_finite_and_names_its_betas(monkeypatch):
    """w grows (1 + beta)-fold a step from 1: past float32 after 128 steps where beta is 1."""
    monkeypatch.setattr(rate_distortion, "STEPS_AT_ONCE", 50)

    def grows(beta):
        return lambda w, example, key: (-0.5 * beta * w**2, {"loss": w})

    def train(betas):
        key, data = jax.random.key(0), {"image": np.zeros((4, 1))}
        return rate_distortion.train(
            grows, jnp.float32(1), optax.sgd(1.0), betas, data, 160, 2, key
        )

    np.testing.assert_allclose(train((0.25, 0.5)), [1.25**160, 1.5**160], rtol=1e-4)
    with pytest.raises(ValueError, match=r"after step 150 with beta 1, 1\.2; lower the learning"):
        train((0.5, 1.0, 1.2, 0.25))


def test_the_script_leaves_points_and_a_picture(tmp_path):
    output, figure = tmp_path / "curve.json", tmp_path / "curve.png"
    flags = ["--output", output, "--figure", figure]
    sizes = ["--steps", "2", "--hidden", "4", "--latent-dim", "2", "--batch-size", "8"]
    out = call("studies.rate_distortion", *sizes, "--betas", "0.5", "2", *flags)
    points = json.loads(output.read_text())["points"]
    assert [point["beta"] for point in points] == [0.5, 2.0]
    assert figure.is_file()
    table = call("studies.rate_distortion", "--action", "table", *flags)
    assert table.splitlines() == out.splitlines()[1:]

    output.write_text('{"points": [{"beta": 1}]}')
    words = "holds no curve; give a file that --action run wrote"
    assert words in refusal("studies.rate_distortion", "--action", "table", *flags)
    unread = refusal("studies.rate_distortion", "--action", "table", "--betas", "2", *flags)
    assert "--betas needs --action run; leave it out" in unread
    twice = refusal("studies.rate_distortion", "--betas", "2", "1", "2")
    assert "--betas are 2.0 1.0 2.0; give each once" in twice
    assert "--steps is 0; use 1 or more" in refusal("studies.rate_distortion", "--steps", "0")
