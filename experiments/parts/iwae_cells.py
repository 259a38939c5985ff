# SPDX-License-Identifier: MIT
"""The models and the training of `iwae_table.py`: as in the code of Burda et al. 2016, or later."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.evaluate import collapse
from jaxgen.nn import autoencoder, functional
from jaxgen.train import augment, latent_models, losses, objectives, optimizer, step
from jaxgen.types import Array, Key, LossFn, Params, TrainState

NUM_STAGES = 8
FIRST_SEED = 123  # of the first weights in the authors' code
MODERN_RATE = 1e-3
SIZES = {1: (50,), 2: (100, 50)}  # entries of the stochastic layers, the one next to x first


class Cell(NamedTuple):
    """A cell of the table; the runs of both its objectives, and of all seeds, are one program."""

    layers: int
    k: int


class Run(NamedTuple):
    """One training of a cell; `swapped` ones are of the paper's Table 2."""

    cell: Cell
    objective: str  # "vae" or "iwae"; of a swapped run the first of the two
    seed: int
    swapped: bool = False

    @property
    def name(self) -> str:
        """The beginning of the names of its files."""
        return f"{self.cell.layers}x{self.cell.k}-{self.objective}-seed{self.seed}"

    @property
    def before(self) -> "Run":
        """The run that a swapped one goes on from: the VAE of k = 1, or the IWAE of its k."""
        cell = self.cell if self.objective == "iwae" else Cell(self.cell.layers, 1)
        return Run(cell, self.objective, self.seed)

    @property
    def program(self) -> tuple[Cell, bool]:
        """What trains it in the end: the cell whose k it has then, and whether as an IWAE.

        After a swap a VAE is an IWAE of k samples, and an IWAE is a VAE of one, as in the code.
        """
        if not self.swapped:
            return self.cell, self.objective == "iwae"
        return (self.cell, True) if self.objective == "vae" else (Cell(self.cell.layers, 1), False)


def stage_rates() -> list[float]:
    """Lists the learning rate of each stage, 1e-4 round(10^(1 - i / 7), 1) as the code has it."""
    return [1e-4 * round(10 ** (1 - i / (NUM_STAGES - 1)), 1) for i in range(NUM_STAGES)]


def learning_rate(steps_per_epoch: int, plain_epochs: int | None = None) -> optax.Schedule:
    """Builds the rate by step: that of stage i for 3^i epochs; the last one's from then on.

    After `plain_epochs`, in a swapped stage, it is also the last one's, as in the code.
    """
    rates = stage_rates()
    ends = np.cumsum([3**i for i in range(NUM_STAGES - 1)]) * steps_per_epoch
    stages = optax.join_schedules([optax.constant_schedule(r) for r in rates], ends.tolist())
    if plain_epochs is None:
        return stages
    swapped = optax.constant_schedule(rates[-1])
    return optax.join_schedules([stages, swapped], [plain_epochs * steps_per_epoch])


