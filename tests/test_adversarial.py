# SPDX-License-Identifier: MIT
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from support.gradients import gradient_error

from jaxgen.train import adversarial

SHAPE = (2, 3, 1)
LATENT = 2


def generate(params, z, label):
    return jnp.tanh(params["w"] @ z + params["b"]).reshape(SHAPE)


def judge(params, x, label):
    return jnp.sum(params["out"] * jnp.tanh(params["w"] @ x.ravel()))


def generator_params():
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((6, LATENT)), "b": rng.standard_normal(6)}


def judge_params():
    rng = np.random.default_rng(1)
    return {"w": rng.standard_normal((4, 6)), "out": rng.standard_normal(4)}


def real_image():
    return np.random.default_rng(2).uniform(-1, 1, SHAPE)


def constant(params, z, label):
    """A generator that always paints its parameter."""
    return params


def linear_judge(params, x, label):
    return jnp.sum(params["w"] * x) + params["b"]


def half_square(params, x, label):
    """D(x) = |x|^2 / 2: its slope is x itself, and so shows where the slope was taken."""
    return jnp.sum(x**2) / 2


def penalty(judge, params, real, fake, weights, key):
    """The penalty of one pair, through the discriminator's loss."""
    loss = adversarial.discriminator_loss(
        constant, judge, adversarial.objective("wasserstein"), LATENT, weights
    )
    return loss(params, {"image": real, "generator": fake}, key)[1]["penalty"]


# --- games ----------------------------------------------------------------------------------

GRID = np.linspace(-6, 6, 25)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Of each paper's formula, in probabilities D = sigmoid(logit) where the paper has them.
DISCRIMINATOR = {
    "minimax": lambda r, f: -np.log(sigmoid(r)) - np.log(1 - sigmoid(f)),
    "non_saturating": lambda r, f: -np.log(sigmoid(r)) - np.log(1 - sigmoid(f)),
    "least_squares": lambda r, f: ((r - 1) ** 2 + f**2) / 2,
    "wasserstein": lambda r, f: f - r,
    "hinge": lambda r, f: np.maximum(0, 1 - r) + np.maximum(0, 1 + f),
}
GENERATOR = {
    "minimax": lambda f: np.log(1 - sigmoid(f)),
    "non_saturating": lambda f: -np.log(sigmoid(f)),
    "least_squares": lambda f: (f - 1) ** 2 / 2,
    "wasserstein": lambda f: -f,
    "hinge": lambda f: -f,
}


@pytest.mark.parametrize("name", adversarial.OBJECTIVES)
def test_games_equal_the_formulas_of_their_papers(name):
    game = adversarial.objective(name)
    real, fake = np.meshgrid(GRID, GRID)
    got = game.discriminator(jnp.float32(real), jnp.float32(fake))
    np.testing.assert_allclose(got, DISCRIMINATOR[name](real, fake), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        game.generator(jnp.float32(GRID)), GENERATOR[name](GRID), rtol=1e-4, atol=1e-5
    )


