# SPDX-License-Identifier: MIT
"""Stable Diffusion with the last Flax networks of diffusers and transformers, and their scheduler.

diffusers 0.40 and transformers 5 have no Flax networks. An environment with the last that do:

    pip install -e . && pip install diffusers==0.39.0 transformers==4.57.6

(pip then says that jaxgen needs a newer huggingface-hub; random weights need no Hub.)
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import diffusers
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from diffusers.models.unets import unet_2d_condition_flax
from diffusers.models.vae_flax import FlaxAutoencoderKL
from diffusers.schedulers.scheduling_ddim_flax import FlaxDDIMScheduler
from transformers.models.clip import modeling_flax_clip

from benchmarks.sd.sd_models import Model, num_parameters
from benchmarks.sd.sd_programs import GUIDANCE, SCHEDULER, Size
from jaxgen.measure import turns
from jaxgen.types import Array, Params
from jaxgen.weights import configs, layout

CLASSES: dict[str, Any] = {
    "unet": unet_2d_condition_flax.FlaxUNet2DConditionModel,
    "vae": FlaxAutoencoderKL,
    "text_encoder": modeling_flax_clip.FlaxCLIPTextModel,
    "text_encoder_2": modeling_flax_clip.FlaxCLIPTextModelWithProjection,
}
ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}
WEIGHTS = ("kernel", "scale", "embedding")  # Flax's names of "weight", by kind of layer


class Parts(NamedTuple):
    """The parts of the pipeline, as functions without arguments."""

    run: dict[str, Callable[[], Array]]
    parameters: dict[str, int]

    def first(self, part: str) -> tuple[np.ndarray, None]:
        """The output of a part, in jaxgen's layout; the memory that it needs is not known."""
        output = np.asarray(self.run[part](), np.float32)
        return np.moveaxis(output, 1, -1) if output.ndim == 4 else output, None

    def candidate(self, part: str) -> turns.Candidate:
        def run(count: int) -> None:
            output = None
            for _ in range(count):
                output = self.run[part]()
            jax.block_until_ready(output)

        return turns.Candidate(run)


def start(model: Model, size: Size, begin: Any, dtype: str) -> Parts:
    """The pipeline's parts, not yet compiled. Whole images are one program, as its users ran it.

    begin: the arrays that jaxgen started from, a `benchmarks.diffusion.Start`.
    """
    kind = jnp.dtype(dtype)
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    networks = {name: _network(name, config, kind) for name, config in model.configs.items()}
    params = {name: _params(networks[name], model, name, kind) for name in networks}
    pipe = _Pipe(networks, model.networks.is_xl, size)
    ids = {name: jnp.asarray(chunks.ids[:, 0]) for name, chunks in begin.chunks.items()}
    noise = jnp.asarray(begin.inputs.noise).transpose(0, 3, 1, 2)
    context = jnp.asarray(_halves(begin.text.context), kind)
    pooled, sizes = None, None
    if begin.text.pooled is not None:
        pooled = jnp.asarray(_halves(begin.text.pooled), kind)
        sizes = jnp.asarray(np.concatenate([begin.inputs.time_ids] * 2))

    texts, step = jax.jit(pipe.texts), jax.jit(pipe.step)
    decode, images = jax.jit(pipe.decode), jax.jit(pipe.images)
    zero = jnp.int32(0)
    run: dict[str, Callable[[], Any]] = {
        "text encoder": lambda: texts(params, ids)[0],
        "UNet step": lambda: step(params["unet"], zero, noise, context, pooled, sizes),
        "VAE decode": lambda: decode(params["vae"], noise),
        "images": lambda: images(params, ids, noise, sizes),
    }
    counts = {name: num_parameters(tree) for name, tree in params.items()}
    encoders = sum(count for name, count in counts.items() if name.startswith("text_encoder"))
    parameters = {
        "text encoder": encoders, "UNet step": counts["unet"], "VAE decode": counts["vae"],
        "images": sum(counts.values()),
    }  # fmt: skip
    return Parts(run, parameters)


