# %% [markdown]
# # 6 · Functional training
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxgen/jaxgen/blob/main/notebooks/06_functional_training.ipynb)
# [view source](06_functional_training.py)
#
# In this library a training step is a pure function: state, batch and key go in, a new state and
# metrics come out. Nothing else goes in, and nothing is changed on the way. That one restriction
# pays for everything in this notebook, which takes at most four minutes on two CPU cores:
#
# 1. a whole training run, in 60 lines;
# 2. keys: what one is, and what happens when it is used twice;
# 3. `vmap` over examples: losses are written for one image;
# 4. `vmap` over models: many seeds in one program;
# 5. `scan`: many steps in one call;
# 6. `jit`, `pmap` and `shard_map`: eight devices, the same run;
# 7. a gradient that is eight times too long, which Adam hides;
# 8. a run that is killed, and goes on to the same bits;
# 9. donated buffers, and the error they give;
# 10. how fast it could be, and how fast it is;
# 11. exercises.

# %% tags=["setup"]
import importlib.util
import os
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.exists("figures.py"):  # elsewhere: nothing
    device = "cuda12," if os.path.exists("/dev/nvidia0") else ""
    for command in (
        "git clone -q --depth 1 https://github.com/jaxgen/jaxgen",
        f"pip install -q ./jaxgen[{device}notebooks]",
    ):
        subprocess.run(command.split(), check=True)
    os.chdir("jaxgen/notebooks")
if missing := [name for name in ("jaxgen", "mlxtend") if importlib.util.find_spec(name) is None]:
    raise ImportError(
        f"this kernel has no {' and no '.join(missing)}; in the folder of the repository run: "
        'pip install -e ".[notebooks]"'
    )

# %% [markdown]
# Eight devices are needed for sections 6 and 7. A machine without them can pretend: the CPU then
# appears as eight devices that compute in turns on its cores. That is slow and exact, just right
# for trying things out. XLA, the compiler under JAX, reads the flag when it starts, so it has to be set before JAX is
# imported; it changes nothing for GPUs and TPUs.

# %%
import os

flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # errors come from Python, once

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn import datasets

import figures
import quick

print(len(jax.devices()), "devices:", jax.devices()[0].device_kind)

# %% [markdown]
# ## 1. A whole run
#
# A small variational autoencoder; [notebook 2](02_vae.ipynb) explains its loss. Here the loss is
# only an example: anything that takes parameters, ONE example and ONE key will do.

# %%
LATENT_DIM, BATCH_SIZE = 8, 128


