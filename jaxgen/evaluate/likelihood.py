# SPDX-License-Identifier: MIT
"""Likelihood bounds over a whole test set: means with standard errors, in nats per image.

Everything is compiled once, for batches of one size (the last is filled up and cut), and goes
through the test set batch by batch; with a mesh, a batch lies on its devices. Test images are numpy
dicts {"images": [N, ...], "labels": [N]}; example i gets the key fold_in(key, i), so a figure does
not depend on how the set is cut into batches.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgen.train import parallel
from jaxgen.types import Array, Key, LossFn, Params

MeanAndError = tuple[float, float]
# (params, example, key, weight_key) -> log w []; `key` is the same for all samples of an image
LogWeight = Callable[[Params, dict, Key, Key], Array]
CHUNK = 50  # importance samples at once
# nats of a gap; beyond it the terms left out of the first order are no longer small, and so few
# weights show less than their variance
FIRST_ORDER = 0.1


class Estimate(NamedTuple):
    """A bound on -log p(x) from k samples an image, in nats per image, and its errors.

    One weight for an image says nothing of the last two, which are nan then.
    """

    nats: float  # mean over the images; on average too high, by less for larger k
    error: float  # standard error of the mean over images, as of another draw of the test set
    noise: float  # standard error of the mean for these images, of another draw of the samples
    gap: float  # its mean height above -log p(x), to first order: var(w) / (2 k mean(w)^2)

    def line(self, num_samples: int) -> str:
        """Writes the bound of so many samples, with its errors over images and samples."""
        if math.isnan(self.gap):
            errors = "one sample does not say how much it adds"
        elif self.gap < FIRST_ORDER:
            errors = f"its samples make +- {self.noise:.3f}, and about {self.gap:.3f} too much"
        else:
            errors = f"too few: they make +- {self.noise:.3f} and {self.gap:.3f} too much, or more"
        figure = f"{self.nats:9.3f} +- {self.error:.3f}"
        return f"  nll_nats         {figure}  (k = {num_samples}; {errors})"


def mean_terms(
    loss_fn: LossFn,
    params: Params,
    test: dict[str, Any],
    key: Key,
    batch_size: int = 500,
    mesh: Mesh | None = None,
) -> dict[str, MeanAndError]:
    """Averages every metric of a per-example loss over the test set; adds its standard error.

    Compiled once for each function `loss_fn`: make that once for all models.
    """
    params = params if mesh is None else parallel.put(params, mesh)
    parts = [
        {name: np.asarray(x)[:size] for name, x in _terms(loss_fn, params, key, *batch).items()}
        for size, *batch in _batches(test, batch_size, mesh)
    ]
    return {
        name: _mean_and_error(np.concatenate([part[name] for part in parts])) for name in parts[0]
    }


def importance_nll(
    log_weight: LogWeight,
    params: Params,
    test: dict[str, Any],
    key: Key,
    num_samples: int,
    batch_size: int = 50,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
) -> MeanAndError:
    """Estimates -log p(x) by importance sampling, and its standard error over images.

        log p(x) ~ log 1/k sum_k w_k,   w = p(x, z) / q(z | x),   z ~ q(z | x)

    Burda et al. 2016 (arXiv:1509.00519), eq. 8: a lower bound on log p(x) that tightens with k.
    Networks run on `chunk` samples at a time. Compiled once for each function `log_weight`.
    """
    ks = [num_samples]
    estimates = importance_estimates(
        log_weight, params, test, key, ks, batch_size=batch_size, chunk=chunk, mesh=mesh
    )
    return estimates[num_samples].nats, estimates[num_samples].error


def importance_estimates(
    log_weight: LogWeight,
    params: Params,
    test: dict[str, Any],
    key: Key,
    ks: Sequence[int],
    batch_size: int = 50,
    chunk: int = CHUNK,
    mesh: Mesh | None = None,
) -> dict[int, Estimate]:
    """Computes the bounds of several numbers of samples from one set of max(ks) weights per image.

    The estimate for k averages over all max(ks) / k groups of k weights. `importance_nll` says
    what a weight is. Raises ValueError where a k does not divide the largest one, or where the
    largest is not a multiple of `chunk`.
    """
    most = max(ks)
    chunk = min(chunk, most)
    if most % chunk:
        raise ValueError(f"{most} samples are not a multiple of {chunk}; use one")
    for k in ks:
        if k < 1 or most % k:
            raise ValueError(f"{k} samples do not divide {most}; use a divisor, 1 or more")

    bounds = _bounds(log_weight, params, test, key, ks, batch_size, chunk, mesh)
    return {k: _estimate(bound) for k, bound in bounds.items()}


def check_nll_samples(num_samples: int) -> None:
    """Raises ValueError for an --nll-samples that `importance_estimates` would refuse."""
    if num_samples > CHUNK and num_samples % CHUNK:
        raise ValueError(f"--nll-samples is {num_samples}; above {CHUNK} use a multiple of it")


def redraw_noise(
    log_weight: LogWeight,
    params: Params,
    test: dict[str, Any],
    key: Key,
    num_samples: int = CHUNK,
    batch_size: int = 50,
    mesh: Mesh | None = None,
) -> float:
    """Estimates how far the mean moves if the test images' pixels are drawn anew: a deviation.

    For a log weight that draws the pixels with its key, as 0 or 1. Each image is drawn twice; half
    the squared difference of its two bounds is, on average, the variance of one. The draws of z
    are in it too: the fewer samples, the more. Raises ValueError for less than one sample.
    """
    if num_samples < 1:
        raise ValueError(f"a bound of {num_samples} samples; use 1 or more")
    first, second = (
        _bounds(log_weight, params, test, k, [num_samples], batch_size, num_samples, mesh)
        for k in jax.random.split(key)
    )
    difference = first[num_samples][0] - second[num_samples][0]
    return float(np.sqrt(np.mean(difference**2) / 2 / len(difference)))


def lines(terms: dict[str, MeanAndError], num_bytes: int = 0) -> list[str]:
    """Writes the terms of the bound as lines of text.

    terms: what `mean_terms` gives for a loss of a VAE. num_bytes: the bytes of an image, for bits
    per dimension; 0 where the likelihood is not one of bytes.
    """
    names = ("neg_elbo_nats", "recon_nats", "kl_nats")
    text = [f"  {name:16s} {terms[name][0]:9.3f} +- {terms[name][1]:.3f}" for name in names]
    if num_bytes:
        bits = terms["neg_elbo_nats"][0] / num_bytes / math.log(2)
        text.append(f"  bits per dim     {bits:9.4f}")
    return text


def check_binary(images: np.ndarray) -> None:
    """Raises ValueError for images that are not uint8, and for other values than 0 and 255.

    A Bernoulli likelihood gives such pixels a cross-entropy, which is the likelihood of nothing.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"{images.dtype} images; binary ones are uint8 here, of 0 and 255")
    grey = float(np.mean((images != 0) & (images != 255)))
    if grey:
        raise ValueError(
            f"a Bernoulli likelihood is of binary pixels, and {grey:.1%} of the pixels are neither "
            f"black nor white; train with --binarize, or with another --likelihood"
        )


