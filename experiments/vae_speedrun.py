# SPDX-License-Identifier: MIT
"""Races a VAE: seconds until its test bound on binarized MNIST is 104, 100, 95 and 90 nats.

Rules: train on the 60,000 training images, binarized anew at every use; the bound is -ELBO with one
sample, averaged over the 10,000 test images, binarized with a fixed key. The clock runs while the
model trains: compilation and evaluation are apart. Beside it stand the seconds of the processor, of
all its cores together, which other programs on the machine lengthen less. Any encoder, optimiser
and batch may stand here, and any decoder that is a probability of all pixels given z: each given z
alone, or in order, given z and those before it (--in-order). A record is a row with machine and
commit (--record), and this file as it was.

Examples:
    python experiments/vae_speedrun.py --data path/to/mnist_idx --record records.jsonl
    python experiments/vae_speedrun.py --data digits --targets 30 26 --epochs 20     # a quick look
"""

from jaxgen import at_start

if __name__ == "__main__":
    at_start.catch_signals()  # before the imports that take seconds

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from jaxgen import files, script
from jaxgen.data import sets
from jaxgen.measure import environment
from jaxgen.nn import autoencoder, functional
from jaxgen.runs import plan
from jaxgen.train import augment, losses, optimizer, step
from jaxgen.types import Array, Key, LossFn, Params


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    data: str = "mnist"  # as in the other scripts: a TFDS name, a folder of IDX files
    targets: tuple[float, ...] = (104.0, 100.0, 95.0, 90.0)  # nats
    epochs: int = 100  # at most; the learning rate falls to 0 over them
    batch_size: int = 128
    learning_rate: float = 2e-3
    hidden: tuple[int, ...] = (500, 500)  # units of the encoder's layers; the decoder mirrors it
    latent_dim: int = 40
    in_order: bool = True  # each pixel also sees those before it; False: only z
    seed: int = 0
    record: Path | None = None  # a file that gets one line of JSON


def pixels_in_order(params: Params, logits: Array, x: Array) -> Array:
    """log p(x | z) of binary pixels in nats, each given z and, linearly, the pixels before it.

        log p(x | z) = sum_i log p(x_i | x_j<i, z),  logit_i = l_i(z) + sum_{j<i} W_ij (x_j + 1)/2

    logits, x [H, W, C] -> [].  params["before"]: W [HWC, HWC], of which the part below the diagonal
    is used. Gregor et al. 2014 (arXiv:1310.8499), section 2.
    """
    before = jnp.tril(params["before"], -1) @ losses.unit_interval(x).reshape(-1)
    return losses.bernoulli(params, logits + before.reshape(x.shape), x)


def model(config: Config, shape: tuple[int, int, int]) -> tuple[LossFn, Params]:
    """Builds the loss of one image of uint8, whose shape this is, and its first parameters."""
    encoder, decoder = autoencoder.encoder_and_decoder(
        "dense", 2 * config.latent_dim, shape, hidden=config.hidden
    )
    density = pixels_in_order if config.in_order else losses.bernoulli
    loss = losses.vae_loss(
        functional.apply(encoder), functional.apply(decoder), density, dynamic_binarization=True
    )
    encoder_key, decoder_key = jax.random.split(jax.random.key(config.seed))
    params = {
        "encoder": functional.init(encoder, encoder_key, jnp.zeros(shape)),
        "decoder": functional.init(decoder, decoder_key, jnp.zeros(config.latent_dim)),
    }
    if config.in_order:
        params["before"] = jnp.zeros((math.prod(shape), math.prod(shape)))
    return augment.on_uint8(loss), params


def build(config: Config, train: Any, test: Any) -> tuple[Any, Any, Any]:
    """Makes the first state, and compiles an epoch of training and the test set's bound."""
    loss, params = model(config, train.images.shape[1:])
    size, steps = config.batch_size, len(train.images) // config.batch_size
    tx = optimizer.adam(optimizer.schedule(config.learning_rate, config.epochs * steps, "cosine"))
    one = step.scan_steps(step.gradient_step(loss, tx))
    state = step.init_state(params, tx)

    def epoch(state: Any, images: Array, key: Key, number: Array) -> Any:
        order_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(jax.random.fold_in(order_key, number), len(images))
        rows = order[: steps * size].reshape(steps, size)
        return one(state, ({"image": images}, rows), noise_key)[0]

    def bound(params: Params, images: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.arange(len(images)))
        example = lambda x, k: loss(params, {"image": x, "step": 0}, k)[1]["neg_elbo_nats"]  # noqa: E731
        return jnp.mean(jax.vmap(example)(images, keys))

    key = jax.random.key(config.seed + 1)
    arguments = (state, jnp.asarray(train.images), key, jnp.int32(0))
    epoch_program = jax.jit(epoch, donate_argnums=0).lower(*arguments).compile()
    bound_program = jax.jit(bound).lower(params, jnp.asarray(test.images)).compile()
    return state, epoch_program, bound_program