class MLP(nn.Module):
    """A vector -> a vector, through one hidden layer of 64 ReLUs."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(64)(x))
        return nn.Dense(self.outputs)(h)


encoder, decoder = MLP(2 * LATENT_DIM), MLP(64)


def init(key):
    """Fresh parameters: a tree of arrays, and the only thing that training changes."""
    encoder_key, decoder_key = jax.random.split(key)
    return {
        "encoder": encoder.init(encoder_key, jnp.zeros(64))["params"],
        "decoder": decoder.init(decoder_key, jnp.zeros(LATENT_DIM))["params"],
    }


def loss(params, image, key):
    """The loss of ONE image with ONE key, in nats."""
    binarize_key, eps_key = jax.random.split(key)
    x = 2.0 * jax.random.bernoulli(binarize_key, image / 255) - 1
    mean, logvar = jnp.split(encoder.apply({"params": params["encoder"]}, x), 2)
    z = mean + jnp.exp(logvar / 2) * jax.random.normal(eps_key, mean.shape)
    logits = decoder.apply({"params": params["decoder"]}, z)
    log_likelihood = jnp.sum((x + 1) / 2 * logits - jax.nn.softplus(logits))
    kl = -0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar))
    return kl - log_likelihood


tx = optax.adam(2e-3)


def mean_loss(params, images, keys):
    return jnp.mean(jax.vmap(loss, (None, 0, 0))(params, images, keys))


@jax.jit
def train_step(state, images, key):
    """One update. The state is (step, params, opt_state); the key is that of the whole run."""
    step, params, opt_state = state
    step_key = jax.random.fold_in(key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(len(images)))
    value, grads = jax.value_and_grad(mean_loss)(params, images, keys)
    updates, opt_state = tx.update(grads, opt_state)
    return (step + 1, optax.apply_updates(params, updates), opt_state), value


def batch_indices(key, step, num_examples):
    """The examples of a step, [B]; each epoch has an order of its own."""
    epoch, place = divmod(step, num_examples // BATCH_SIZE)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[place * BATCH_SIZE :][:BATCH_SIZE]


pixels = datasets.load_digits().data  # 0 to 16
digits = jnp.uint8(np.rint(pixels * (255 / 16)))  # [1797, 64]

init_key, train_key, data_key, sample_key = jax.random.split(jax.random.key(0), 4)
params = init(init_key)
first_state = (jnp.int32(0), params, tx.init(params))

num_steps = quick.steps(500, 20)
state, losses = first_state, []
for i in range(num_steps):
    state, value = train_step(state, digits[batch_indices(data_key, i, len(digits))], train_key)
    losses.append(value)
z = jax.random.normal(sample_key, (20, LATENT_DIM))
samples = jax.nn.sigmoid(decoder.apply({"params": state[1]["decoder"]}, z))
print(f"loss {losses[0]:.2f} -> {np.mean(losses[-20:]):.2f} nats; samples:")
figures.show_grid(np.uint8(255 * samples).reshape(-1, 8, 8), columns=20)

# %% [markdown]
# The library has the same step for any loss, and a loss of a VAE with more choices. From the same
# key, the same numbers:

# %%
from jaxgen.nn import functional
from jaxgen.train import augment, step
from jaxgen.train import losses as objectives

encode, decode = functional.apply(encoder), functional.apply(decoder)
library_loss = augment.on_uint8(
    objectives.vae_loss(
        lambda params, x, label: encode(params, x),
        lambda params, z, label: decode(params, z),
        objectives.bernoulli,
        dynamic_binarization=True,
    )
)
library_step = step.gradient_step(library_loss, tx)


def largest_difference(a, b):
    """Between two trees of arrays, over all leaves."""
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(x - y))), a, b)))


library_state = step.init_state(params, tx)
go = jax.jit(library_step)
for i in range(10):
    batch = {"image": digits[batch_indices(data_key, i, len(digits))]}
    library_state, metrics = go(library_state, batch, train_key)
    np.testing.assert_allclose(metrics["loss"], losses[i], rtol=1e-5)
print(f"step 10: {losses[9]:.5f} by hand, {metrics['loss']:.5f} by the library")

# %% [markdown]
# ## 2. Keys
#
# A computer's random numbers are computed. Most libraries hide a state that every draw changes, so
# the numbers of a draw depend on the draws before it. JAX has no such state. A *key* is two 32-bit
# numbers, and a draw is a function of it: a block cipher, Threefry (Salmon et al. 2011,
# [doi:10.1145/2063384.2063405](https://doi.org/10.1145/2063384.2063405)), encrypts 0, 1, 2, ...
# with the key. So entry $i$ needs no entry before it, and the numbers are the same on every device
# and in every order.

# %%
key = jax.random.key(42)
print("a key holds      ", jax.random.key_data(key))
print("drawn once       ", jax.random.normal(key, 3))
print("drawn once again ", jax.random.normal(key, 3))
noise_key, drop_key = jax.random.split(key)
print("noise_key        ", jax.random.normal(noise_key, 3))
print("step 7 of key    ", jax.random.normal(jax.random.fold_in(key, 7), 3))
assert (jax.random.normal(key, 3) == jax.random.normal(key, 3)).all()

# %% [markdown]
# New keys come from old ones in two ways. `split` for *names*: `noise_key, drop_key`, each for a
# purpose. `fold_in` for *numbers*: step, example, device. In this library a key is folded, or
# split, or drawn from, and never two of these.
#
# ### A key used twice
#
# Drawing two things from one key gives the same numbers twice, where two independent ones were
# meant. No error, no warning; the program is merely wrong. JAX has a check for it, which this
# library's tests run with ([`tests/conftest.py`](../tests/conftest.py)):


# %%
def careless(key):
    noise = jax.random.normal(key, (500,))
    shift = jax.random.normal(key, (500,))  # the same key
    return noise, shift


def careful(key):
    noise_key, shift_key = jax.random.split(key)
    return jax.random.normal(noise_key, (500,)), jax.random.normal(shift_key, (500,))


with jax.debug_key_reuse(True):
    careful(jax.random.key(1))
    try:
        careless(jax.random.key(1))
        raise AssertionError("the check has to refuse this")
    except jax.errors.KeyReuseError as error:
        print("KeyReuseError:", str(error).splitlines()[0])

# %% [markdown]
# The most expensive kind of reuse is one key for a whole batch. Every example then gets the same
# noise. For the mean of $B$ losses, each with a noise of variance $\sigma^2$ and with correlation
# $\rho$ between any two,
#
# $$\mathrm{Var}\Bigl(\frac1B \sum_{i=1}^{B} \ell_i\Bigr) = \frac{\sigma^2}{B} \bigl(1 + (B - 1)\, \rho\bigr) \tag{1}$$
#
# (the variance of a mean, for instance Owen 2013, *Monte Carlo theory, methods and examples*,
# chapter 2). With a key for each example $\rho = 0$, and the noise falls with the batch. With one
# key $\rho = 1$: a batch of 256 is as noisy as one example. Below, both are measured on 256 copies
# of one image, so that nothing but the noise differs. The library gives example $i$ of the
# *global* batch the key `fold_in(fold_in(key, step), i)`. Test:
# [`test_the_noise_of_an_example_does_not_depend_on_the_division_of_the_batch`](../tests/test_parallel.py).

# %%
sizes = [1, 4, 16, 64, 256]
trials = jax.random.split(jax.random.key(2), 200)


@jax.jit
def noise_of_losses(key):
    """Losses of 256 copies of one image: with keys of their own, and with one key for all."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(256))
    one = jax.vmap(lambda key: loss(state[1], digits[0], key))
    return one(keys), jnp.full(256, one(key[None])[0])