def _bounds(
    log_weight: LogWeight,
    params: Params,
    test: dict[str, Any],
    key: Key,
    ks: Sequence[int],
    batch_size: int,
    chunk: int,
    mesh: Mesh | None,
) -> dict[int, np.ndarray]:
    """Computes `_bound` of all images [3, N] for each k."""
    params = params if mesh is None else parallel.put(params, mesh)
    parts: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    for size, *batch in _batches(test, batch_size, mesh):
        log_w = _log_weights(log_weight, max(ks), chunk, params, key, *batch)
        for k in ks:
            parts[k].append(np.asarray(_bound(log_w, k))[:, :size])
    return {k: np.concatenate(parts[k], axis=1) for k in ks}


@partial(jax.jit, static_argnames="loss_fn")
def _terms(
    loss_fn: LossFn, params: Params, key: Key, start: Array, images: Array, labels: Array
) -> dict[str, Array]:
    """Computes the metrics of a batch whose first example is number `start` of the test set."""
    keys = _keys(key, start, len(images))
    examples = {"image": images, "label": labels}

    def one(example: dict, key: Key) -> dict[str, Array]:
        return loss_fn(params, example | {"step": jnp.int32(0)}, key)[1]

    return jax.vmap(one)(examples, keys)


@partial(jax.jit, static_argnames=("log_weight", "num_samples", "chunk"))
def _log_weights(
    log_weight: LogWeight,
    num_samples: int,
    chunk: int,
    params: Params,
    key: Key,
    start: Array,
    images: Array,
    labels: Array,
) -> Array:
    """Computes the log weights [B, num_samples / chunk, chunk] of a batch, as `_terms` takes it."""

    def one(params: Params, example: dict, key: Key) -> Array:
        example_key, samples_key = jax.random.split(key)

        def some(i: Array) -> Array:
            keys = jax.random.split(jax.random.fold_in(samples_key, i), chunk)
            same_key = jax.random.clone(example_key)  # all samples see one draw of the image
            return jax.vmap(lambda k: log_weight(params, example, same_key, k))(keys)

        return jax.lax.map(some, jnp.arange(num_samples // chunk))

    examples = {"image": images, "label": labels}
    return jax.vmap(one, (None, 0, 0))(params, examples, _keys(key, start, len(images)))


@partial(jax.jit, static_argnames="k")
def _bound(log_w: Array, k: int) -> Array:
    """Computes each image's bound, its variance and its gap: log weights [B, ...] -> [3, B]."""
    groups = log_w.reshape(len(log_w), -1, k)
    bounds = jnp.log(k) - jax.nn.logsumexp(groups, axis=-1)  # [B, groups]
    w = jnp.exp(log_w.reshape(len(log_w), -1) - jnp.max(log_w, axis=(1, 2), keepdims=True)[..., 0])
    spread = jnp.var(w, axis=-1, ddof=1) / jnp.mean(w, axis=-1) ** 2  # of one weight nan
    count = bounds.shape[-1]
    # from the spread of the groups where there are many, else from the spread of the weights
    variance = jnp.var(bounds, axis=-1) / (count - 1) if count > 9 else spread / (k * count)
    return jnp.stack([jnp.mean(bounds, axis=-1), variance, spread / (2 * k)])


def _keys(key: Key, start: Array, count: int) -> Key:
    """Makes the keys [count] of the examples from number `start` on."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(count))


def _batches(
    test: dict[str, Any], size: int, mesh: Mesh | None
) -> Iterator[tuple[int, int, Any, Any]]:
    """Yields of each batch its number of examples, the number of its first, images and labels.

    All batches are equally large: the last repeats its last example.
    """
    count = len(test["images"])
    if count == 0:
        raise ValueError("an average over no images; give a test set of 1 or more")
    size = min(size, count)
    if mesh is not None:
        size = -(-size // mesh.size) * mesh.size
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        batch = (test["images"][rows], test["labels"][rows])
        if mesh is not None:
            batch = parallel.put(batch, mesh, (parallel.EXAMPLES, parallel.EXAMPLES))
        yield min(size, count - start), start, *batch


def _estimate(parts: np.ndarray) -> Estimate:
    """Makes the estimate from each image's bound, variance and gap [3, N]."""
    values, variances, gaps = np.asarray(parts, np.float64)
    mean, error = _mean_and_error(values)
    noise = float(np.sqrt(np.sum(variances)) / len(values))
    return Estimate(mean, error, noise, float(np.mean(gaps)))


def _mean_and_error(values: np.ndarray) -> MeanAndError:
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values, dtype=np.float64)), float(error)