class _Pipe:
    """The Flax pipelines of diffusers between their networks; latents are [B, C, H, W]."""

    def __init__(self, networks: dict[str, Any], is_xl: bool, size: Size) -> None:
        self.networks, self.is_xl, self.size = networks, is_xl, size
        options = {name: x for name, x in SCHEDULER.items() if name != "_class_name"}
        self.scheduler: Any = FlaxDDIMScheduler(**options)
        self.state = self.scheduler.set_timesteps(self.scheduler.create_state(), size.num_steps)

    def texts(self, params: Any, ids: dict[str, Array]) -> tuple[Array, Array | None]:
        """The context [B, T, E] and, in XL, the pooled text [B, P]."""
        contexts, pooled = [], None
        for name, own in ids.items():
            network = self.networks[name]
            encoding = network(own, params=params[name], output_hidden_states=self.is_xl)
            contexts.append(
                encoding.hidden_states[-2] if self.is_xl else encoding.last_hidden_state
            )
            pooled = encoding.text_embeds if name == "text_encoder_2" else None
        return jnp.concatenate(contexts, axis=-1), pooled

    def step(
        self, params: Params, i: Array, latents: Array, context: Array, pooled: Any, sizes: Any
    ) -> Array:
        t = self.state.timesteps.astype(jnp.int32)[i]
        both = self.scheduler.scale_model_input(self.state, jnp.concatenate([latents] * 2), t)
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
        times = jnp.broadcast_to(t, len(both))
        eps = self.networks["unet"].apply({"params": params}, both, times, context, added).sample
        negative, positive = jnp.split(eps.astype(jnp.float32), 2)
        guided = negative + GUIDANCE * (positive - negative)
        return self.scheduler.step(self.state, guided, t, latents).prev_sample

    def decode(self, params: Params, latents: Array) -> Array:
        """The pictures of latents: uint8 [B, 3, H, W]."""
        vae = self.networks["vae"]
        latents = latents / vae.config.scaling_factor
        picture = vae.apply({"params": params}, latents, method=vae.decode).sample
        unit = (picture.astype(jnp.float32) / 2 + 0.5).clip(0, 1)
        return jnp.round(unit * 255).astype(jnp.uint8)

    def images(self, params: Any, ids: dict[str, Array], noise: Array, sizes: Any) -> Array:
        pairs = [self.texts(params, ids) for _ in range(2)]
        context = jnp.concatenate([context for context, _ in pairs])
        pooled = jnp.concatenate([p for _, p in pairs if p is not None]) if self.is_xl else None

        def body(i: Array, latents: Array) -> Array:
            return self.step(params["unet"], i, latents, context, pooled, sizes)

        return self.decode(params["vae"], jax.lax.fori_loop(0, self.size.num_steps, body, noise))


def _network(name: str, config: dict[str, Any], kind: Any) -> Any:
    if name.startswith("text_encoder"):
        return CLASSES[name](transformers.CLIPTextConfig(**config), dtype=kind, _do_init=False)
    fixed = {key: _hashable(value) for key, value in config.items()}
    return CLASSES[name].from_config(fixed, dtype=kind)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _params(network: Any, model: Model, name: str, kind: Any) -> Params:
    """jaxgen's parameters with the names of Flax diffusers.

    Raises ValueError for a parameter that only one of them has.
    """
    shapes = jax.eval_shape(lambda: network.init_weights(jax.random.key(0), *_init_args(name)))
    known: dict[Any, Any] = flax.traverse_util.flatten_dict(shapes)
    stored = layout.to_tensors(model.params[name], configs.conv_1x1(model.configs[name]))
    params = {}
    for key, tensor in stored.items():
        path = next((p for p in _paths(key) if p in known), None)
        if path is None:
            raise ValueError(f"Flax diffusers' {name} has no place for {key}")
        value = np.asarray(tensor.read(), np.float32)
        if path[-1] == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        if value.shape != known[path].shape:
            raise ValueError(f"{name}: {key} is {value.shape} and Flax has {known[path].shape}")
        params[path] = jnp.asarray(value, kind)
    missing = known.keys() - params.keys()
    if missing:
        raise ValueError(f"{name} has no {sorted(missing)}, which Flax diffusers has")
    return flax.traverse_util.unflatten_dict(params)


def _init_args(name: str) -> tuple[Any, ...]:
    """The arguments of init_weights after the key: in transformers, the shape of token ids."""
    return ((1, 1),) if name.startswith("text_encoder") else ()


def _paths(key: str) -> Iterator[tuple[str, ...]]:
    """The paths where Flax may have a tensor of PyTorch.

    diffusers joins numbers to names, transformers does not.
    """
    layer, kind = key.rsplit(".", 1)
    joined = re.sub(r"(\w+)\.(\d+)", r"\1_\2", layer).split(".")
    renamed = [*joined[:-1], ATTENTION.get(joined[-1], joined[-1])]
    for route in (layer.split("."), joined, renamed):
        for last in WEIGHTS if kind == "weight" else (kind,):
            yield (*route, last)


def _halves(pairs: np.ndarray) -> np.ndarray:
    """The pairs [B, 2, ...] as diffusers has them: all negative ones, then all positive ones."""
    return np.concatenate([pairs[:, 0], pairs[:, 1]])
