# SPDX-License-Identifier: MIT
"""Trains a variational autoencoder; draws samples from it; measures its likelihood.

Examples:
    python experiments/vae.py                                    # handwritten digits, a minute
    python experiments/vae.py --preset mnist --network conv      # MNIST through TFDS
    python experiments/vae.py --data path/to/images --image-size 32 --likelihood logistic
    python experiments/vae.py --objective iwae --bound-samples 5 --top-dim 10
    python experiments/vae.py --objective dreg --bound-samples 8 --pseudo-inputs 100
    python experiments/vae.py --objective beta_tc --beta 4
    python experiments/vae.py --run-dir runs/vae-digits --resume --steps 8000
    python experiments/vae.py --run-dir runs/vae-digits --action evaluate
    python experiments/vae.py --run-dir runs/vae-digits --action sample --num-samples 100
    python experiments/vae.py --run-dir runs/vae-digits --action sample --codes mixture
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxgen import script
from jaxgen.evaluate import collapse, features, judge, latents, likelihood
from jaxgen.nn import functional
from jaxgen.pictures import images, latent_space
from jaxgen.runs import command_line, experiment, run
from jaxgen.runs.experiment import Examples, System
from jaxgen.train import augment, latent_models, losses, objectives, parallel, step
from jaxgen.types import AnyArray, Array, Key, Params
from parts import vae_model
from parts.vae_model import PRESETS, READ_WITH, Config

FEW_STEPS = 500  # after fewer a model that will use its z may not do so yet


def build(config: Config, examples: Examples) -> System:
    """Builds the System of the VAE: its first state, its step, its pictures."""
    vae_model.check(config, examples)
    encoder, decoder = vae_model.networks(config, examples)
    options = config.run
    num_steps = experiment.num_steps(options, examples, options.batch_size)
    tx = experiment.optimizer_of(options, num_steps)
    loss = vae_model.loss_of(config, examples)
    functions = functions_of(config, examples)

    def init(key: Key) -> Any:
        encoder_key, decoder_key, extra_key = jax.random.split(key, 3)
        label = jnp.int32(0)
        params = {
            "encoder": functional.init(
                encoder, encoder_key, jnp.zeros(examples.image_shape), label
            ),
            "decoder": functional.init(decoder, decoder_key, jnp.zeros(config.latent_dim), label),
        }
        if losses.LIKELIHOODS[config.likelihood].learns_scale:
            params["log_scale"] = jnp.full((examples.image_shape[-1],), -1.0)
        return step.init_state(params | vae_model.extra_parameters(config, examples, extra_key), tx)

    return System(
        init=init,
        step=step.gradient_step(
            augment.on_uint8(loss, augment.by_name(options.augment)), tx, options.accumulate
        ),
        draw=partial(draw, config, functions),
        images_per_step=options.batch_size,
        progress_metrics=("neg_elbo_nats", "recon_nats", "kl_nats"),
        convolutional=config.network == "conv",
        remark=partial(remark, config, functions.posterior),
    )


class Functions(NamedTuple):
    """Holds what pictures are made with, compiled once for all states."""

    posterior: Any  # (params, images, labels, key) -> images as seen, means, log-variances of z
    picture: Any  # (params, z, labels) -> mean images in [-1, 1]
    prior: Any  # (params, key, count) -> draws of z


def functions_of(config: Config, examples: Examples) -> Functions:
    """Compiles the functions of the networks."""
    encode, decode = map(functional.apply, vae_model.networks(config, examples))
    prior = partial(prior_draws, config, examples)
    return Functions(
        jax.jit(partial(posterior, config, encode)),
        jax.jit(partial(picture, config, decode)),
        jax.jit(prior, static_argnums=2),
    )


def draw(
    config: Config, functions: Functions, state: Any, examples: Examples, key: Key
) -> dict[str, Image.Image]:
    """Draws reconstructions, samples, interpolation, traversal; of two latents, the manifold."""
    sample_key, binarize_key = jax.random.split(key)
    label, show = examples.labels, partial(functions.picture, state.params)
    x, mean, _ = functions.posterior(state.params, examples.images, label, binarize_key)

    num_classes = len(examples.class_names) if config.conditional else 1
    classes = np.arange(100, dtype=np.int32) % num_classes
    z = functions.prior(state.params, sample_key, 100)
    prior = (np.zeros(config.latent_dim, np.float32), np.ones(config.latent_dim, np.float32))
    return {
        "reconstructions": images.beside(images.to_uint8(x), images.to_uint8(show(mean, label))),
        "samples": images.grid(
            images.to_uint8(show(z, classes)), num_classes if config.conditional else 10
        ),
        **latent_space.views(show, mean, label, prior),
    }


def picture(config: Config, decode: Any, params: Params, z: Array, labels: AnyArray) -> Array:
    """Decodes each z to its mean image under the likelihood, in [-1, 1]."""
    return losses.LIKELIHOODS[config.likelihood].mean(decode(params["decoder"], z, labels))


def posterior(
    config: Config, encode: Any, params: Params, x: Array, labels: Array, key: Key
) -> tuple[Array, Array, Array]:
    """Returns the images as the networks see them, with means and log-variances of their z."""
    x = augment.to_unit_range(x)
    x = losses.binarize(key, x) if vae_model.is_binarized(config) else x
    mean, logvar = jnp.split(encode(params["encoder"], x, labels), 2, axis=-1)
    return x, mean, logvar


def remark(config: Config, posterior_of: Any, state: Any, examples: Examples, key: Key) -> str:
    """Returns what `collapse` says of the model; empty for one that uses its z."""
    _, binarize_key = jax.random.split(key)
    _, mean, logvar = posterior_of(state.params, examples.images, examples.labels, binarize_key)
    has_own_prior = bool(config.top_dim or config.pseudo_inputs)
    alike = "samples of a class look alike" if config.conditional else "samples look alike"
    return collapse.remark(mean, logvar, alike, cure(config, examples), has_own_prior)


def cure(config: Config, examples: Examples) -> str:
    """Says what helps: more steps alone, where there were few and the KL weighs no more than 1."""
    num_steps = experiment.num_steps(config.run, examples, config.run.batch_size)
    if num_steps < FEW_STEPS and config.beta <= 1:
        return f"{num_steps} steps are few, train for more"
    has_own_prior = bool(config.top_dim or config.pseudo_inputs)
    cures = [f"a --beta below {config.beta:g}"] * (config.beta > 1)
    cures += ["--kl-warmup-steps"] * (config.kl_warmup_steps == 0)
    cures += ["--objective free_bits"] * (config.objective != "free_bits" and not has_own_prior)
    return f"train again with {' or '.join([*cures, 'more steps'])}"


def prior_draws(config: Config, examples: Examples, params: Params, key: Key, count: int) -> Array:
    """Draws [count, D] of the prior of z; with a layer above it, by way of that."""
    if not (config.top_dim or config.pseudo_inputs):
        return latent_space.normal(key, count, config.latent_dim)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    generate = vae_model.model_of(config, examples).generate
    return jax.vmap(generate, (None, 0))(params, keys)


def sample(config: Config) -> None:
    """Decodes draws from --codes and writes one grid."""
    path = run.samples_file(config.run, config.output)
    state, done, examples = run.restore(config, build)
    functions, params = functions_of(config, examples), experiment.model(state, config.run).params
    key, count = experiment.sample_key(config.run), config.num_samples
    if config.codes == "prior":
        z = functions.prior(params, key, count)
    else:
        train = run.load_split(config.run, "train")
        encode, _ = on_pictures(config, examples, params, key, train.labels)
        z = jnp.float32(latents.draw(config.codes, encode(train.images), count, config.run.seed))
    labels = np.arange(count, dtype=np.int32) % max(len(examples.class_names), 1)
    means = functions.picture(params, z, labels)

    images.save(path, images.grid(images.to_uint8(means)))
    source = latents.SOURCES.get(config.codes, "the prior")
    print(f"{count} samples of {source}, step {done}: {path}")


def evaluate(config: Config) -> None:
    """Prints the terms of the bound on the test set, in nats per image, with standard errors."""
    likelihood.check_nll_samples(config.nll_samples)
    state, done, examples = run.restore(config, build)
    # one function of each kind for all models, which compiles once
    kind = "elbo" if config.objective not in objectives.BOUNDS else "k_sample"
    plain = replace(config, objective=kind, bound_samples=1, beta=1.0, kl_warmup_steps=0)
    loss = augment.on_uint8(vae_model.loss_of(plain, examples))
    binary, distribution = vae_model.is_binarized(config), losses.LIKELIHOODS[config.likelihood]
    log_weight = latent_models.weight_of_images(vae_model.model_of(config, examples), binary)
    train, test = (run.load_split(config.run, split) for split in ("train", "test"))
    if len(test.images) < 2:
        raise ValueError(f"{config.run.data} has 1 test image; evaluating needs 2 or more")
    if distribution.is_binary and not binary:
        likelihood.check_binary(test.images)
    extract = features.by_name(config.features, lambda: judge.train(train, test))
    keys = jax.random.split(experiment.sample_key(config.run), 4)
    bound_key, weight_key, pictures_key, units_key = keys
    mesh, units = parallel.local_mesh(), active_units(config, examples, test, units_key)
    num_bytes = math.prod(examples.image_shape) if distribution.is_of_bytes else 0

    for i in range(config.run.num_models):
        params = experiment.model(state, config.run, i).params
        terms = likelihood.mean_terms(loss, params, test._asdict(), bound_key, mesh=mesh)
        print(f"model {i}, step {done}, {len(test.images)} test images:")
        print(*likelihood.lines(terms, num_bytes), sep="\n")
        if k := config.nll_samples:
            nll = likelihood.importance_estimates(
                log_weight, params, test._asdict(), weight_key, [k], mesh=mesh
            )
            print(nll[k].line(k))
        print(f"  active units     {units(params)}")
        key = jax.random.clone(pictures_key)
        functions = on_pictures(config, examples, params, key, train.labels)
        print(*latents.report(*functions, train.images, test.images, extract), sep="\n")


def on_pictures(
    config: Config, examples: Examples, params: Params, key: Key, labels: np.ndarray
) -> tuple[latents.Encode, latents.Decode]:
    """Builds functions on the host: images -> means of z, and z -> mean pictures.

    labels: of the images, in their order. Pictures get them shuffled, so that a conditional model
    draws the classes as often as the data has them.
    """
    networks = vae_model.networks(config, examples)
    encode, decode = (jax.jit(functional.apply(network)) for network in networks)
    shuffled = np.random.default_rng(config.run.seed).permutation(labels)

    def mean(x: Array, start: int) -> Array:
        if vae_model.is_binarized(config):
            x = losses.binarize(jax.random.fold_in(key, start), x)
        label = labels[start : start + len(x)]
        return jnp.split(encode(params["encoder"], x, label), 2, axis=-1)[0]

    def mean_picture(z: Array, start: int) -> Array:
        return picture(config, decode, params, z, shuffled[start : start + len(z)])

    return latents.on_host(mean, mean_picture)


def active_units(
    config: Config, examples: Examples, test: Any, key: Key
) -> Callable[[Params], str]:
    """Builds the count of the entries of each layer of z that 500 random images move, out of all.

    The networks see what they were trained on: pixels drawn as 0 or 1 where the model binarizes,
    and, above, a draw of the layer below, as in the code of Burda et al. 2016.
    """
    rows = np.random.default_rng(0).permutation(len(test.images))[:500]
    model = vae_model.model_of(config, examples)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0, 0, 0))
    def means(params: Params, image: Array, label: Array, key: Key) -> list[Array]:
        pixel_key, z_key = jax.random.split(key)
        x = augment.to_unit_range(image)
        x = losses.binarize(pixel_key, x) if vae_model.is_binarized(config) else x
        layers = [model.encode(params, x, label)]
        if config.top_dim:
            up, _ = vae_model.top_networks(config)
            below, _ = model.draw(params, layers[0], z_key)
            layers.append(functional.apply(up)(params["encoder_top"], below))
        return [jnp.split(moments, 2)[0] for moments in layers]

    keys = jax.random.split(key, len(rows))

    def count(params: Params) -> str:
        layers = means(params, test.images[rows], test.labels[rows], jax.random.clone(keys))
        counts = [collapse.active_units(np.asarray(x)) for x in layers]
        return " + ".join(f"{active.sum()} of {len(active)}" for active in counts)

    return count


def main() -> None:
    config = command_line.parse("vae", PRESETS, __doc__, read_with=READ_WITH)
    script.set_up(config.run.distributed)
    match config.action:
        case "train":
            run.train("vae", config, build, partial(vae_model.open_split, config))
        case "sample":
            sample(config)
        case "evaluate":
            evaluate(config)


if __name__ == "__main__":
    script.main(main)