def networks(cell: Cell, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Builds the networks of a cell, by their names in the parameters."""
    sizes = SIZES[cell.layers]
    parts: dict[str, Any] = {
        "encoder": autoencoder.GaussianLayer(sizes[0], (200, 200)),
        "decoder": autoencoder.LogitLayer(image_shape, (200, 200)),
    }
    if cell.layers == 2:
        parts["encoder_top"] = autoencoder.GaussianLayer(sizes[-1], (100, 100))
        parts["decoder_top"] = autoencoder.GaussianLayer(sizes[0], (100, 100))
    return parts


def model_of(cell: Cell, image_shape: tuple[int, int, int]) -> latent_models.LatentModel:
    """Builds the densities of a cell's model; its networks see pixels 0 and 1."""
    parts = {name: functional.apply(m) for name, m in networks(cell, image_shape).items()}

    def encode(params: Params, x: Array, label: Any) -> Array:
        return parts["encoder"](params, losses.unit_interval(x).reshape(-1))

    def decode(params: Params, z: Array, label: Any) -> Array:
        return parts["decoder"](params, z)

    prior = latent_models.normal_prior(SIZES[cell.layers][-1])
    if cell.layers == 1:
        return latent_models.one_layer(encode, decode, losses.bernoulli, prior)
    up, down = parts["encoder_top"], parts["decoder_top"]
    return latent_models.two_layers(encode, up, down, decode, losses.bernoulli, prior)


def active_units(cell: Cell, images: np.ndarray) -> Callable[[Params, Key], str]:
    """Builds the count of each layer's active units over the images, "19" or "16+5".

    As in the code: pixels are drawn as 0 or 1, and the upper layer sees a draw of the lower one.
    """
    model, parts = model_of(cell, images.shape[1:]), networks(cell, images.shape[1:])

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0, 0))
    def means(params: Params, image: Array, key: Key) -> list[Array]:
        pixel_key, z_key = jax.random.split(key)
        x = losses.binarize(pixel_key, augment.to_unit_range(image))
        layers = [model.encode(params, x, None)]
        if cell.layers == 2:
            below, _ = model.draw(params, layers[0], z_key)
            up = functional.apply(parts["encoder_top"])
            layers.append(up(params["encoder_top"], below))
        return [jnp.split(moments, 2)[0] for moments in layers]

    def count(params: Params, key: Key) -> str:
        of_layers = means(params, jnp.asarray(images), jax.random.split(key, len(images)))
        return "+".join(str(collapse.active_units(np.asarray(x)).sum()) for x in of_layers)

    return count


def init(cell: Cell, images: np.ndarray, key: Key) -> Params:
    """Draws parameters by Glorot's rule; the output's bias is the logit of the data's mean."""
    shape = images.shape[1:]
    sizes = SIZES[cell.layers]
    inputs = {"encoder": math.prod(shape), "decoder": sizes[0]}
    inputs |= {"encoder_top": sizes[0], "decoder_top": sizes[-1]}
    parts = networks(cell, shape)
    keys = jax.random.split(key, len(parts))
    params = {
        name: functional.init(module, k, jnp.zeros(inputs[name]))
        for (name, module), k in zip(parts.items(), keys, strict=True)
    }
    mean = np.clip(images.reshape(len(images), -1).mean(axis=0) / 255, 0.001, 0.999)
    params["decoder"]["head"]["bias"] = jnp.asarray(np.log(mean / (1 - mean)), jnp.float32)
    return params


def with_weights_of_the_code(params: Params, seed: int) -> Params:
    """Draws the weights by NumPy as the authors' code does, seed 0 the same numbers.

    Each layer begins a generator of the same seed: layers of one shape begin equal.
    """

    def weights(x: Array) -> Array:
        if x.ndim != 2:
            return x
        scale = math.sqrt(6 / sum(x.shape))
        rng = np.random.RandomState(FIRST_SEED + seed)
        return jnp.asarray(rng.uniform(-scale, scale, x.shape), x.dtype)

    return jax.tree.map(weights, params)


class Recipe(NamedTuple):
    """How a cell is trained."""

    tx: optax.GradientTransformation
    bound: Callable[[Array], objectives.Bound]  # is_iwae [] -> what is maximised for an image
    weight: float = 1.0  # of the bound: the batch's size sums gradients over the batch
    ema_decay: float = 0.0  # of the moving average that is evaluated; 0: the last parameters are
    shuffled: bool = False  # anew in every epoch; otherwise in the order of the file

    def start(self, params: Params) -> TrainState | step.AveragedState:
        """Makes the state at step 0."""
        state = step.init_state(params, self.tx)
        if not self.ema_decay:
            return state
        return step.AveragedState(state, jax.tree.map(jnp.copy, params))  # both are donated


def paper(steps_per_epoch: int, size: int, plain_epochs: int | None = None) -> Recipe:
    """Builds the recipe of the authors' code, with batches of `size` images."""

    def bound(is_iwae: Array) -> objectives.Bound:
        def value(weigh: objectives.Weigh, params: Params, z: Any) -> Array:
            log_w = weigh(params, z)
            iwae = jax.nn.logsumexp(log_w) - jnp.log(len(log_w))
            return jnp.where(is_iwae, iwae, jnp.mean(log_w))

        return value

    rate = learning_rate(steps_per_epoch, plain_epochs)
    return Recipe(optimizer.adam_of_ones(rate), bound, size)


