# %% [markdown]
# # 4 · Stable Diffusion: noise becomes a picture
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxgen/jaxgen/blob/main/notebooks/04_stable_diffusion.ipynb)
# [view source](04_stable_diffusion.py)
#
# Noise becomes a picture in small steps. It does so as a *latent*, a small array that stands for the
# picture. A network, the UNet, looks at a noisy latent and at a text and says which part of the latent
# is noise; a sampler takes some of that away; after twenty rounds a decoder turns the latent into
# pixels. The page takes at most four minutes on two CPU cores.
#
# ```
# text -> tokenizer -> text encoder -> context
#                                         v
# noise -> x_t -> UNet(x_t, t, context) -> sampler -> x_t-1 -> ... -> z -> decoder -> picture
#          '---------------- every step ----------------'
# ```
#
# Part one is the whole of it, in about a hundred lines, with nothing hidden but the layers of the
# three networks. Part two uses the library, looks into the networks, and breaks things. The weights
# are those of `shapes`, a Stable Diffusion in miniature that comes with jaxgen: the same classes
# and the same files as Stable Diffusion 1.5 at a four-thousandth of its arithmetic (a guided step of
# a picture: 0.38 GFLOP, counted below, and [1,585](../benchmarks/results/tpu_v5e_sd15.json)). [The next
# notebook](05_text_to_image_from_nothing.ipynb) trains it from nothing.

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
# ## Part one: from a text to a picture, everything in sight
#
# ### Three networks and their weights
#
# A checkpoint is a folder: for each network a `config.json` with its sizes and a `.safetensors`
# file with its arrays. In JAX a network is a *function*. Its weights are not inside it but an
# argument, a nested dictionary of arrays, and so everything below is a pure function of weights,
# text and a random key.

# %% tags=["whole"]
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.cpu import tune
from jaxgen.stable_diffusion import loading
from jaxgen.weights import hub, tokenizer

tune.tune_cpu()  # before JAX starts; on a GPU or TPU it does nothing
checkpoint = hub.open_checkpoint("shapes")
tokens, networks = checkpoint.tokenizers["tokenizer"], loading.networks(checkpoint)
unet, vae, text_encoder = networks.unet, networks.vae, networks.encoders["text_encoder"]
params = loading.load(checkpoint, networks)  # {"unet": ..., "vae": ..., "text_encoder": ...}

# %%
import matplotlib.pyplot as plt

import figures
import quick

for name, tree in params.items():
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    path, leaf = jax.tree_util.tree_leaves_with_path(tree)[0]
    first = jax.tree_util.keystr(path, simple=True, separator="/")
    print(f"{name:12} {count:>9,} weights, such as {first} {leaf.shape}")

# %% [markdown]
# ### A text becomes numbers
#
# The tokenizer cuts a text into pieces that it knows and numbers them; the list is framed by a
# first and a last token and filled up to a fixed length, so that one compiled program serves every
# text. The text encoder (CLIP's: Radford et al. 2021, arXiv:2103.00020) is a small transformer. It
# turns each token into a vector that knows the tokens before it: *red* in "a red star" is not the
# *red* of "a red ring".
#
# Checked by [`test_plain_prompts_give_the_ids_of_the_tokenizer`](../tests/test_prompts.py), and
# against transformers in [tests/oracle](../tests/oracle/test_tokenizer_transformers.py).


# %% tags=["whole"]
def token_ids(texts):
    """Texts -> ids int32 [B, T], each framed by a first and a last token and filled up."""
    rows = [tokenizer.encode(tokens, text) for text in texts]
    rows = [[tokens.bos_id, *row, tokens.eos_id] for row in rows]
    return np.array([row + [tokens.pad_id] * (tokens.max_length - len(row)) for row in rows])


@jax.jit
def encode(params, ids):
    """Ids [B, T] -> context [B, T, E]: what the UNet will attend to."""
    return text_encoder.apply({"params": params["text_encoder"]}, ids).context


# %%
PROMPT = "a large red star above a small blue ring on white"
ids = token_ids([PROMPT])
words = [{number: piece for piece, number in tokens.vocab.items()}[int(i)] for i in ids[0]]
print(ids[0][:13], words[:13], sep="\n")
context = encode(params, ids)
print("context:", context.shape)

# %% [markdown]
# ### How much noise there is at which time
#
# Training destroyed latents $z$ by mixing in noise $\varepsilon \sim N(0, I)$, a little more at
# each of 1,000 times $t$. Because a sum of Gaussians is a Gaussian, all mixing up to time $t$ is
# one formula:
#
# $$x_t = \sqrt{\bar\alpha_t}\, z + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad
# \bar\alpha_t = \prod_{s \le t} (1 - \beta_s) \tag{1}$$
#
# Ho et al. 2020 (arXiv:2006.11239), eq. 4. The two factors are the cosine and the sine of an angle,
# so that $x_t$ keeps the variance of $z$, which is 1 (by a factor that the decoder undoes, below).
# The $\beta$ are those of Stable Diffusion 1, 2 and XL: their square roots are evenly spaced. Checked by
# [`test_scaled_linear_betas_give_the_known_ends_of_stable_diffusion`](../tests/test_schedule.py).

# %% tags=["whole"]
NUM_TIMES = 1000
betas = np.linspace(0.00085**0.5, 0.012**0.5, NUM_TIMES) ** 2
alphas_cumprod = np.cumprod(1 - betas)  # (1)


def signal_and_noise(t):
    """The two factors of (1); at a time before the first there is no noise left."""
    alpha = alphas_cumprod[t] if t >= 0 else 1.0
    return np.sqrt(alpha), np.sqrt(1 - alpha)