own, shared = jax.vmap(noise_of_losses)(trials)  # [200, 256] each
spread = {
    "a key for each example": [float(jnp.std(own[:, :b].mean(1))) for b in sizes],
    "one key for the batch": [float(jnp.std(shared[:, :b].mean(1))) for b in sizes],
}
sigma = float(jnp.std(own))
np.testing.assert_allclose(
    spread["a key for each example"], sigma / np.sqrt(sizes), rtol=0.2
)  # (1)
np.testing.assert_allclose(spread["one key for the batch"], sigma, rtol=0.2)

left, right = figures.axes(2, height=2.9)
left.plot(*careful(jax.random.key(1)), ".", color=figures.BLUE, markersize=3, label="two keys")
left.plot(*careless(jax.random.key(1)), ".", color=figures.RED, markersize=3, label="one key")
left.set(title="Two draws of 500 numbers", xlabel="noise", ylabel="shift", aspect="equal")
left.legend(loc="upper left")
for (label, values), colour in zip(spread.items(), (figures.BLUE, figures.RED), strict=True):
    right.loglog(sizes, values, "o-", color=colour, label=label)
right.loglog(sizes, sigma / np.sqrt(sizes), "--", color=figures.TEXT, linewidth=1, label="(1)")
right.set(
    title="Noise of the mean loss", xlabel="batch", ylabel="nats", xticks=sizes, xticklabels=sizes
)
right.minorticks_off()
right.legend(fontsize=8)
figures.plt.show()

# %% [markdown]
# ## 3. `vmap` over examples
#
# `loss` above knows no batch. `jax.vmap` makes a function of batches from it, and the compiler
# turns the products of vectors into products of matrices: it is as fast as code for batches, and
# the batch axis cannot be got wrong. Since differentiation is linear, the gradient of the mean is
# the mean of the gradients,
#
# $$\nabla_\theta \frac1B \sum_i \ell(\theta, x_i) = \frac1B \sum_i \nabla_\theta\, \ell(\theta, x_i) \tag{2}$$
#
# (the gradient of a sum; the estimator of Robbins & Monro 1951,
# [doi:10.1214/aoms/1177729586](https://doi.org/10.1214/aoms/1177729586)). The right side is one
# more `vmap`, and gives each example's own gradient, which says how much they disagree. Test:
# [`test_one_sgd_step_is_the_one_done_by_hand`](../tests/test_step.py).

# %%
images = digits[:BATCH_SIZE]
keys = jax.random.split(jax.random.key(3), BATCH_SIZE)
looped = jnp.stack(
    [loss(state[1], image, key) for image, key in zip(images[:4], keys[:4], strict=True)]
)
mapped = jax.jit(jax.vmap(loss, (None, 0, 0)))(state[1], images, keys)
np.testing.assert_allclose(mapped[:4], looped, rtol=1e-5)

gradient = jax.grad(mean_loss)(state[1], images, keys)
each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(state[1], images, keys)  # leaves [B, ...]
mean_of_each = jax.tree.map(lambda leaf: leaf.mean(0), each)
assert largest_difference(mean_of_each, gradient) < 1e-4  # (2)
lengths = jax.vmap(optax.tree.norm)(each)
print(
    f"length of the mean gradient {optax.tree.norm(gradient):.1f}; "
    f"of single ones {lengths.mean():.1f} on average"
)