def test_the_relativistic_game_is_that_of_the_difference_of_the_logits():
    """-log of the probability that the real image is the more real one, and of the opposite."""
    game = adversarial.objective("relativistic")
    real, fake = np.meshgrid(GRID, GRID)
    np.testing.assert_allclose(
        game.discriminator(jnp.float32(real), jnp.float32(fake)), -np.log(sigmoid(real - fake)),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(
        game.relative(jnp.float32(real), jnp.float32(fake)), -np.log(sigmoid(fake - real)),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(game.generator(GRID), game.relative(jnp.zeros(25), GRID), rtol=1e-6)


def test_a_relativistic_game_does_not_see_a_constant_added_to_all_logits():
    shifted = lambda params, x, label: judge(params["net"], x, label) + params["shift"]  # noqa: E731
    losses_of = (
        adversarial.discriminator_loss(
            generate, shifted, adversarial.objective("relativistic"), LATENT
        ),
        adversarial.generator_loss(
            generate, shifted, adversarial.objective("relativistic"), LATENT
        ),
    )
    values = []
    for shift in (0.0, 3.0):
        d_params = {"net": jax.tree.map(jnp.float32, judge_params()), "shift": jnp.float32(shift)}
        g_params = jax.tree.map(jnp.float32, generator_params())
        image = jnp.float32(real_image())
        d = losses_of[0](d_params, {"image": image, "generator": g_params}, jax.random.key(0))
        g = losses_of[1](g_params, {"image": image, "discriminator": d_params}, jax.random.key(0))
        values.append([float(d[0]), float(g[0])])
    np.testing.assert_allclose(*values, rtol=1e-5)


def classify(params, x):
    return jnp.tanh(params["w"] @ x.ravel())


def test_an_auxiliary_classifier_adds_the_nats_of_the_label_to_both_losses():
    game, label = adversarial.objective("hinge"), 2
    params, g_params = judge_params(), generator_params()
    real = {"image": real_image(), "generator": g_params, "label": label}
    fake = {"discriminator": params, "label": label}
    nats = lambda x: -scipy.special.log_softmax(np.tanh(params["w"] @ np.ravel(x)))[label]  # noqa: E731

    def value(make, params, example, **options):
        loss = make(generate, judge, game, LATENT, **options)
        return float(loss(params, example, jax.random.key(0))[0])

    shown = []
    spy = lambda params, x: (shown.append(np.asarray(x)), classify(params, x))[1]  # noqa: E731
    d = adversarial.discriminator_loss
    gain = value(d, params, real, classify=spy) - value(d, params, real)
    assert gain == pytest.approx(sum(map(nats, shown)), rel=1e-4)  # Odena et al. 2017, eq. 3
    np.testing.assert_allclose(shown[0], real_image(), rtol=1e-5)
    g = adversarial.generator_loss
    gain = value(g, g_params, fake, classify=spy) - value(g, g_params, fake)
    assert gain == pytest.approx(nats(shown[2]), rel=1e-4)
    with pytest.raises(ValueError, match="an auxiliary classifier needs labels"):
        value(g, g_params, {"discriminator": params}, classify=classify)


@pytest.mark.parametrize("name", ["minimax", "non_saturating"])
def test_undecided_discriminator_costs_log_4(name):
    """At D = 1/2 everywhere, the equilibrium of Goodfellow 2014, theorem 1."""
    game = adversarial.objective(name)
    np.testing.assert_allclose(
        game.discriminator(jnp.zeros(()), jnp.zeros(())), np.log(4), rtol=1e-6
    )


def test_minimax_generator_loss_is_the_negative_fake_term_of_the_discriminator():
    """A zero-sum game: what one pays the other wins, up to the real term that G cannot touch."""
    game = adversarial.objective("minimax")
    fake = jnp.float32(GRID)
    certain = game.discriminator(jnp.full_like(fake, 200.0), fake)  # its real term is 0
    np.testing.assert_array_equal(game.generator(fake), -certain)


def test_minimax_saturates_and_its_successor_does_not():
    """Slopes at a fake that is found out, logit -10: -D(f) against -(1 - D(f))."""
    slope = lambda name: jax.grad(adversarial.objective(name).generator)(-10.0)  # noqa: E731
    np.testing.assert_allclose(slope("minimax"), -sigmoid(-10.0), rtol=1e-5)
    np.testing.assert_allclose(slope("non_saturating"), -(1 - sigmoid(-10.0)), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "optimum"),
    [
        ("minimax", lambda p, q: np.log(p / q)),  # D* = p / (p + q), Goodfellow 2014, prop. 1
        ("least_squares", lambda p, q: p / (p + q)),  # Mao 2017, eq. 5 with b = 1, a = 0
        ("hinge", lambda p, q: np.sign(p - q)),  # Lim & Ye 2017, lemma 1
    ],
)
@pytest.mark.parametrize(("p", "q"), [(0.7, 0.3), (0.2, 0.9)])
def test_optimal_discriminator_is_the_one_of_the_theory(name, optimum, p, q):
    game = adversarial.objective(name)
    logits = jnp.linspace(-3, 3, 6001)
    zero = jnp.zeros(())  # the logit of the other image, whose term is then a constant
    cost = p * game.discriminator(logits, zero) + q * game.discriminator(zero, logits)
    best = logits[jnp.argmin(cost)]
    np.testing.assert_allclose(best, optimum(p, q), atol=0.01)


@pytest.mark.parametrize("name", ["minimax", "non_saturating", "hinge"])
def test_games_have_finite_slopes_at_extreme_logits(name):
    game = adversarial.objective(name)
    for logit in (-1e4, 1e4):
        slopes = jax.grad(game.discriminator, argnums=(0, 1))(logit, -logit)
        assert np.isfinite([*slopes, jax.grad(game.generator)(logit)]).all()


def test_unknown_game_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown GAN objective 'softmax'; use one of minimax, n"):
        adversarial.objective("softmax")


# --- gradient penalties ---------------------------------------------------------------------


def test_penalties_of_a_linear_critic_are_functions_of_its_norm():
    rng = np.random.default_rng(3)
    params = {"w": jnp.float32(rng.standard_normal(SHAPE)), "b": jnp.float32(0.7)}
    real, fake = jnp.float32(rng.standard_normal((2, *SHAPE)))
    norm = np.linalg.norm(params["w"])
    for weights, expected in [
        (adversarial.Penalties(), 0.0),
        (adversarial.Penalties(gradient=10.0), 10 * (norm - 1) ** 2),
        (adversarial.Penalties(r1=3.0), 3 * norm**2 / 2),
        (adversarial.Penalties(r2=5.0), 5 * norm**2 / 2),
        (adversarial.Penalties(1.0, 2.0, 4.0), (norm - 1) ** 2 + 3 * norm**2),
    ]:
        got = penalty(linear_judge, params, real, fake, weights, jax.random.key(0))
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_r1_looks_at_the_real_image_and_r2_at_the_generated_one():
    real, fake = jnp.full(SHAPE, 0.5), jnp.full(SHAPE, 2.0)
    at = lambda weights: penalty(half_square, (), real, fake, weights, jax.random.key(0))  # noqa: E731
    np.testing.assert_allclose(at(adversarial.Penalties(r1=1.0)), 6 * 0.25 / 2, rtol=1e-6)
    np.testing.assert_allclose(at(adversarial.Penalties(r2=1.0)), 6 * 4.0 / 2, rtol=1e-6)


def alphas(real, fake, start, span, keys):
    """Alpha of eq. 3 for each key, where the slope's norm is start + span * alpha > 1."""
    one = lambda key: penalty(half_square, (), real, fake, adversarial.Penalties(1.0), key)  # noqa: E731
    norm = 1 + jnp.sqrt(jax.jit(jax.vmap(one))(keys))
    return np.asarray((norm - start) / span)


def test_interpolation_weight_is_uniform_on_the_unit_interval():
    """Not normal. With |real| = 3 and |fake| = 1 the norm of the slope is 1 + 2 alpha."""
    direction = jnp.full(SHAPE, 6**-0.5)  # norm 1
    keys = jax.random.split(jax.random.key(0), 2000)
    alpha = alphas(3 * direction, direction, 1.0, 2.0, keys)
    assert alpha.min() > -1e-3
    assert alpha.max() < 1 + 1e-3
    assert scipy.stats.kstest(alpha, "uniform").pvalue > 1e-3


def test_interpolation_weight_is_one_number_for_all_pixels_of_a_pair():
    """Images that live on one pixel each give, for the same keys, the same weight at any pixel."""
    first, last = jnp.zeros(SHAPE).at[0, 0, 0].set(1.0), jnp.zeros(SHAPE).at[1, 2, 0].set(1.0)
    keys = lambda: jax.random.split(jax.random.key(0), 20)  # noqa: E731
    at_first = alphas(3 * first, first, 1.0, 2.0, keys())
    at_last = alphas(3 * last, last, 1.0, 2.0, keys())
    np.testing.assert_array_equal(at_first, at_last)
    assert len(np.unique(at_first)) == 20  # and one for each pair


def test_gradient_penalty_has_a_finite_slope_where_the_critic_is_flat():
    weights = adversarial.Penalties(gradient=10.0)
    zeros = {"w": jnp.zeros(SHAPE), "b": jnp.float32(0)}
    real, fake = jnp.ones(SHAPE), -jnp.ones(SHAPE)
    grads = jax.grad(
        lambda p: penalty(linear_judge, p, real, fake, weights, jax.random.key(0))
    )(zeros)  # fmt: skip
    assert np.isfinite(grads["w"]).all()


# --- losses of the two players --------------------------------------------------------------


def scaled(key, x):
    """An augmentation that draws, so that a key used twice is seen."""
    return x * jax.random.uniform(key, minval=0.5)


@pytest.mark.parametrize("name", adversarial.OBJECTIVES | adversarial.RELATIVISTIC)
def test_discriminator_gradient_equals_finite_differences(name):
    weights = adversarial.Penalties(gradient=10.0, r1=1.0, r2=1.0)
    loss = adversarial.discriminator_loss(
        generate, judge, adversarial.objective(name), LATENT, weights, scaled, classify
    )
    example = {"image": real_image(), "generator": generator_params(), "label": 1}
    assert gradient_error(loss, judge_params(), example) < 1e-6


@pytest.mark.parametrize("name", adversarial.OBJECTIVES | adversarial.RELATIVISTIC)
def test_generator_gradient_equals_finite_differences(name):
    loss = adversarial.generator_loss(
        generate, judge, adversarial.objective(name), LATENT, scaled, classify
    )
    example = {"discriminator": judge_params(), "image": real_image(), "label": 1}
    assert gradient_error(loss, generator_params(), example) < 1e-7


def test_generator_climbs_the_critic_and_the_critic_parts_the_images():
    """A painter and a linear critic: both gradients are known, d_w = fake - real and g = -w."""
    game = adversarial.objective("wasserstein")
    rng = np.random.default_rng(0)
    real, fake, w = jnp.float32(rng.standard_normal((3, *SHAPE)))
    critic = {"w": w, "b": jnp.float32(0)}
    d_loss = adversarial.discriminator_loss(constant, linear_judge, game, LATENT)
    g_loss = adversarial.generator_loss(constant, linear_judge, game, LATENT)

    d_example, g_example = {"image": real, "generator": fake}, {"discriminator": critic}
    d_grads = jax.jit(jax.grad(lambda p, k: d_loss(p, d_example, k)[0]))(critic, jax.random.key(0))
    g_grads = jax.jit(jax.grad(lambda p, k: g_loss(p, g_example, k)[0]))(fake, jax.random.key(1))
    np.testing.assert_allclose(d_grads["w"], fake - real, rtol=1e-6)
    assert float(d_grads["b"]) == 0.0
    np.testing.assert_allclose(g_grads, -w, rtol=1e-6)


def test_latent_is_a_fresh_standard_normal_vector():
    """The judge reports the sum of a generator that shows its z: variance LATENT, mean 0."""
    show = lambda params, z, label: z  # noqa: E731
    total = lambda params, x, label: jnp.sum(x)  # noqa: E731
    loss = adversarial.generator_loss(show, total, adversarial.objective("wasserstein"), LATENT)
    keys = jax.random.split(jax.random.key(0), 2000)
    sums = jax.jit(jax.vmap(lambda k: loss((), {"discriminator": ()}, k)[0]))(keys)
    assert scipy.stats.kstest(np.asarray(sums) / LATENT**0.5, "norm").pvalue > 1e-3


def test_real_and_generated_images_are_augmented_by_draws_of_their_own():
    add = lambda key, x: x + jax.random.normal(key, ())  # noqa: E731
    first = lambda params, x, label: x[0, 0, 0]  # noqa: E731
    loss = adversarial.discriminator_loss(
        constant, first, adversarial.objective("wasserstein"), LATENT, augment=add
    )
    images = {"image": jnp.zeros(SHAPE), "generator": jnp.zeros(SHAPE)}
    keys = jax.random.split(jax.random.key(0), 500)
    values = jax.jit(jax.vmap(lambda k: loss(None, images, k)[0]))(keys)  # fake - real: N(0, 2)
    assert np.var(values) == pytest.approx(2.0, rel=4 * (2 / 500) ** 0.5)


def test_metrics_give_both_probabilities_and_the_penalty():
    loss = adversarial.discriminator_loss(
        constant,
        linear_judge,
        adversarial.objective("hinge"),
        LATENT,
        adversarial.Penalties(r1=2.0),
    )
    critic = {"w": jnp.ones(SHAPE), "b": jnp.float32(0)}
    example = {"image": jnp.full(SHAPE, 1 / 6), "generator": jnp.full(SHAPE, -1 / 3)}
    value, metrics = jax.jit(loss)(critic, example, jax.random.key(0))
    np.testing.assert_allclose(metrics["d_real"], sigmoid(1.0), rtol=1e-6)
    np.testing.assert_allclose(metrics["d_fake"], sigmoid(-2.0), rtol=1e-6)
    np.testing.assert_allclose(metrics["penalty"], 6.0, rtol=1e-6)
    np.testing.assert_allclose(value, 6.0, atol=1e-6)  # both hinges are satisfied
    np.testing.assert_allclose(metrics["loss"], value)