# %%
panel = figures.axes(height=2.0)
panel.plot(np.sqrt(alphas_cumprod), label="signal: factor of $z$")
panel.plot(np.sqrt(1 - alphas_cumprod), label=r"noise: factor of $\varepsilon$")
panel.set_xlabel("time $t$")
panel.legend()
plt.show()

# %% [markdown]
# At $t = 999$ there is almost nothing but noise, which is why drawing may begin with pure noise.
# *Almost*: the factor of $z$ is still 0.068, a fault of this schedule that Lin et al. 2023
# (arXiv:2305.08891) describe and mend.
#
# ### What the UNet says, and guidance
#
# From a noisy latent, its time and a text the UNet predicts $v$, a mixture of the noise and of the
# latent under it (Salimans & Ho 2022, arXiv:2202.00512, appendix D). Stable Diffusion 1.5 predicts
# $\varepsilon$ itself. Knowing $x_t$, each of the three follows from any other:
#
# $$v = \sqrt{\bar\alpha_t}\, \varepsilon - \sqrt{1 - \bar\alpha_t}\, z, \qquad
# \hat z = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, \hat v, \qquad
# \hat\varepsilon = \sqrt{1 - \bar\alpha_t}\, x_t + \sqrt{\bar\alpha_t}\, \hat v \tag{2}$$
#
# The network is asked twice, with the text and with the empty text, and the difference of the
# answers is exaggerated:
#
# $$\hat v = \hat v_\text{empty} + w\, (\hat v_\text{text} - \hat v_\text{empty}) \tag{3}$$
#
# Classifier-free guidance, Ho & Salimans 2022 (arXiv:2207.12598), eq. 6, with $w$ one more than
# theirs. $w = 0$ ignores the text, $w = 1$ is the answer of the network as trained, and pictures
# are usually drawn with 3 to 8. *Why that helps* is a question of part two. Checked by
# [`test_guidance_follows_its_formula_with_a_scale_per_image`](../tests/test_sample.py).


# %% tags=["whole"]
@jax.jit
def guided_v(params, x, t, context, empty, guidance_scale):
    """v of latents [B, h, w, C], guided from the empty text towards the texts by (3)."""
    both, t = jnp.concatenate([x, x]), jnp.full(2 * len(x), t)
    text = jnp.concatenate([empty, context])
    v = unet.apply({"params": params["unet"]}, both, t, text)
    v_empty, v_text = jnp.split(v, 2)
    return v_empty + guidance_scale.reshape(-1, 1, 1, 1) * (v_text - v_empty)


# %% [markdown]
# ### The loop
#
# DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 without its noise) takes the estimate of the
# clean latent and that of the noise, and mixes them again by (1), for an earlier time $t'$:
#
# $$x_{t'} = \sqrt{\bar\alpha_{t'}}\, \hat z
# + \sqrt{1 - \bar\alpha_{t'}}\, \hat\varepsilon \tag{4}$$
#
# If the network were sure of $\hat z$, one step to the end would do. At high noise it cannot be:
# many pictures fit, and its best answer is their average. So it goes a short way, and asks again.
# Checked by [`test_a_model_that_knows_the_image_is_followed_to_it`](../tests/test_samplers.py) and
# by its order of convergence in the same file.


# %% tags=["whole"]
def ddim(predict, x, num_steps):
    """The clean latent from noise x, by a function (x, t) -> v, in num_steps even steps."""
    stride = NUM_TIMES // num_steps
    for t in range((num_steps - 1) * stride + 1, 0, -stride):
        signal, noise = signal_and_noise(t)
        v = predict(x, t)
        z = signal * x - noise * v  # (2)
        eps = noise * x + signal * v
        signal, noise = signal_and_noise(t - stride)
        x = signal * z + noise * eps  # (4)
    return x


# %% [markdown]
# ### The decoder
#
# The latent lives in the small space of an autoencoder, a picture of 8 x 8 places with four
# channels instead of 64 x 64 pixels with three: the UNet has 48 times fewer numbers to deal with.
# For training, latents were multiplied by a factor $f$ that makes their variance 1, since (1) mixes
# them with noise of variance 1; the decoder wants it undone:
#
# $$\text{picture} = \text{decoder}(z / f) \tag{5}$$
#
# Rombach et al. 2022 (arXiv:2112.10752), section 3.3 and appendix G. Checked by
# [`test_latents_are_scaled_for_the_sampler_and_back`](../tests/test_decoding.py).