# %% [markdown]
# The single gradients are much longer than their mean: they disagree on most of their way. That is
# why a batch helps.
#
# ## 4. `vmap` over models
#
# A training step is a function too, so it can be mapped as well: `vmap_models` trains S models,
# each with its own parameters and its own noise. Small models leave a device idle most of the
# time; many of them fill it. With many seeds a curve becomes a band, as in the right panel. Test:
# [`test_models_trained_at_once_equal_models_trained_alone`](../tests/test_step.py).

# %%
import time

many_steps = step.scan_steps(step.vmap_models(library_step))
data = {"image": digits}
rows = jnp.stack([batch_indices(data_key, i, len(digits)) for i in range(14)])  # an epoch, [14, B]


def models(count):
    """The first state of several models, and the key of each."""
    keys = jax.vmap(jax.random.key)(jnp.arange(count))
    return jax.vmap(lambda key: step.init_state(init(key), tx))(keys), keys


def best_seconds(run, *args):
    """The seconds of a call, the best of several; the first one compiles and does not count."""
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(quick.steps(5, 1)):
        began = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - began)
    return min(times)


run_many = jax.jit(many_steps)
counts = [1, 4] if quick.ON else [1, 4, 16, 64]
rates = {}  # steps per second of all models together, by batch
for size in (8,) if quick.ON else (8, BATCH_SIZE):
    rates[size] = []
    for count in counts:
        states, keys = models(count)
        seconds = best_seconds(run_many, states, (data, rows[:, :size]), keys)
        rates[size].append(count * len(rows) / seconds)

states, keys = models(16)
together, history = run_many(states, (data, rows), keys)
alone, _ = jax.jit(step.scan_steps(library_step))(
    jax.tree.map(lambda x: x[3], states), (data, rows), keys[3]
)
third = jax.tree.map(lambda leaf: leaf[3], together.params)
assert largest_difference(third, alone.params) < 1e-4  # model 3 of 16 is the one trained alone
curves = [history["loss"]]
for _ in range(quick.steps(20, 1)):
    together, history = run_many(together, (data, rows), keys)
    curves.append(history["loss"])
curves = np.concatenate(curves)

left, right = figures.axes(2)
for size, values in rates.items():
    left.loglog(counts, values, "o-", label=f"batch {size}")
    print(f"batch {size:3}:", {n: f"{v:,.0f} steps/s" for n, v in zip(counts, values, strict=True)})
left.set(title="Steps per second, all models", xlabel="models at once")
left.set(xticks=counts, xticklabels=counts)
left.minorticks_off()
left.legend()
right.plot(curves, color=figures.BLUE, linewidth=0.6, alpha=0.5)
right.set(
    title="16 seeds, one run",
    xlabel="step",
    ylabel="loss, nats",
    ylim=(None, np.percentile(curves, 97)),
)
figures.plt.show()

# %% [markdown]
# A step with a small batch is many small operations, and a part of their time is their start, which
# models that are trained at once share. A step with a large batch fills the device better by
# itself. The left panel says how much is won: on two CPU cores not much, at either batch. A GPU is
# wider and should win more, which is not measured here. And a paper that compares two methods by
# one run each has compared two lines of the right panel.
#
# ## 5. `scan`
#
# Each call of a compiled function costs time on the host, whatever it computes. `scan_steps` does
# many steps in one call: the data lie on the device, the call gets indices. The results are the
# same *bits*. Test: [`test_scanned_steps_equal_looped_steps_bit_for_bit`](../tests/test_step.py).

# %%
scanned = jax.jit(step.scan_steps(library_step))
state_0 = step.init_state(params, tx)


def in_chunks(size):
    """The epoch's steps, `size` of them in each call."""
    state = state_0
    for i in range(0, len(rows), size):
        state, _ = scanned(state, (data, rows[i : i + size]), train_key)
    return state


chunks = [1, 14] if quick.ON else [1, 2, 7, 14]
speeds = [len(rows) / best_seconds(in_chunks, size) for size in chunks]
bits = [jax.tree.map(np.asarray, in_chunks(size).params) for size in chunks]
for other in bits[1:]:
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, bits[0], other)))
print(
    {size: f"{speed:,.0f} steps/s" for size, speed in zip(chunks, speeds, strict=True)},
    "and equal bits",
)