def modern(steps_per_epoch: int, num_epochs: int) -> Recipe:
    """Builds a recipe of later years: Adam, a cosine of rates, DReG for IWAE, a moving average."""

    def bound(is_iwae: Array) -> objectives.Bound:
        def value(weigh: objectives.Weigh, params: Params, z: Any) -> Array:
            dreg, mean = (f(weigh, params, z) for f in (objectives.dreg, objectives.k_sample))
            return jnp.where(is_iwae, dreg, mean)

        return value

    rate = optimizer.schedule(MODERN_RATE, num_epochs * steps_per_epoch, "cosine")
    return Recipe(optimizer.adam(rate), bound, ema_decay=0.999, shuffled=True)


def recipe_of(
    mode: str, steps_per_epoch: int, size: int, num_epochs: int, plain_epochs: int
) -> Recipe:
    """Chooses the recipe of a mode, "paper" or "modern"; the former may swap after plain epochs."""
    if mode == "paper":
        return paper(steps_per_epoch, size, plain_epochs if num_epochs > plain_epochs else None)
    return modern(steps_per_epoch, num_epochs)


def loss_of(cell: Cell, recipe: Recipe, image_shape: Any, is_iwae: Array) -> LossFn:
    """Builds the recipe's loss of one image."""
    bound = recipe.bound(is_iwae)

    def weighed(*arguments: Any) -> Array:
        return recipe.weight * bound(*arguments)

    model = model_of(cell, image_shape)
    loss = objectives.bound_loss(model, weighed, cell.k, dynamic_binarization=True)
    return augment.on_uint8(loss)


def epoch_of(cell: Cell, recipe: Recipe, size: int) -> Any:
    """Compiles an epoch of all runs of a cell.

    (states [S], images, keys [S], is_iwae [S], seeds, number of the epoch) -> states and the mean
    negative bound of each, in nats.
    """

    def one_run(
        state: Any, images: Array, key: Key, is_iwae: Array, order: Array | None
    ) -> tuple[Any, Array]:
        loss = loss_of(cell, recipe, images.shape[1:], is_iwae)
        one = step.gradient_step(loss, recipe.tx)
        if recipe.ema_decay:
            one = step.with_moving_average(one, recipe.ema_decay)
        if order is not None:
            images = images[order]

        def update(state: Any, i: Array) -> tuple[Any, Array]:
            batch = jax.lax.dynamic_slice_in_dim(images, i * size, size)
            state, metrics = one(state, {"image": batch}, key)
            return state, metrics["loss"] / recipe.weight

        state, values = jax.lax.scan(update, state, jnp.arange(len(images) // size))
        return state, jnp.mean(values)

    runs = jax.jit(side_by_side(one_run), donate_argnums=0)

    def epoch(
        states: Any, images: Array, keys: Key, is_iwae: Array, seeds: list[int], number: int
    ) -> tuple[Any, Array]:
        order = orders(seeds, number, len(images)) if recipe.shuffled else None
        return runs(states, images, keys, is_iwae, order)

    return epoch


def side_by_side(one_run: Callable[..., Any]) -> Callable[..., Any]:
    """Lifts an epoch of one run to one of all S runs: at once on GPU and TPU, in turn on CPU.

    In batched products of 20 rows XLA's CPU backend takes 1.4 times as long.
    """

    def in_turn(states: Any, images: Array, keys: Key, is_iwae: Array, order: Any) -> Any:
        run = lambda of_run: one_run(of_run[0], images, *of_run[1:])  # noqa: E731
        return jax.lax.map(run, (states, keys, is_iwae, order))

    if jax.default_backend() == "cpu":
        return in_turn
    return jax.vmap(one_run, (0, None, 0, 0, 0))


def orders(seeds: list[int], epoch: int, num_images: int) -> np.ndarray:
    """Shuffles the images of an epoch for each seed: indices int32 [S, N]."""
    rngs = [np.random.default_rng([seed, epoch]) for seed in seeds]
    return np.stack([rng.permutation(num_images) for rng in rngs]).astype(np.int32)