def check_finite(state: Any, nats: float, epochs: int) -> None:
    """Raises ValueError for a state and a bound of which a number is not finite."""
    # jnp: NumPy's view of a leaf would keep the next epoch from writing in its place
    if not all(jnp.isfinite(x).all() for x in jax.tree.leaves((state, nats))):
        steps = int(state.step)
        raise ValueError(f"not finite after step {steps} (epoch {epochs}); lower --learning-rate")


def race(config: Config) -> dict[str, Any]:
    """Runs the race; returns the seconds and epochs at which each target was reached, or null.

    No state is kept on the way, of minutes. Raises ValueError when a number is not finite any more.
    """
    train, test = sets.load(config.data, "train"), sets.load(config.data, "test")
    if config.batch_size > len(train.images):
        raise ValueError(
            f"--batch-size is {config.batch_size}, and {config.data} has {len(train.images)} "
            f"training images; use at most so many"
        )
    begin = time.perf_counter()
    state, epoch, bound = build(config, train, test)
    compiling = time.perf_counter() - begin
    images, test_images = jnp.asarray(train.images), jnp.asarray(test.images)
    key = jax.random.key(config.seed + 1)

    seconds, processor, nats, reached = 0.0, 0.0, float("inf"), {}
    for number in range(config.epochs):
        start, processor_start = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(epoch(state, images, key, jnp.int32(number)))
        seconds += time.perf_counter() - start
        processor += time.process_time() - processor_start
        nats = float(bound(state.params, test_images))
        check_finite(state, nats, number + 1)
        for target in config.targets:
            if nats <= target and target not in reached:
                times = {"seconds": round(seconds, 2), "processor_seconds": round(processor, 2)}
                reached[target] = times | {"epochs": number + 1}
                print(f"{target:g} nats after {seconds:.2f} s, {number + 1} epochs", flush=True)
        if len(reached) == len(config.targets):
            break
    return {
        "reached": {f"{target:g}": reached.get(target) for target in config.targets},
        "last_nats": round(nats, 3), "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2), "compile_seconds": round(compiling, 2),
        "training_images": len(images), "test_images": len(test_images),
        "config": {k: v for k, v in asdict(config).items() if k != "record"},
        "environment": environment.record(),
    }  # fmt: skip


HEAD = (
    "| target, nats | pixels | seconds | of the processor | epochs | machine | cores | load "
    "| commit |\n|---|---|---|---|---|---|---|---|---|"
)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Writes the targets that records reached, as Markdown; load is the machine's at the end."""
    rows = []
    for record in records:
        where = record["environment"]
        place = " | ".join(str(where[k]) for k in ("device", "cores", "load_average", "commit"))
        pixels = "in order" if record["config"].get("in_order") else "apart"
        rows += [
            f"| {target} | {pixels} | {at['seconds']:.0f} | {at['processor_seconds']:.0f} "
            f"| {at['epochs']} of {record['config']['epochs']} | {place} |"
            for target, at in record["reached"].items()
            if at is not None
        ]
    return "\n".join([HEAD, *rows])


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    plan.check_range(config, 1, "epochs", "batch_size", "latent_dim", "hidden")
    plan.check_range(config, 0, "learning_rate", "targets")
    plan.check_range(config, 0, "seed", high=plan.MOST_SEED)
    if not config.targets:
        raise ValueError("--targets names none; give one or more, in nats")
    if len(set(config.targets)) < len(config.targets):
        raise ValueError(f"--targets are {' '.join(map(str, config.targets))}; give each once")
    if config.record is not None:
        files.check_writable(config.record)
    script.set_up()
    record = race(config)
    print(f"{record['last_nats']} nats at the end, {record['compile_seconds']} s of compilation")
    if config.record is not None:
        config.record.parent.mkdir(parents=True, exist_ok=True)
        with config.record.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    script.main(main)