# %% [markdown]
# On a GPU or TPU the difference should be larger, since their steps are shorter. Bits are equal because
# no key is carried along: noise is a function of the step's number, which the state counts.
# Convolutions on a CPU are the exception, where other operations are fused inside a loop; their
# last bits may differ.
#
# ## 6. Eight devices, the same run
#
# Data parallelism: every device has all parameters and a part of the batch. With $g_d$ the mean
# gradient of device $d$'s examples, all parts of one size,
#
# $$g = \frac1N \sum_{d=1}^{N} g_d \tag{3}$$
#
# (synchronous SGD; Chen et al. 2016, [arXiv:1604.00981](https://arxiv.org/abs/1604.00981)
# and Goyal et al. 2017, [arXiv:1706.02677](https://arxiv.org/abs/1706.02677), section 3). A *mesh*
# is the list of devices with a name for its axis, here "data"; a *sharding* says which part of an
# array lies where. JAX can be told in three ways. `jit` with shardings: the program of one device,
# and the compiler divides it. `shard_map`: the program of each device, with the average written
# down. `pmap`: the older form of the same. `parallelize` takes the step and gives it back in the
# mode that was asked for. Test:
# [`test_eight_devices_train_like_one`](../tests/test_parallel.py).

# %%
from jaxgen.train import parallel

sgd = optax.sgd(1e-3)  # Adam would hide a gradient that is too long: section 7
sgd_step = step.scan_steps(step.gradient_step(library_loss, sgd))


def run_on(num_devices, how):
    """Parameters and losses after an epoch of SGD."""
    mesh = parallel.data_mesh(num_devices)
    go = parallel.parallelize(sgd_step, mesh, how, parallel.SCANNED)
    state = parallel.put(step.init_state(jax.tree.map(np.asarray, params), sgd), mesh)
    batch = parallel.put((data, rows), mesh, parallel.SCANNED)  # data on all, indices divided
    state, metrics = go(state, batch, parallel.put(train_key, mesh))
    return jax.device_get(state.params), jax.device_get(metrics["loss"])


NUM_DEVICES = jax.device_count()
expected, expected_losses = run_on(1, "jit")
for how in parallel.MODES:
    got, got_losses = run_on(NUM_DEVICES, how)
    difference = largest_difference(got, expected)
    print(f"{how:9} on {NUM_DEVICES} devices: last loss {got_losses[-1]:.5f}", end=", ")
    print(f"parameters differ by at most {difference:.0e}")
    assert difference < 1e-5
    np.testing.assert_allclose(got_losses, expected_losses, rtol=1e-5)
print(f"jit       on 1 device:  last loss {expected_losses[-1]:.5f}")

# %% [markdown]
# What is left differs because sums were made in another order: floating-point addition is not
# associative. *The noise is the same*, since a key belongs to an example's place in the global
# batch and not to a device. So a run may begin on one device and go on on eight.
#
# ## 7. A gradient that is too long
#
# (3) by hand, under `shard_map`. Inside it, JAX keeps track of which values vary between the
# devices. Parameters do not vary, and the gradient with respect to something that does not vary
# has to be the same everywhere, so JAX *sums* it over the devices by itself. Whoever then averages
# it, as one does in other frameworks, averages $N$ equal numbers: nothing happens, and the gradient
# is
#
# $$\frac1N \sum_{d=1}^{N} \Bigl( \sum_{e=1}^{N} g_e \Bigr) = \sum_{e=1}^{N} g_e = N g \tag{4}$$
#
# (from (3), in place of $g_d$ the sum). It is $N$ times too long. The remedy is one line: mark the
# parameters as varying first. Test:
# [`test_eight_devices_train_like_one`](../tests/test_parallel.py), with SGD.

# %%

from jax.sharding import PartitionSpec as P

mesh = parallel.data_mesh()


def sharded_gradient(mark_varying):
    """A function (params, images, keys) -> the gradient, over all devices."""

    def on_device(params, images, keys):
        if mark_varying:
            params = jax.tree.map(lambda x: jax.lax.pcast(x, "data", to="varying"), params)
        return jax.lax.pmean(jax.grad(mean_loss)(params, images, keys), "data")

    return jax.shard_map(on_device, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P())


keys = jax.random.split(jax.random.key(4), BATCH_SIZE)
whole = jax.jit(jax.grad(mean_loss))(params, images, keys)
right_one = jax.jit(sharded_gradient(True))(params, images, keys)
wrong_one = jax.jit(sharded_gradient(False))(params, images, keys)
ratio = {
    "marked": optax.tree.norm(right_one) / optax.tree.norm(whole),
    "not marked": optax.tree.norm(wrong_one) / optax.tree.norm(whole),
}
print({name: f"{value:.4f} times as long" for name, value in ratio.items()})
np.testing.assert_allclose(ratio["marked"], 1, rtol=1e-4)
np.testing.assert_allclose(ratio["not marked"], NUM_DEVICES, rtol=1e-4)  # (4)

