# SPDX-License-Identifier: MIT
"""A classifier that judges samples, trained on the real images from a fixed seed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.data.source import Dataset
from jaxgen.evaluate import classes
from jaxgen.nn import classifier, functional
from jaxgen.train import augment, losses, order, parallel, step

Classify = Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, C] -> probabilities [N, classes]
NUM_STEPS = 2000
BATCH_SIZE = 128
SEED = 20140610  # any number would do: 10 June 2014, when the first GAN paper came out


class Judge(NamedTuple):
    """A trained classifier."""

    classify: Classify
    accuracy: float  # on the test set
    features: Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, C] -> [N, NUM_FEATURES]


def train(train_set: Dataset, test_set: Dataset) -> Judge:
    """Trains a classifier on the training set.

    It never sees a generated image, and is the same for every run on the same data. Raises
    ValueError when the data has no labels.
    """
    num_classes = len(train_set.class_names)
    if num_classes < 2:
        raise ValueError("judging samples by class needs labelled data with two classes or more")
    params = _fit(train_set)
    logits = jax.jit(functional.apply(classifier.Classifier(num_classes)))
    classify = _in_parts(lambda images: jax.nn.softmax(logits(params, images)))
    features = jax.jit(functional.apply(classifier.Classifier(0)))
    accuracy = classes.agreement(classify(test_set.images), test_set.labels)
    return Judge(classify, accuracy, _in_parts(lambda images: features(params, images)))


def _in_parts(function: Callable[[Any], Any], size: int = 500) -> Callable[..., np.ndarray]:
    """Turns a function of images in [-1, 1] into one of uint8 images, `size` at a time."""

    def whole(images: np.ndarray) -> np.ndarray:
        parts = [jnp.asarray(images[i : i + size]) for i in range(0, len(images), size)]
        return np.concatenate([function(augment.to_unit_range(part)) for part in parts])

    return whole


def _fit(train_set: Dataset) -> dict:
    """Trains parameters by NUM_STEPS of Adam, with a cosine schedule and small shifts."""
    network = classifier.Classifier(len(train_set.class_names))
    init_key, train_key, data_key = jax.random.split(jax.random.key(SEED), 3)
    params = functional.init(network, init_key, jnp.zeros(train_set.images.shape[1:]))
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, NUM_STEPS))
    loss = augment.on_uint8(losses.classifier_loss(functional.apply(network)), augment.shift)

    mesh = parallel.data_mesh(1)
    one = step.scan_steps(step.gradient_step(loss, tx))
    fit = parallel.parallelize(one, mesh, "jit", parallel.SCANNED)
    dataset = parallel.put({"image": train_set.images, "label": train_set.labels}, mesh)
    size = min(BATCH_SIZE, len(train_set.images))
    batches = order.resident_batches(dataset, size, data_key, mesh)
    state = parallel.put(step.init_state(params, tx), mesh)
    for i in range(NUM_STEPS):
        state, metrics = fit(state, batches(i, 1), train_key)
        if i % 8 == 0:  # or the host would run far ahead of the device
            jax.block_until_ready(metrics)
    return state.params
