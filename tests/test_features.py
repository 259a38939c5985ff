# SPDX-License-Identifier: MIT
"""What images are compared by; Inception itself is compared with PyTorch in tests/oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from support.scripts import call, refusal

from jaxgen.evaluate import distances, features, inception, judge, quality
from jaxgen.nn import classifier, functional
from jaxgen.weights import tensors


def no_judge():
    pytest.fail("these features need no judge")


def test_a_classifier_without_classes_gives_what_its_logits_are_made_of():
    whole, x = classifier.Classifier(3, width=4), jnp.ones((2, 8, 8, 1))
    params = jax.jit(lambda key: functional.init(whole, key, x))(jax.random.key(0))
    logits, inner = (
        jax.jit(functional.apply(module))(params, x)
        for module in (whole, classifier.Classifier(0, width=4))
    )
    assert inner.shape == (2, classifier.NUM_FEATURES)
    inner, head = np.asarray(inner), jax.device_get(params["Dense_1"])
    np.testing.assert_allclose(inner @ head["kernel"] + head["bias"], logits, atol=1e-5)


def test_features_of_the_judge_are_the_judges():
    trained = judge.Judge(len, 0.9, lambda images: images.reshape(len(images), -1))
    found = features.by_name("judge", lambda: trained)
    assert found.networks == (trained.features,)
    assert found.least_images == 2 * (classifier.NUM_FEATURES + 1)


def test_inception_has_the_parameters_of_the_published_network():
    """21,768,352 trainable ones without the classifier: kernels, and one shift a feature."""
    key, image = jax.random.key(0), jnp.zeros((1, 75, 75, 3))
    shapes = jax.eval_shape(lambda: functional.init(inception.NETWORK, key, image))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 21_768_352


def test_a_folded_norm_is_convolution_and_norm():
    rng = np.random.default_rng(0)
    weight, gamma, beta, mean = (
        rng.standard_normal(s, np.float32) for s in ((4, 3, 1, 1), 4, 4, 4)
    )
    variance, x = np.float32([0.1, 1, 2, 5]), rng.standard_normal((7, 3), np.float32)
    stored = {
        "a.conv.weight": weight, "a.bn.weight": gamma, "a.bn.bias": beta,
        "a.bn.running_mean": mean, "a.bn.running_var": variance,
        "a.bn.num_batches_tracked": np.int64(3), "fc.weight": weight,
    }  # fmt: skip
    folded = inception.folded({k: tensors.from_array(np.asarray(v)) for k, v in stored.items()})
    assert set(folded) == {"a.conv.weight", "a.conv.bias"}
    plain = x @ weight[:, :, 0, 0].T
    expected = gamma * (plain - mean) / np.sqrt(variance + 1e-3) + beta
    got = x @ folded["a.conv.weight"].read()[:, :, 0, 0].T + folded["a.conv.bias"].read()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_only_features_of_inception_make_an_fid():
    flat = lambda images: images.reshape(len(images), -1) / 255.0  # noqa: E731
    rng = np.random.default_rng(0)
    sets = [rng.integers(0, 256, (30, 2, 2, 1), dtype=np.uint8) for _ in range(3)]
    own = features.Features("pixels", 4, (flat,), "FID")
    text = "\n".join(quality.report(*sets, own))
    expected = distances.frechet(flat(sets[0]), flat(sets[2]))
    assert f"  FID               {expected:9.4f}   " in text
    assert "+-" not in text
    assert "frechet  " in "\n".join(quality.report(*sets, own._replace(frechet="frechet")))
    few = quality.report(*(images[:9] for images in sets), own)
    assert few == ["  distances        need 10 images or more of each kind"]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A file of weights that are not Inception's."""
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    safetensors.numpy.save_file({"fc.weight": np.zeros(3, np.float32)}, path)
    return path


def test_bad_features_are_refused_in_one_line(other, tmp_path):
    for text in ("dino", "random:3", "inception", "inception:"):
        with pytest.raises(ValueError, match=f"unknown features '{text}'; use random, judge, in"):
            features.by_name(text, no_judge)
    with pytest.raises(ValueError, match="missing.safetensors is missing"):
        features.by_name(f"inception:{tmp_path / 'missing.safetensors'}", no_judge)
    with pytest.raises(ValueError, match=f"other.safetensors has the SHA-256 .*, not {'1' * 64}"):
        features.by_name(f"inception:{other}:{'1' * 64}", no_judge)
    with pytest.raises(ValueError, match="Conv2d_1a_3x3/conv/kernel"):
        features.by_name(f"inception:{other}", no_judge)


def test_a_script_refuses_bad_features(tmp_path):
    folder = tmp_path / "run"
    call(
        "autoencoder", "--num-devices", "1", "--steps", "1", "--batch-size", "8", "--hidden", "8",
        "--draw-every", "0", "--scan-steps", "1", "--run-dir", folder,
    )  # fmt: skip
    flags = ["--run-dir", folder, "--action", "evaluate", "--features", "dino"]
    assert "unknown features 'dino'; use random, judge" in refusal("autoencoder", *flags)