# %% [markdown]
# Would you notice? Not with Adam. It divides by the gradient's own size,
#
# $$\Delta\theta = -\alpha\, \frac{\hat m}{\sqrt{\hat v} + \epsilon}, \qquad g \to N g \;\Rightarrow\; \hat m \to N \hat m,\; \sqrt{\hat v} \to N \sqrt{\hat v} \tag{5}$$
#
# Kingma & Ba 2015 ([arXiv:1412.6980](https://arxiv.org/abs/1412.6980)), algorithm 1, and section
# 2.1 on rescaled gradients. Its curve does not change. That of SGD does, as if the rate were eight
# times as high. So compare parallel runs with SGD, as this library's tests do.


# %%
def train_with(tx, mark_varying):
    """The losses of a run with the hand-written gradient."""
    gradient = sharded_gradient(mark_varying)

    def one(carry, i):
        params, opt_state = carry
        images = digits[rows[i % len(rows)]]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(train_key, i), jnp.arange(BATCH_SIZE)
        )
        updates, opt_state = tx.update(gradient(params, images, keys), opt_state)
        return (optax.apply_updates(params, updates), opt_state), mean_loss(params, images, keys)

    run = jax.jit(
        lambda params: jax.lax.scan(
            one, (params, tx.init(params)), jnp.arange(quick.steps(150, 5))
        )[1]
    )
    return np.asarray(run(params))


panels = figures.axes(2)
for panel, (name, tx_here) in zip(
    panels, {"SGD": optax.sgd(5e-3), "Adam": optax.adam(2e-3)}.items(), strict=True
):
    right_curve, wrong_curve = train_with(tx_here, True), train_with(tx_here, False)
    panel.plot(right_curve, color=figures.BLUE, label="right")
    panel.plot(wrong_curve, "--", color=figures.RED, label=f"{NUM_DEVICES} times too long")
    panel.set(title=name, xlabel="step", ylabel="loss, nats")
    apart = float(np.max(np.abs(right_curve - wrong_curve)))
    print(f"{name}: the two curves are at most {apart:.3g} nats apart")
    if name == "Adam":
        assert apart < 0.05
    else:
        assert apart > 0.5 or NUM_DEVICES == 1
panels[0].legend()
figures.plt.show()

# %% [markdown]
# ## 8. Killed, and resumed to the same bits
#
# The state after step $t$, the key and the data decide everything that comes: no hidden generator,
# no position in a data loader, no clock. So a checkpoint needs the state alone, and a run that was
# killed at any moment ends with the bits of one that was not. Let us kill one. The program below
# saves every 10 steps, and ends at step 37 as the system would end it when memory runs out: by
# SIGKILL, without a last word. Test:
# [`test_a_run_killed_at_a_random_moment_resumes_to_the_same_bits`](../tests/test_experiments.py).

# %%
import subprocess
import tempfile
from pathlib import Path

PROGRAM = '''
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.data import sets
from jaxgen.runs import checkpoint
from jaxgen.train import augment, step

images = jnp.asarray(sets.load("digits").images).reshape(-1, 64)
tx = optax.adam(1e-2)


def loss(params, example, key):
    """A linear autoencoder that sees noisy images."""
    noisy = example["image"] + 0.3 * jax.random.normal(key, (64,))
    value = jnp.mean((example["image"] - params["up"] @ (params["down"] @ noisy)) ** 2)
    return value, {"loss": value}


def run(folder, stop, killed_at=None):
    """Trains to step `stop`, from the newest checkpoint in the folder, if there is one."""
    down_key, up_key, train_key, data_key = jax.random.split(jax.random.key(0), 4)
    params = {
        "down": 0.1 * jax.random.normal(down_key, (8, 64)),
        "up": 0.1 * jax.random.normal(up_key, (64, 8)),
    }
    state = step.init_state(params, tx)
    one = jax.jit(step.gradient_step(augment.on_uint8(loss), tx))
    with checkpoint.open_manager(Path(folder)) as manager:
        if manager.all_steps():
            state, _ = checkpoint.restore(manager, state)
            print("resumed at step", int(state.step))
        while state.step < stop:
            rows = jax.random.randint(jax.random.fold_in(data_key, state.step), (64,), 0, len(images))
            state, _ = one(state, {"image": images[rows]}, train_key)
            if state.step % 10 == 0:
                checkpoint.save(manager, int(state.step), state)
                manager.wait_until_finished()
            if state.step == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
    return jax.tree.map(np.asarray, state)


if __name__ == "__main__":
    run(sys.argv[1], stop=60, killed_at=37)
'''
folder = Path(tempfile.mkdtemp())
(folder / "resumable.py").write_text(PROGRAM)
child = subprocess.run(
    [sys.executable, folder / "resumable.py", folder / "killed"],
    capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
)  # fmt: skip
print("the process ended with", child.returncode, "and left", sorted(os.listdir(folder / "killed")))
assert child.returncode == -9, child.stderr

