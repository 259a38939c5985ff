# SPDX-License-Identifier: MIT
"""Objectives of the GAN's two players, each for ONE example and ONE key.

The generator maximises what the discriminator minimises, or plays a later variant of that game.
Each player's example holds the other's parameters: the discriminator's has "generator", the
generator's has "discriminator", and "label" int32 [] where the networks have classes. D(x) below is
a logit; losses are float32 [].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen import fields
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params

Generate = Callable[..., Array]  # (params, z, label) -> image in [-1, 1]
Discriminate = Callable[..., Array]  # (params, image, label) -> logit []
Augment = Callable[[Key, Array], Array]  # differentiable, one image
Classify = Callable[[Params, Array], Array]  # (the discriminator's params, image) -> logits [K]


class Objective(NamedTuple):
    """A game: the discriminator's loss of the (real, fake) logits, the generator's of the fake.

    A relativistic game also has `relative`, the generator's loss of both logits, which is used in
    place of `generator`, its value for a real logit of 0.
    """

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array], Array]
    relative: Callable[[Array, Array], Array] | None = None


class Penalties(NamedTuple):
    """Weights of the discriminator's gradient penalties; the number 0 leaves a term out.

    A weight may be an array [], as of many runs side by side; its term is always computed.
    """

    gradient: float | Array = 0.0  # (|grad D(x_between)| - 1)^2, Gulrajani et al. 2017, usually 10
    r1: float | Array = 0.0  # |grad D(x_real)|^2 / 2, Mescheder et al. 2018
    r2: float | Array = 0.0  # |grad D(x_fake)|^2 / 2, Mescheder et al. 2018


NO_PENALTIES = Penalties()

# log(1 - sigmoid(f)) = -softplus(f) and log sigmoid(r) = -softplus(-r): exact and never -inf
OBJECTIVES = {
    # Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1: min_G max_D E log D(x) + E log(1 - D(G(z)))
    "minimax": Objective(
        lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
        lambda fake: -jax.nn.softplus(fake),
    ),
    # Goodfellow et al. 2014, section 3: the generator maximises log D(G(z)) instead
    "non_saturating": Objective(
        lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
        lambda fake: jax.nn.softplus(-fake),
    ),
    # Mao et al. 2017 (arXiv:1611.04076), eq. 9: targets 1 for real, 0 for fake, 1 for G
    "least_squares": Objective(
        lambda real, fake: 0.5 * ((real - 1) ** 2 + fake**2),
        lambda fake: 0.5 * (fake - 1) ** 2,
    ),
    # Arjovsky et al. 2017 (arXiv:1701.07875), eq. 2; the critic needs a penalty or spectral norm
    "wasserstein": Objective(lambda real, fake: fake - real, lambda fake: -fake),
    # Lim & Ye 2017 (arXiv:1705.02894), Miyato et al. 2018 (arXiv:1802.05957), eq. 16 and 17
    "hinge": Objective(
        lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake),
        lambda fake: -fake,
    ),
}

RELATIVISTIC = {
    # Jolicoeur-Martineau 2019 (arXiv:1807.00734), eq. 3: each real image is paired with a generated
    # one. With R1 and R2 it is the loss of R3GAN, Huang et al. 2024 (arXiv:2501.05441), eq. 3
    "relativistic": Objective(
        lambda real, fake: jax.nn.softplus(fake - real),
        lambda fake: jax.nn.softplus(-fake),
        lambda real, fake: jax.nn.softplus(real - fake),
    ),
}


def objective(name: str) -> Objective:
    """Looks up the game with this name in the two tables. Raises ValueError for another name."""
    games = OBJECTIVES | RELATIVISTIC
    if name not in games:
        raise ValueError(
            f"unknown GAN objective {fields.shown(name)}; use one of {', '.join(games)}"
        )
    return games[name]


def identity(key: Key, x: Array) -> Array:
    """Returns the image as it is: no augmentation."""
    return x


def discriminator_loss(
    generate: Generate,
    discriminate: Discriminate,
    game: Objective,
    latent_dim: int,
    penalties: Penalties = NO_PENALTIES,
    augment: Augment = identity,
    classify: Classify | None = None,
) -> LossFn:
    """Builds the discriminator's loss for one real image and one generated from a new z ~ N(0, I).

    `augment` changes both images, each with its own draw, before the discriminator sees them (Zhao
    et al. 2020, arXiv:2006.10738, section 3.2). Metrics: loss, penalty, and the probabilities
    d_real and d_fake that the discriminator gives to "real". With `classify` it also learns the
    label of both images (`_label_nats`), and their mean `class_nats` is a metric.
    """

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        z_key, real_key, fake_key, between_key = jax.random.split(key, 4)
        label = example.get("label")
        z = jax.random.normal(z_key, (latent_dim,))
        real = augment(real_key, example["image"])
        fake = augment(fake_key, generate(example["generator"], z, label))

        real_logit = discriminate(params, real, label)
        fake_logit = discriminate(params, fake, label)
        value = game.discriminator(real_logit, fake_logit)
        penalty = _penalty(discriminate, params, real, fake, label, between_key, penalties)
        terms = {"d_real": jax.nn.sigmoid(real_logit), "d_fake": jax.nn.sigmoid(fake_logit)}
        total = value + penalty
        if classify is not None:
            both = [_label_nats(classify, params, x, label) for x in (real, fake)]
            terms["class_nats"] = (both[0] + both[1]) / 2
            total += both[0] + both[1]
        return total, {"loss": total, "penalty": penalty, **terms}

    return loss


def generator_loss(
    generate: Generate,
    discriminate: Discriminate,
    game: Objective,
    latent_dim: int,
    augment: Augment = identity,
    classify: Classify | None = None,
) -> LossFn:
    """Builds the generator's loss for one image from a new z ~ N(0, I), augmented as above.

    A relativistic game compares it with the example's real image; with `classify` the generator is
    also rewarded for an image that shows its label.
    """

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        z_key, augment_key, real_key = jax.random.split(key, 3)
        label, judge = example.get("label"), example["discriminator"]
        fake = generate(params, jax.random.normal(z_key, (latent_dim,)), label)
        fake = augment(augment_key, fake)
        fake_logit = discriminate(judge, fake, label)
        if game.relative is None:
            value = game.generator(fake_logit)
        else:
            real = augment(real_key, example["image"])
            value = game.relative(discriminate(judge, real, label), fake_logit)
        if classify is not None:
            value += _label_nats(classify, judge, fake, label)
        return value, {"loss": value}

    return loss


def _label_nats(classify: Classify, params: Params, x: Array, label: Array | None) -> Array:
    """-log p(label | x), the auxiliary classifier's loss: Odena et al. 2017 (arXiv:1610.09585),
    eq. 3. Raises ValueError where there is no label.
    """
    if label is None:
        raise ValueError("an auxiliary classifier needs labels, and the examples have none")
    return -jax.nn.log_softmax(classify(params, x))[label]


def _penalty(
    discriminate: Discriminate,
    params: Params,
    real: Array,
    fake: Array,
    label: Array | None,
    key: Key,
    weights: Penalties,
) -> Array:
    """Sums the weighted gradient penalties at one pair of images."""

    def slope(x: Array) -> Array:  # grad of the logit with respect to the image
        return jax.grad(lambda image: discriminate(params, image, label))(x)

    total = jnp.float32(0)
    if _is_there(weights.gradient):
        # Gulrajani et al. 2017 (arXiv:1704.00028), eq. 3: ONE alpha per pair, uniform in [0, 1]
        alpha = jax.random.uniform(key)
        norm = jnp.sqrt(jnp.sum(slope(alpha * real + (1 - alpha) * fake) ** 2) + 1e-12)
        total += weights.gradient * (norm - 1) ** 2
    if _is_there(weights.r1):  # Mescheder et al. 2018 (arXiv:1801.04406), eq. 9
        total += weights.r1 / 2 * jnp.sum(slope(real) ** 2)
    if _is_there(weights.r2):  # eq. 10
        total += weights.r2 / 2 * jnp.sum(slope(fake) ** 2)
    return total


def _is_there(weight: float | Array) -> bool:
    """Says whether a penalty is computed: not for the number 0."""
    return isinstance(weight, jax.Array) or weight != 0