# %% tags=["whole"]
@jax.jit
def decode(params, z):
    """Latents [B, h, w, C] -> pictures uint8 [B, 8h, 8w, 3]."""
    picture = vae.apply({"params": params["vae"]}, z / vae.scaling_factor, method="decode")  # (5)
    return jnp.round((jnp.clip(picture, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def noise_of(seed):
    """Unit noise [8, 8, 4] of a seed, whose key is split by purpose; the two others wait."""
    _, noise_key, _ = jax.random.split(jax.random.key(seed), 3)
    return jax.random.normal(noise_key, (8, 8, 4))


def draw(params, prompts, seeds, num_steps, guidance_scale):
    """The final latents [B, 8, 8, 4]: one picture for each prompt, seed and guidance scale."""
    context = encode(params, token_ids(prompts))
    empty = encode(params, token_ids([""] * len(prompts)))
    scale = jnp.asarray(guidance_scale, jnp.float32)

    def predict(x, t):
        return guided_v(params, x, t, context, empty, scale)

    return ddim(predict, jnp.stack([noise_of(seed) for seed in seeds]), num_steps)


# %% [markdown]
# That is all. Eight prompts:

# %%
PROMPTS = [
    "a large red star above a small blue ring on white",
    "a small yellow heart left of a large green square on black",
    "a large pink heart on cream",
    "a small orange triangle at the top on gray",
    "a large cyan circle below a small purple cross on black",
    "a big purple diamond right of a small green circle on white",
    "a little blue square on the left and a large yellow star on the right on gray",
    "a large green ring over a small red heart on cream",
]
SEEDS, NUM_STEPS = list(range(8)), quick.steps(20, 2)
latents = draw(params, PROMPTS, SEEDS, NUM_STEPS, [3.0] * 8)
figures.show_grid(decode(params, latents), columns=8)

# %% [markdown]
# ### The library computes the same
#
# `jaxgen.StableDiffusion` is the loop above with everything checked and with every sampler, size
# and kind of guidance. From the same seeds it gives the same latents, and the same pictures to one
# level of 255. The tolerance is for float32: the library embeds all times before the loop, and
# rounds $\bar\alpha$ step by step as PyTorch does.

# %%
import jaxgen

pipe = jaxgen.StableDiffusion.from_pretrained("shapes")
settings = {"num_steps": NUM_STEPS, "guidance_scale": 3.0, "seed": SEEDS}
same = pipe(PROMPTS, sampler="ddim", output="latent", **settings)
print(f"largest difference of a latent: {np.abs(latents - same).max():.1e}")
np.testing.assert_allclose(latents, same, atol=1e-3)
levels = pipe.decode(same).astype(int) - np.asarray(decode(params, latents)).astype(int)
assert np.abs(levels).max() <= 1

# %% [markdown]
# ## Part two: with the library
#
# In a few lines (`num_steps` 50 and `guidance_scale` 7.5 are the defaults, for large models):
#
# ```python
# from PIL import Image
#
# import jaxgen
#
# pipe = jaxgen.StableDiffusion.from_pretrained("shapes")
# images = pipe("a large red star above a small blue ring", num_steps=20, guidance_scale=3.0)
# Image.fromarray(images[0]).save("star.png")  # uint8 [1, 64, 64, 3]
# ```
#
# ### Watching a picture appear
#
# The upper row is the latent that the sampler holds, the lower row the network's present *estimate*
# of the final one, equation (2), each decoded. The estimate begins as an average of everything that
# the prompt allows, a blurred blot; first the background settles, then place and colour, outlines
# last.

# %%
seen = []
watched = pipe(
    PROMPTS,
    **settings,
    on_step=lambda done, total, x, estimate: seen.append((np.array(x), np.array(estimate))),
)
shown = np.linspace(0, len(seen) - 1, 8).round().astype(int)
figures.show_rows({
    "latent": pipe.decode(np.stack([seen[i][0][0] for i in shown])),
    "estimate": pipe.decode(np.stack([seen[i][1][0] for i in shown])),
})  # fmt: skip

# %%
figures.show_gif([pipe.decode(estimate)[:4] for _, estimate in seen[1::3]], columns=4)

# %% [markdown]
# ### Which word looks where
#
# In each attention layer of the UNet every place of the latent asks a question $q$, every token
# offers a key $k$ and a value; the place receives the values of the tokens whose keys fit its
# question:
#
# $$A = \operatorname{softmax}(q\, k^\top / \sqrt{d}) \tag{6}$$
#
# Vaswani et al. 2017 (arXiv:1706.03762), eq. 1. A column of $A$ is a picture of where its word is
# used (Hertz et al. 2022, arXiv:2208.01626). linen, Flax's library of networks, hands out what its
# layers compute, if asked. From that the cell computes the weights $A$ again, and asserts that with
# them the layers give what they gave. The attention that the pipeline runs is checked by
# [`test_attention_equals_its_definition`](../tests/test_attention.py).

# %%
from flax import traverse_util


def wanted(module, method):
    return "attn2" in module.path and module.name in ("to_q", "to_k", "to_v", "attn2")


@jax.jit
def attention_maps(params, x, t, context):
    """Attention of the places of x to the tokens [B, 64, T], a mean over heads and layers."""
    variables, times = {"params": params["unet"]}, jnp.full(len(x), t)
    _, kept = unet.apply(
        variables, x, times, context, capture_intermediates=wanted, mutable="intermediates"
    )
    kept, maps, errors = traverse_util.flatten_dict(kept["intermediates"]), [], []
    for path in [path[:-1] for path in kept if path[-2] == "attn2"]:
        q, k, v = (kept[*path, name, "__call__"][0] for name in ("to_q", "to_k", "to_v"))
        if q.shape[1] != 64:  # the coarser level
            continue
        q, k, v = (h.reshape(*h.shape[:2], 4, -1) for h in (q, k, v))  # 4 heads
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(scores)  # (6)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(len(x), 64, -1)
        last = traverse_util.flatten_dict(params["unet"])
        kernel, bias = (last[*path, "to_out_0", name] for name in ("kernel", "bias"))
        errors.append(jnp.abs(out @ kernel + bias - kept[*path, "__call__"][0]).max())
        maps.append(weights.mean(axis=1))
    return jnp.mean(jnp.stack(maps), axis=0), jnp.stack(errors).max()


context = encode(params, token_ids(PROMPTS))
times = [(NUM_STEPS - 1 - i) * (NUM_TIMES // NUM_STEPS) + 1 for i in range(NUM_STEPS)]
steps = [attention_maps(params, seen[i][0], times[i + 1], context) for i in range(NUM_STEPS - 1)]
assert max(error for _, error in steps) < 1e-4
maps = np.mean([weights for weights, _ in steps], axis=0).reshape(8, 8, 8, -1)  # [B, h, w, T]


# %%
def show_words(row, pictures):
    """A picture, and beside it for each of its words where the picture attends to it."""
    ids = token_ids([PROMPTS[row]])[0]
    names = [{number: piece for piece, number in tokens.vocab.items()}[int(i)] for i in ids]
    count = names.index("<|endoftext|>")
    places = [i for i in range(1, count) if names[i].removesuffix("</w>") not in ("a", "on")]
    panels = figures.axes(1 + len(places), height=1.15)
    panels[0].imshow(pictures[row])
    for panel, i in zip(panels[1:], places, strict=True):
        panel.imshow(pictures[row].mean(-1), cmap="gray", vmin=0, vmax=255)
        heat = maps[row, :, :, i]
        panel.imshow(
            heat / heat.max(),
            cmap="inferno",
            alpha=0.75,
            extent=(0, 64, 64, 0),
            interpolation="bicubic",
        )
        panel.set_title(names[i].removesuffix("</w>"), fontsize=8)
    for panel in panels:
        panel.set_axis_off()
    plt.show()


for row in (0, 1):
    show_words(row, watched)

# %% [markdown]
# ### What a score is
#
# Nobody can write down the density $p(x)$ of pictures, but a network can learn its *score*
# $\nabla_x \log p(x)$: in which direction a noisy picture becomes more likely. Here is a world in
# which all is known, so that nothing has to be believed: points of a plane, in three classes, each
# a Gaussian blob. Mixed with noise by (1), a blob with mean $\mu_c$ and variance $s^2$ is a blob
# again, and the score of the mixture is a weighted mean of arrows towards the blobs:
#
# $$\nabla_x \log p_t(x) = \sum_c r_c(x)\,
# \frac{\sqrt{\bar\alpha_t}\, \mu_c - x}{\bar\alpha_t s^2 + 1 - \bar\alpha_t},
# \qquad r_c(x) = p_t(c \mid x) \tag{7}$$
#
# The network's noise is the score, turned around and scaled:
#
# $$\hat\varepsilon(x, t) = -\sqrt{1 - \bar\alpha_t}\; \nabla_x \log p_t(x) \tag{8}$$
#
# (7) is the derivative of a mixture's logarithm; the cell compares it with automatic
# differentiation. (8) is eq. 3 of Karras et al. 2022 (arXiv:2206.00364) in this notation: the best
# guess of the noise in $x$, in the mean square, is this and nothing else, which is why *a network
# that predicts noise is a model of the density*. Following it from noise to no noise is solving
# their eq. 1, an ordinary differential equation whose solutions have density $p_t$ at every time
# $t$. Test: [`test_order_of_convergence_on_the_gaussian_ode`](../tests/test_samplers.py), with the
# noise of (8) for a single blob.

# %%
MEANS = jnp.array([[-1.5, -0.8], [1.5, -0.8], [0.0, 1.4]])
SPREAD = 0.5


def log_densities(x, alpha):
    """log p_t(x, c) of the three classes at x [2], up to one constant."""
    variance = alpha * SPREAD**2 + 1 - alpha
    return -jnp.sum((x - jnp.sqrt(alpha) * MEANS) ** 2, axis=-1) / (2 * variance)


def score(x, alpha):
    """(7), at a point x [2]."""
    shares = jax.nn.softmax(log_densities(x, alpha))
    arrows = (jnp.sqrt(alpha) * MEANS - x) / (alpha * SPREAD**2 + 1 - alpha)
    return shares @ arrows


def class_score(x, alpha, c):
    """The score of class c alone."""
    return (jnp.sqrt(alpha) * MEANS[c] - x) / (alpha * SPREAD**2 + 1 - alpha)


points = jax.random.normal(jax.random.key(0), (100, 2))
for alpha in (0.9, 0.5, 0.1):
    logarithm = lambda x, a=alpha: jax.nn.logsumexp(log_densities(x, a))  # noqa: E731
    exact = jax.vmap(jax.grad(logarithm))(points)
    np.testing.assert_allclose(jax.vmap(score, (0, None))(points, alpha), exact, atol=1e-5)

# %%
line = np.linspace(-3, 3, 17)
places = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
for panel, t in zip(figures.axes(3, height=2.5), (900, 400, 50), strict=True):
    alpha = alphas_cumprod[t]
    arrows = np.array(jax.vmap(score, (0, None))(places, alpha))
    arrows /= np.sqrt(np.linalg.norm(arrows, axis=-1, keepdims=True) + 1e-6)  # shorter ones grow
    panel.quiver(*places.T, *arrows.T, color=figures.BLUE, width=0.006)
    panel.scatter(*(np.sqrt(alpha) * MEANS).T, color=figures.ORANGE, zorder=3)
    panel.set_title(f"score at t = {t}")
    panel.grid(False)
    panel.set_aspect("equal")
plt.show()

# %% [markdown]
# At much noise all arrows point to the mean of everything, at little noise to the nearest blob:
# decisions fall in between. That is the averaging of the early estimates above.
#
# ### Why guidance sharpens
#
# By Bayes' rule $\log p(c \mid x) = \log p(x \mid c) + \log p(c) - \log p(x)$, so the difference in
# (3) is, up to the factor of (8), the gradient of a *classifier* that nobody trained:
#
# $$\nabla \log p_t(x) + w\, \big(\nabla \log p_t(x \mid c) - \nabla \log p_t(x)\big)
# = \nabla \log p_t(x) + w\, \nabla \log p_t(c \mid x) \tag{9}$$
#
# (Ho & Salimans 2022, section 3.2.) With $w > 1$ a sample goes where the class is *more certain*,
# away from the others, and not to where the class has its mass. How much that sharpens can be
# worked out where a class is $N(0, s^2)$ and everything together $N(0, S^2)$. Let $x$ be divided by
# $\sqrt{\bar\alpha}$, and $\sigma = \sqrt{1 - \bar\alpha} / \sqrt{\bar\alpha}$ be the noise that it
# then has. Then the equation that the sampler solves is linear,
# $dx / d\sigma = \sigma x\, [w / (s^2 + \sigma^2) - (w - 1) / (S^2 + \sigma^2)]$; integrated from a
# large $\sigma$, where $x$ is noise of standard deviation $\sigma$, down to 0 it leaves samples of
# standard deviation
#
# $$s\, (s / S)^{w - 1} \tag{10}$$
#
# To see it, divide by $x$ and integrate: $\log x = \frac w2 \log(s^2 + \sigma^2) - \frac{w - 1}2
# \log(S^2 + \sigma^2) + \text{const}$, whose right side is $\log \sigma$ at the large end and
# $\log (s^w / S^{w - 1})$ at 0. Each unit of $w$ multiplies the spread of samples by $s / S$. That is
# much sharper than the density $p(x)\, p(c \mid x)^w$ that guidance is often said to sample, whose
# variance here would be $1 / (w / s^2 - (w - 1) / S^2)$; Bradley & Nakkiran 2024 (arXiv:2408.09000)
# show the difference in general. Both are compared below with jaxgen's own
# DDIM, which gets exact scores in place of a network. Test of the left side of (9):
# [`test_guidance_follows_its_formula_with_a_scale_per_image`](../tests/test_sample.py).

# %%
from functools import partial

from jaxgen.diffusion import sample, schedule, sigmas, timestep_samplers

model = schedule.noise_schedule()  # predicts eps
NUM_EXACT = quick.steps(500, 250)  # steps
table = timestep_samplers.ddim(model, sigmas.timestep_grid(model, NUM_EXACT, "trailing"))
ACS = jnp.asarray(alphas_cumprod, jnp.float32)


@partial(jax.jit, static_argnums=0)
def follow(guided_score, x, w):
    """Final points [N, D] from noise x [N, D], by a function (x, alpha, w) -> score."""

    def eps(x, t):
        alpha = ACS[t.astype(jnp.int32)]
        scores = jax.vmap(guided_score, (0, None, None))(x[:, 0, 0], alpha, w)
        return (-jnp.sqrt(1 - alpha) * scores)[:, None, None]  # (8)

    keys = jax.random.split(jax.random.key(0), len(x))  # DDIM draws nothing from them
    return sample.sample(sample.at_times(eps, table), table, x[:, None, None], keys)[:, 0, 0]


def of_class(x, alpha, w):
    return score(x, alpha) + w * (class_score(x, alpha, 2) - score(x, alpha))  # (9)


noise = jax.random.normal(jax.random.key(1), (quick.steps(3000, 1000), 2))
plain = follow(lambda x, alpha, w: score(x, alpha), noise, 1.0)
guided = {w: follow(of_class, noise, w) for w in (1.0, 2.0, 4.0, 8.0)}
sigma = np.sqrt(1 / alphas_cumprod[-1] - 1)  # where drawing starts: as if no signal were left
reached = 1 - SPREAD / np.sqrt(SPREAD**2 + sigma**2)  # 97 % of the way to the mean
np.testing.assert_allclose(guided[1.0].mean(axis=0), reached * MEANS[2], atol=0.04)
np.testing.assert_allclose(guided[1.0].std(axis=0), SPREAD, rtol=0.05)
assert all(np.diff([samples.std(axis=0).mean() for samples in guided.values()]) < 0)

for panel, (w, samples) in zip(figures.axes(4, height=2.2), guided.items(), strict=True):
    panel.scatter(*plain.T, s=1, color=figures.TEXT, alpha=0.4)
    panel.scatter(*samples.T, s=1, color=figures.ORANGE, alpha=0.6)
    panel.set(title=f"w = {w:g}", xlim=(-3.5, 3.5), ylim=(-2.8, 4.2), aspect="equal")
    panel.grid(False)
plt.show()

# %%
s, S = 0.6, 1.0


def of_gaussian(x, alpha, w):
    everything, own = (-x / (alpha * v + 1 - alpha) for v in (S**2, s**2))
    return everything + w * (own - everything)


scales = np.array([1.0, 2.0, 3.0, 4.0, 6.0])
spreads = np.array([follow(of_gaussian, noise[:, :1], w).std() for w in scales])
np.testing.assert_allclose(spreads, s * (s / S) ** (scales - 1), rtol=0.1)  # (10)
panel, fine = figures.axes(height=2.2), np.linspace(1, 6)
panel.plot(fine, s * (s / S) ** (fine - 1), label="(10)")
panel.plot(fine, (fine / s**2 - (fine - 1) / S**2) ** -0.5, "--", label=r"$p(x)\,p(c\,|\,x)^w$")
panel.plot(scales, spreads, "o", color=figures.RED, label="DDIM with the exact scores")
panel.set(xlabel="guidance scale $w$", ylabel="spread of samples", yscale="log")
panel.legend()
plt.show()

# %% [markdown]
# So guidance trades variety for certainty. The next figure has the same for pictures: one prompt
# that says little, one seed a column, and a guidance scale a row. $w = 0$ ignores the prompt and
# draws anything of the world. Pictures of high $w$ obey and resemble each other; at the end colours
# and outlines break, because (3) has pushed latents to where the UNet has never been.

# %%
rows = {}
for w in (0.0, 1.0, 3.0, 8.0, 25.0):
    latents = draw(params, ["a red star"] * 8, range(20, 28), NUM_STEPS, [w] * 8)
    rows[f"w = {w:g}"] = decode(params, latents)
figures.show_rows(rows)

# %% [markdown]
# What looks right can be measured in this world, since a reader without any network says what a
# picture shows ([`jaxgen.world.reader`](../jaxgen/world/reader.py), checked by
# [`test_every_attribute_is_read_from_rendered_pictures`](../tests/test_world_reader.py)): the share
# of prompts of which everything holds.

# %%
from jaxgen.miniature import captioned
from jaxgen.world import caption, reader, scene

COUNT = quick.steps(16, 8)
scenes = captioned.world_scenes("prompts", COUNT, scene.SEEN, two_objects=1.0)
captions = caption.captions(scenes)


def share_that_follows(**options):
    """The share of the captions' pictures that show all that is asked for."""
    right = []
    for i in range(0, COUNT, 8):
        pictures = pipe(captions[i : i + 8], seed=list(range(i, i + 8)), **options)
        checks = [
            reader.check(scene.take(scenes, i + j), reader.read(p)) for j, p in enumerate(pictures)
        ]
        right += [check["all"] for check in checks]
    return np.mean(right)


ladder = [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 14.0, 25.0]
tried = ladder[:: quick.steps(1, 7)]
shares = [share_that_follows(num_steps=NUM_STEPS, guidance_scale=w) for w in tried]
panel = figures.axes(height=2.2)
panel.semilogx(tried, 100 * np.array(shares), "o-")
panel.set(xlabel="guidance scale", ylabel="% that follow", ylim=(0, 104))
panel.set_xticks(ladder, [f"{w:g}" for w in ladder])
panel.minorticks_off()
plt.show()
assert quick.ON or max(shares) > shares[-1] + 0.2

# %% [markdown]
# ### Guidance scale x sampler
#
# A sampler is a way to solve that differential equation (of the score, above), and all of them go to nearly the same
# picture while guidance is moderate. Where they differ is the far end: methods of higher order
# extrapolate, and break first. `euler_ancestral`, which adds fresh noise at every step, is another
# picture from the start.

# %%
SAMPLERS = ["ddim", "dpmpp_2m", "unipc", "euler_ancestral"]
options = {"num_steps": NUM_STEPS, "guidance_scale": ladder, "seed": [3] * 8}
figures.show_rows(
    {s: pipe([PROMPTS[0]] * 8, sampler=s, **options) for s in SAMPLERS},
    columns=[f"w={w:g}" for w in ladder],
)

# %% [markdown]
# ### Too few steps, by sampler
#
# The same prompt and seed with 2 to 20 evaluations of the UNet. DDIM is of first order: it follows
# the present estimate in a straight line, and early estimates are averages. DPM-Solver++ (Lu et al.
# 2022, arXiv:2211.01095) and UniPC (Zhao et al. 2023, arXiv:2302.04867) remember earlier estimates
# and bend the line. Heun pays two evaluations a step, which is badly spent where there are few. The
# curve is the distance to the limit of many steps; its slope on these axes is the order of the
# method, once steps are small. Orders are checked on an equation with known solution by
# [`test_order_of_convergence_on_the_gaussian_ode`](../tests/test_samplers.py).
#
# `spacing="trailing"` starts every run at the last time. The checkpoint's own "leading" starts at
# 951 with twenty steps and at 501 with two, and then what is pure noise to us is too much noise to
# the network (Lin et al. 2023, arXiv:2305.08891, table 2): a fault of the grid, not of a method.

# %%
BUDGETS = [2, 3, 4, 6, 8, 12, 16, 20] if not quick.ON else [2]
options = {"guidance_scale": 3.0, "seed": SEEDS, "output": "latent", "spacing": "trailing"}
limit = pipe(PROMPTS, num_steps=quick.steps(100, 4), sampler="dpmpp_2m", **options)
rows, curves = {}, {}
for sampler in ["ddim", "heun", "dpmpp_2m", "unipc"]:
    steps = [max(1, (n + 1) // 2) if sampler == "heun" else n for n in BUDGETS]
    finals = [pipe(PROMPTS, num_steps=n, sampler=sampler, **options) for n in steps]
    rows[sampler] = pipe.decode(np.stack([final[0] for final in finals]))
    curves[sampler] = [np.sqrt(np.mean((final - limit) ** 2)) for final in finals]
figures.show_rows(rows, columns=[f"{n}" for n in BUDGETS])

# %%
panel = figures.axes(height=2.4)
for sampler, errors in curves.items():
    panel.loglog(BUDGETS, errors, "o-", label=sampler)
panel.set(xlabel="evaluations of the UNet", ylabel="distance to the limit")
panel.set_xticks(BUDGETS, BUDGETS)
panel.minorticks_off()
panel.legend(ncols=2)
plt.show()
assert quick.ON or curves["dpmpp_2m"][-1] < curves["ddim"][-1]

# %% [markdown]
# DDIM *is* Euler's method. Divide (4) by $\sqrt{\bar\alpha}$ and write
# $\sigma = \sqrt{1 - \bar\alpha} / \sqrt{\bar\alpha}$: what remains is
# $\tilde x' = \tilde x + (\sigma' - \sigma)\, \hat\varepsilon$, with $\tilde x = x / \sqrt{\bar\alpha}$
# (Song et al. 2021, section 4.3; Karras et al. 2022, section 3). Two names, one sampler
# ([`test_euler_is_ddim_in_another_scale`](../tests/test_samplers.py)). On the checkpoint's own grid:

# %%
options |= {"num_steps": NUM_STEPS, "spacing": "leading"}
both = [pipe(PROMPTS, sampler=name, **options) for name in ("ddim", "euler")]
np.testing.assert_allclose(*both, atol=1e-3)

# %% [markdown]
# ### One compiled program for all of that
#
# JAX compiles a function for the shapes of its arguments. In jaxgen a sampler is a *table* of
# coefficients, an argument like the prompt: each sampler is a linear map of the latent, a few older
# outputs and fresh noise. So prompt, seed, guidance, sampler and number of steps are data.
# Everything since the first call ran in the program that the first call compiled
# ([`test_no_setting_compiles_anew`](../tests/test_pipeline.py)):

# %%
compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **about: (
        compilations.append(event) if "backend_compile" in event else None
    )
)
pipe(
    ["a small pink cross on gray"] * 8,
    num_steps=7,
    sampler="DPM++ 2M Karras",
    guidance_scale=4.5,
    seed=99,
)
print(
    len(compilations),
    "programs compiled for another prompt, sampler, number of steps, guidance and seed",
)
assert not compilations

# %% [markdown]
# Each picture also depends on its own seed and on nothing else in the batch, because each owns a
# key ([`test_an_image_does_not_depend_on_its_batch`](../tests/test_pipeline.py)). Another batch
# size, on the other hand, is another program.
#
# ### From a picture, and inside a mask
#
# Drawing need not begin with pure noise. Encode a given picture, noise it by (1) to some time, and
# start there (Meng et al. 2022, arXiv:2108.01073): `strength` is the part of the steps that is run.
# Inside a mask, after every step the places *outside* are put back to the given picture at that
# step's noise level (Lugmayr et al. 2022, arXiv:2201.09865, eq. 8), so that what is new grows
# together with what stays.

# %%
given, wish = watched[5], "a large purple heart right of a small green circle on white"
strengths = (0.0, 0.2, 0.3, 0.35, 0.4, 0.5, 0.7, 1.0)[:: quick.steps(1, 7)]
options = {"num_steps": NUM_STEPS, "guidance_scale": 3.0}
over = [
    pipe([wish] * 8, image=given, strength=strength, seed=[5] * 8, **options)[0]
    for strength in strengths
]
names = ["given", *(f"{strength:g}" for strength in strengths)]
figures.show_rows({"strength": [given, *over]}, columns=names)
assert np.abs(over[0].astype(int) - given).mean() < 12  # only the autoencoder came between

# %%
mask = np.zeros((64, 64), np.uint8)
mask[:, 40:] = 255  # white is made anew
others = ["green square", "purple cross", "pink circle", "orange star"]
others += ["cyan diamond", "red heart", "yellow ring", "blue triangle"]
wishes = [f"a large {other} right of a small green circle on white" for other in others]
inside = pipe(wishes, image=given, mask=mask, strength=1.0, seed=SEEDS, **options)
figures.show_rows({"inpainted": [given, *inside]}, columns=["given", *others])
assert np.abs(inside[:, :, :32].astype(int) - given[:, :32]).mean() < 12

# %% [markdown]
# ### Between two texts
#
# A context is an array, and arrays can be mixed. From the same noise, half a star and half a heart:

# %%
text = pipe.embed(["a large red star on white", "a large blue heart on white"])
parts = np.linspace(0, 1, 8, dtype=np.float32)[:, None, None]
between = jax.tree.map(lambda x: (1 - parts) * x[:1] + parts * x[1:], text)
figures.show_grid(
    pipe(prompt_embeds=between, seed=[4] * 8, num_steps=NUM_STEPS, guidance_scale=3.0), columns=8
)

# %% [markdown]
# ### Right and wrong
#
# Not every picture shows what was asked, least of all with six steps and a guidance scale of 1.5.
# Above each is what an independent reader found at fault; the last row asks for what training never
# said: no colour, no shape, three objects.


# %%
import textwrap


def faults(i, picture):
    """What the picture of caption i gets wrong."""
    check = reader.check(scene.take(scenes, i), reader.read(picture))
    return " ".join(name for name, holds in check.items() if not holds and name != "all")


def show_captioned(pictures, texts, titles):
    """Eight pictures, each between a title and its caption."""
    for panel, picture, text, title in zip(
        figures.axes(8, height=1.9), pictures, texts, titles, strict=True
    ):
        figures.place(panel, picture)
        colour = {"": figures.TEXT, "right": figures.GREEN}.get(title, figures.RED)
        panel.set_title("\n".join(textwrap.wrap(title, 12)[:2]), color=colour, fontsize=7)
        panel.set_xlabel("\n".join(textwrap.wrap(text, 17)), fontsize=6)
    plt.show()


for start in range(0, COUNT, 8):
    texts, seeds = captions[start : start + 8], list(range(start, start + 8))
    drawn = pipe(texts, num_steps=6, guidance_scale=1.5, seed=seeds)
    titles = [faults(start + j, picture) or "right" for j, picture in enumerate(drawn)]
    show_captioned(drawn, texts, titles)

# %%
odd = ["a star", "red", "a red star and a blue ring", "a red star a blue ring a green heart"]
odd += ["a large small red star", "a yellow circle on yellow", "star star star", ""]
strange = pipe(odd, num_steps=NUM_STEPS, guidance_scale=3.0, seed=SEEDS)
show_captioned(strange, odd, [""] * 8)
try:
    pipe("a red dragon")
except ValueError as error:
    print(f"error: {str(error)[:100]}...")

# %% [markdown]
# ### Roofline: how fast should it be?
#
# Before the run: a program can be no faster than its arithmetic at the device's best rate, nor than
# its memory traffic at the device's best rate (Williams et al. 2009,
# [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)). The first is counted from the function's own
# equations, the second asked from the compiler, and the ceilings are measured on this machine. One
# call is one step for eight guided pictures; a picture takes twenty, and the decoder once.

# %%
import roofline

from jaxgen.stable_diffusion import generate
from jaxgen.stable_diffusion.request import Request

inputs = pipe.inputs(Request(PROMPTS, num_steps=20, guidance_scale=3.0))
prepared, state = pipe.programs.begin(params["unet"], inputs)
step = jax.jit(partial(generate.step, unet))
arguments = (params["unet"], inputs, prepared, jnp.int32(0), state)
roof = roofline.predict(step, *arguments, images=8)

# %%
rate = roofline.compare(roof, lambda: step(*arguments))
print(f"so {rate / 20:.1f} pictures/s of 20 steps")
# a count that is beaten would be a wrong count
assert quick.ON or rate < 1.2 * 8 / roof.seconds[0]

# %% [markdown]
# The rest is explained by what the count leaves out. At 8 x 8 places most layers are small: norms,
# softmax and activations move bytes without a product and are not fused into the products; a
# convolution over 8 x 8 places with padding multiplies many zeros that the count omits; and two
# cores wait for each other at the end of every layer. The autoencoder's decoder, once for each
# picture, is not in the count either. For Stable Diffusion 1.5, whose products are far larger, the
# same program runs closer to its limit ([benchmarks](../docs/benchmarks.md)).
#
# ## With a real checkpoint
#
# The same call, with a folder in diffusers' layout, one `.safetensors` file, or a Hub id. It is not
# run here: the weights of Stable Diffusion 1.5 are 1.07 billion numbers, 2.1 GB in bfloat16 (4.3 GB
# in float32), and a picture of 512 x 512 needs about 1 GB more.
#
# ```python
# import jax.numpy as jnp
#
# import jaxgen
#
# model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
# pipe = jaxgen.StableDiffusion.from_pretrained(model, dtype=jnp.bfloat16)
# images = pipe("a lighthouse at dusk", negative_prompt="blurry", num_steps=30, sampler="dpmpp_2m")
# ```
#
# What the call takes, which samplers and checkpoints there are, memory and several devices: [the
# reference](../docs/stable_diffusion.md).
#
# ## Exercises
#
# **1.** How many latents does the UNet process for *one* picture with `sampler="heun"`, 20 steps
# and a guidance scale of 5? (Heun evaluates twice a step, but for the last.)

# %%
from checks import stable_diffusion as checks

evaluations = None
checks.evaluations(evaluations)

# %% [markdown]
# <details><summary>Answer</summary>
#
# 19 steps of two evaluations and one of one are 39; guidance asks with and without the text, which
# doubles that.
#
# ```python
# checks.evaluations(2 * (2 * 20 - 1))
# ```
#
# </details>
#
# **2.** A class is $N(0, 0.5^2)$ in a world that is $N(0, 2^2)$. Samples are drawn with a guidance
# scale of 3. Predict their standard deviation.

# %%
spread = None
checks.spread(spread)

# %% [markdown]
# <details><summary>Answer</summary>
#
# By (10), 0.5 (0.5 / 2)^2.
#
# ```python
# checks.spread(0.5 * (0.5 / 2) ** 2)
# ```
#
# </details>
#
# **3.** Strong guidance raises the contrast of $\hat v$, and so of pictures. Lin et al. 2023
# (arXiv:2305.08891), eq. 15 and 16, scale the guided answer back to the standard deviation of the
# answer with the text. Write it for one image: `(empty, text, w) -> v`, arrays `[h, w, C]`.

# %%
rescaled = None
checks.rescaled(rescaled)

# %% [markdown]
# <details><summary>Answer</summary>
#
# ```python
# def rescaled(empty, text, w):
#     v = empty + w * (text - empty)
#     return v * text.std() / v.std()
#
# checks.rescaled(rescaled)
# ```
#
# </details>
#
# **4.** Find the planted fault. Pictures of this sampler are pale and blurred, the more so the
# fewer steps it gets. Which line is it?
#
# ```python
# def ddim(predict, x, num_steps):
#     stride = NUM_TIMES // num_steps
#     for t in range((num_steps - 1) * stride + 1, 0, -stride):
#         signal, noise = signal_and_noise(t)                    # A
#         v = predict(x, t)                                      # B
#         z = signal * x - noise * v                             # C
#         signal, noise = signal_and_noise(t - stride)           # D
#         eps = noise * x + signal * v                           # E
#         x = signal * z + noise * eps                           # F
#     return x
# ```

# %%
line = None
checks.planted_fault(line)

# %% [markdown]
# <details><summary>Answer</summary>
#
# Line E takes the noise out of the old latent with the factors of the *new* time: D and E are
# exchanged.
#
# ```python
# checks.planted_fault("E")
# ```
#
# </details>