sys.path.append(str(folder))
import resumable

resumed = resumable.run(folder / "killed", stop=60)
straight = resumable.run(folder / "straight", stop=60)
assert all(jax.tree.leaves(jax.tree.map(np.array_equal, resumed, straight)))
print("step", resumed.step, "of both runs: equal in every bit of parameters and optimiser")

# %% [markdown]
# The scripts do the same with `--resume`, and check more: a digest of each array of the state, so that a damaged
# checkpoint is passed over for the one before it, and whether data and options are still those of
# the start.
#
# ## 9. Donated buffers
#
# A pure step needs room for the old state and the new one. If nobody wants the old one again, it
# can be *donated*: the compiler then puts the new state into its memory. `parallelize` donates the
# state. The price: the caller's old state is gone, and using it is an error.

# %%
from jaxgen.measure import cost

batch = {"image": images}
kept = jax.jit(library_step).lower(state_0, batch, train_key)
given_away = jax.jit(library_step, donate_argnums=0).lower(state_0, batch, train_key)
for label, lowered in (("old state kept", kept), ("old state donated", given_away)):
    memory = cost.cost(lowered, lowered.compile())
    print(
        f"{label:18} {memory.peak_bytes / 1e6:.2f} MB at the peak, "
        f"{memory.alias_bytes / 1e6:.2f} MB of the old state are written over"
    )

mesh_of_one = parallel.data_mesh(1)
donating = parallel.parallelize(library_step, mesh_of_one)
old = parallel.put(jax.tree.map(np.asarray, state_0), mesh_of_one)
new, _ = donating(old, batch, train_key)
try:
    donating(old, batch, train_key)  # as when a cell is run a second time
    raise AssertionError("a donated state has to be refused")
except (RuntimeError, ValueError) as error:
    print(type(error).__name__ + ":", str(error).splitlines()[0][:150])
new, _ = donating(new, batch, train_key)  # right: the new state takes the old one's name

# %% [markdown]
# So write `state, metrics = go(state, batch, key)`, with the same name on both sides. In a
# notebook, a cell that is run twice then trains twice as long, instead of failing. Keep a copy
# with `jax.tree.map(jnp.copy, state)` if you need one. Test:
# [`test_the_state_never_grows_a_device_axis_and_is_donated`](../tests/test_parallel.py).
#
# ## 10. Roofline: how fast could it be?
#
# A step is not faster than its arithmetic, nor than the memory that it touches:
#
# $$\text{images per second} \;\le\; \min\left( \frac{B \cdot \text{peak operations per second}}{\text{operations}},\; \frac{B \cdot \text{bytes per second}}{\text{bytes}} \right) \tag{6}$$
#
# Williams et al. 2009 ([doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)),
# section 3. With the batch $B$ the operations grow; the bytes for the parameters do not: for
# each parameter Adam moves eight floats a step (parameter and two moving averages, read and
# written; the gradient, written and read). So a small batch is bounded by memory and a large one by
# arithmetic, and between them lies the smallest batch that uses a device well. Predicted first,
# then measured, for a wider network. Tests:
# [`test_a_dense_training_step_is_counted_as_by_hand`](../tests/test_measure.py),
# [`test_ceilings_are_positive_and_finite`](../tests/test_measure.py).

# %%
from jaxgen.measure import ceilings, products

limits = ceilings.measure(jnp.float32)


def wide_loss(params, example, key):
    """A linear autoencoder of a million parameters."""
    value = jnp.mean((example["image"] - (example["image"] @ params["down"]) @ params["up"]) ** 2)
    return value, {"loss": value}


def wide_state():
    wide = {"down": jnp.zeros((1024, 512)), "up": jnp.zeros((512, 1024))}
    return step.init_state(wide, tx)


def step_seconds(batch):
    """The seconds of a step, the best of several; the state is donated, as in a real run."""
    run, state, times = jax.jit(wide_step, donate_argnums=0), wide_state(), []
    for _ in range(quick.steps(10, 2)):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(run(state, batch, train_key))
        times.append(time.perf_counter() - began)
    return min(times)


