# SPDX-License-Identifier: MIT
"""Where latents are drawn from: the prior, or a distribution fitted to the codes of images.

A figure of an autoencoder's or VAE's samples says which: Ghosh et al. 2020 (arXiv:1903.12436),
table 1, found the same decoder far better with a mixture fitted to its codes than with N(0, I).
"""

import warnings
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxgen import fields
from jaxgen.evaluate import quality
from jaxgen.evaluate.features import RANDOM, Features
from jaxgen.pictures import images
from jaxgen.train import augment
from jaxgen.types import Array

Encode = Callable[[np.ndarray], np.ndarray]  # uint8 images [N, H, W, C] -> codes [N, D]
Decode = Callable[[np.ndarray], np.ndarray]  # codes -> uint8 images
SOURCES = {
    "normal": "N(0, I)",
    "gaussian": "a Gaussian over the codes",
    "mixture": "a mixture of Gaussians over the codes",
}
NUM_COMPONENTS = 10  # as in Ghosh et al.


def on_host(
    encode: Callable[[Array, int], Array],
    decode: Callable[[Array, int], Array],
    at_once: int = 1000,
) -> tuple[Encode, Decode]:
    """Turns networks into functions of NumPy arrays, which go through them `at_once` at a time.

    encode: (images in [-1, 1], number of the first) -> codes; decode: (codes, number of the first)
    -> images in [-1, 1].
    """

    def starts(x: np.ndarray) -> range:
        return range(0, len(x), at_once)

    def codes(pixels: np.ndarray) -> np.ndarray:
        x = (
            (i, augment.to_unit_range(jnp.asarray(pixels[i : i + at_once]))) for i in starts(pixels)
        )
        return np.concatenate([np.asarray(encode(part, i)) for i, part in x])

    def pictures(z: np.ndarray) -> np.ndarray:
        parts = ((i, jnp.asarray(z[i : i + at_once], jnp.float32)) for i in starts(z))
        return np.concatenate([images.measurable(decode(part, i)) for i, part in parts])

    return codes, pictures


def draw(source: str, codes: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Draws latents [count, D] from one of `SOURCES`, fitted to codes [N, D] of training images.

    "normal" is N(0, I), whatever the codes; "gaussian" has their mean and covariance; "mixture" is
    of ten Gaussians with full covariances, by expectation maximization. Raises ValueError for
    another source, for codes that are not finite and for too few of them.
    """
    codes = np.asarray(codes, np.float64)
    rng = np.random.default_rng(seed)
    if source == "normal":
        return rng.standard_normal((count, codes.shape[1]))
    if source not in SOURCES:
        raise ValueError(
            f"unknown source of latents {fields.shown(source)}; use one of {', '.join(SOURCES)}"
        )
    components = 1 if source == "gaussian" else NUM_COMPONENTS
    least = components * (codes.shape[1] + 1)
    if not np.isfinite(codes).all():
        raise ValueError("codes that are not finite; look at the images or the encoder")
    if len(codes) < least:
        raise ValueError(
            f"{components} Gaussians of {codes.shape[1]} entries need {least} codes or more, not "
            f"{len(codes)}; use more images, a smaller --latent-dim or other --codes"
        )
    from sklearn.exceptions import ConvergenceWarning  # half a second
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(components, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 rounds are enough to draw from
        mixture.fit(codes)
    return rng.permutation(mixture.sample(count)[0])


def compare(
    encode: Encode,
    decode: Decode,
    train: np.ndarray,
    test: np.ndarray,
    features: Features = RANDOM,
) -> tuple[dict[str, quality.Comparison], dict[str, str]]:
    """Computes the figures of samples from each of `SOURCES`, as many as there are test images.

    Returns them, and the reasons why other sources cannot be fitted to the codes.
    """
    codes = encode(train)
    count = min(len(train), len(test), quality.MOST_IMAGES)
    z, reasons = {}, {}
    for source in SOURCES:
        try:
            z[source] = draw(source, codes, count)
        except ValueError as error:
            reasons[source] = str(error)
    samples = {source: decode(draws) for source, draws in z.items()}
    return quality.compare_each(samples, train, test, features), reasons


def lines(comparisons: dict[str, quality.Comparison], reasons: dict[str, str]) -> list[str]:
    """Writes the Frechet and kernel distances of each source and of real images, as lines.

    reasons: of the sources that have no distances.
    """
    first = next(iter(comparisons.values()))
    rows = {source: comparison.generated for source, comparison in comparisons.items()}
    rows["real"] = first.floor
    head = (
        f"  samples against {first.num_images} test images: {first.features.frechet}, kernel "
        f"(by {first.features.name})"
    )
    return [
        head,
        *(
            f"  {name:16s} {quality.spread(x.frechet)}   {quality.spread(x.kernel, 5)}"
            for name, x in rows.items()
        ),
        *(f"  {source:16s} {reason}" for source, reason in reasons.items()),
    ]


def report(
    encode: Encode,
    decode: Decode,
    train: np.ndarray,
    test: np.ndarray,
    features: Features = RANDOM,
) -> list[str]:
    """Writes the lines of `compare`, or the one that says how many images it needs."""
    if min(len(train), len(test)) < features.least_images:
        return [f"  distances        need {features.least_images} images or more of each kind"]
    return lines(*compare(encode, decode, train, test, features))