wide_step = step.gradient_step(wide_loss, tx)
num_params = 2 * 1024 * 512
batch_sizes = [1, 64] if quick.ON else [1, 8, 64, 512]
bounds, measured = [], []
for b in batch_sizes:
    batch = {"image": jnp.ones((b, 1024))}
    operations = products.flops(wide_step, wide_state(), batch, train_key)
    np.testing.assert_allclose(operations, 5 * 2 * b * 1024 * 512)  # two forward, three back
    by_products = b * limits.flops_per_second / operations
    by_memory = b * limits.bytes_per_second / (4 * 8 * num_params)
    bounds.append((by_products, by_memory))
    rate = b / step_seconds(batch)
    measured.append(rate)
    roof = min(by_products, by_memory)
    print(f"B = {b:3}: predicted {roof:9,.0f} images/s, measured {rate:9,.0f}, {rate / roof:.0%}")

panel = figures.axes(height=3)
by_products, by_memory = np.array(bounds).T
panel.loglog(batch_sizes, by_products, "--", color=figures.TEXT, label="arithmetic")
panel.loglog(batch_sizes, by_memory, ":", color=figures.TEXT, label="memory")
panel.loglog(
    batch_sizes, np.minimum(by_products, by_memory), color=figures.BLUE, label="predicted (6)"
)
panel.loglog(batch_sizes, measured, "o", color=figures.ORANGE, label="measured")
panel.set(
    title="The roof over a training step",
    xlabel="batch",
    ylabel="images per second",
    xticks=batch_sizes,
    xticklabels=batch_sizes,
)
panel.minorticks_off()
panel.legend()
figures.plt.show()

# %% [markdown]
# The shape is predicted, with its bend; the height is reached by the largest batch only. At small
# batches the gradient is written and read once more than (6) counts, and products with one row leave
# most of a core's width unused. In between, arithmetic and Adam's traffic follow each other, where (6)
# lets them overlap. At 512 images the products are nearly all that there is; the peak is a measurement
# too, so a percent above it is noise. What a real network adds, such as activations, counts in neither bound.
# [Benchmarks](../docs/benchmarks.md) has the systems of this library.
#
# ## 11. Exercises
#
# Each check says right or wrong, offline.
#
# **1.** By mistake, every two neighbours of a batch of 128 share a key, so that $\rho = 1$ within
# a pair and 0 between pairs. How many times as large is the standard deviation of the mean loss as
# it should be?

# %%
from checks import functional_training as check

answer = None  # a number
check.shared_in_pairs(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# 64 independent pairs in place of 128 independent examples: the variance doubles.
#
# ```python
# check.shared_in_pairs(np.sqrt(2))
# ```
#
# </details>
#
# **2.** Write the keys of the examples on one device: device $d$ of several holds `count`
# examples, the first of which is example $d \cdot$ `count` of the global batch. The keys must be
# those that one device would give to the whole batch.

# %%
keys_on_device = None  # def keys_on_device(key, step, d, count): ...
check.keys_of_a_shard(keys_on_device)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def keys_on_device(key, step, d, count):
#     places = d * count + jnp.arange(count)
#     return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), places)
#
#
# check.keys_of_a_shard(keys_on_device)
# ```
#
# Splitting the key by device would be just as random, and another run for every number of devices.
#
# </details>
#
# **3.** A dense layer takes 784 pixels to 500 features. How many operations do its products take in
# one training step of a batch of 128, when the gradient with respect to the pixels is not needed?

# %%
answer = None  # a number
check.operations(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# One product forward, one for the gradient of the kernel, each $2 \cdot 128 \cdot 784 \cdot 500$.
#
# ```python
# check.operations(2 * 2 * 128 * 784 * 500)
# ```
#
# </details>
#
# **4.** This step runs under `shard_map` on 8 devices. Parameters stay equal everywhere, the
# gradient has the right length, and yet the run differs from that on one device, by more than the
# order of sums. Which line is it?
#
# ```python
# 1    def on_device(params, opt_state, images, key, step):
# 2        params_here = jax.tree.map(lambda x: jax.lax.pcast(x, "data", to="varying"), params)
# 3        step_key = jax.random.fold_in(key, step)
# 4        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(len(images)))
# 5        grads = jax.grad(mean_loss)(params_here, images, keys)
# 6        grads = jax.lax.pmean(grads, "data")
# 7        updates, opt_state = tx.update(grads, opt_state)
# 8        return optax.apply_updates(params, updates), opt_state
# ```

# %%
answer = None  # the number of a line
check.faulty_line(answer)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Line 4 counts the examples of the device, so that all eight devices draw the same noise: a key
# used eight times. It has to count from `jax.lax.axis_index("data") * len(images)`.
#
# ```python
# check.faulty_line(4)
# ```
#
# </details>
