# SPDX-License-Identifier: MIT
"""Stable Diffusion as candidates of a race: its parts one by one, and whole images."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sd_models, sd_programs
from benchmarks.sd_models import Model
from benchmarks.sd_programs import Size
from jaxgen.measure import cost, products, turns
from jaxgen.stable_diffusion.programs import place_inputs, programs
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.types import Array

PARTS = ("text encoder", "UNet step", "VAE decode", "images")


class Part(NamedTuple):
    """A part past its first call."""

    candidate: turns.Candidate  # a unit of work is one call
    facts: dict[str, Any]
    output: np.ndarray  # of the first call, for a peer to find again


class Given(NamedTuple):
    """What every candidate starts from, as host arrays."""

    chunks: Any  # token ids by encoder, a text for each image
    text: Text  # context [B, 2, T, E], pooled [B, 2, P]
    inputs: Any  # of the UNet; the decoder gets its noise


class Compiled(NamedTuple):
    """A program past its first call."""

    call: Callable[..., Any]
    facts: dict[str, Any]
    output: Any  # of the first call


def start(model: Model, size: Size) -> tuple[dict[str, Part], Given]:
    """All parts of jaxgen's pipeline, compiled and run once."""
    sd_programs.check(model.networks, size)
    run = programs(model.networks)
    encoders = {name: model.params[name] for name in model.networks.encoders}
    chunks = jax.device_put(sd_programs.chunks(model.networks, size))
    embed = _compiled(run.embed, (encoders, chunks), encoders, {"clip_skip": 0})
    no_blank = jnp.zeros(size.batch_size, bool)
    text = run.pair(embed.output, embed.output, no_blank)
    inputs = place_inputs(None, sd_programs.inputs(model.networks, size, text))
    given = Given(*jax.device_get((chunks, _as_float32(text), inputs)))

    unet, vae = model.params["unet"], model.params["vae"]
    fixed, state = run.begin(unet, inputs)
    kept = jnp.copy(state)  # step gives its buffer away
    step = _compiled(run.step, (unet, inputs, fixed, np.int32(0), state), unet)
    plan = {"plan": sd_programs.decode_plan(model.networks, size)}
    decode = _compiled(run.decode, (vae, inputs.noise), vae, plan)

    def whole() -> Array:
        texts = [embed.call(encoders, chunks) for _ in range(2)]
        text = run.pair(*texts, no_blank)
        now = inputs._replace(context=text.context, pooled=text.pooled)
        return decode.call(vae, _latents(run, step.call, unet, now, size))[0]

    after, picture = np.asarray(step.output[0][0]), np.asarray(decode.output[0])
    prepared = products.flops(run.begin, unet, inputs)  # once an image, not in every step
    chain = _chain(partial(step.call, unet, inputs, fixed), kept, size.num_steps)
    encode, again = partial(embed.call, encoders, chunks), partial(decode.call, vae, inputs.noise)
    found = np.asarray(given.text.context[:, 1])
    parts = {
        "text encoder": Part(_calls(encode), embed.facts, found),
        "UNet step": Part(chain, step.facts, after),
        "VAE decode": Part(_calls(again), decode.facts, picture),
    }
    times = ((embed, 2), (step, size.num_steps), (decode, 1))
    return parts | {"images": _images(whole, model, times, prepared)}, given


def _images(
    whole: Callable[[], Array], model: Model, times: Sequence[tuple[Compiled, int]], prepared: int
) -> Part:
    """Whole images, made once; their costs are those of the parts and of what they begin with."""
    began = time.perf_counter()
    pictures = np.asarray(whole())
    took = time.perf_counter() - began
    # all steps are one program but on CPU, and then it was compiled just now
    used = [part for part, count in times if count < 3 or jax.default_backend() == "cpu"]
    compiling = sum(part.facts["trace_s"] + part.facts["compile_s"] for part in used)
    facts = {
        "time_to_first_step_s": compiling + took,
        "parameters": sd_models.num_parameters(model.params),
        "product_flops_per_step": prepared
        + sum(count * part.facts["product_flops_per_step"] for part, count in times),
    }
    return Part(_calls(whole), facts, pictures)


def _latents(run: Any, step: Any, params: Any, inputs: Any, size: Size) -> Array:
    """All steps, as the pipeline runs them: in one dispatch, but step by step on CPU."""
    if jax.default_backend() != "cpu":
        rest = inputs._replace(noise=np.zeros(0, np.float32))
        return run.latents(params, rest, jnp.copy(inputs.noise))
    fixed, state = run.begin(params, inputs)
    for i in range(size.num_steps):
        state, estimate = step(params, inputs, fixed, np.int32(i), state)
        jax.block_until_ready(estimate)
    return state[0]


def _compiled(fn: Any, args: tuple, params: Any, static: dict[str, Any] | None = None) -> Compiled:
    """The program of these arguments, of which params are the network's, run once."""
    static = static or {}
    began = time.perf_counter()
    lowered = fn.lower(*args, **static)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    told = cost.cost(lowered, compiled)
    flops = products.flops(partial(fn, **static), *args)
    started = time.perf_counter()
    output = jax.block_until_ready(compiled(*args))
    took = {"trace_s": traced - began, "compile_s": done - traced}
    took["first_run_s"] = time.perf_counter() - started
    facts = {
        **took, "time_to_first_step_s": sum(took.values()), "product_flops_per_step": flops,
        "compiler_flops_per_step": told.flops, "compiler_bytes_per_step": told.bytes_accessed,
        "program_memory_bytes": told.peak_bytes,
        "parameters": sd_models.num_parameters(params),
    }  # fmt: skip
    return Compiled(compiled, facts, output)


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _calls(call: Callable[[], Any]) -> turns.Candidate:
    """The same call again and again."""

    def run(count: int) -> None:
        output = None
        for _ in range(count):
            output = call()
        jax.block_until_ready(output)

    return turns.Candidate(run)


def _chain(step: Callable[..., Any], state: Array, num_steps: int) -> turns.Candidate:
    """Each call goes on from the state of the one before; step gives its buffers away."""
    done = 0

    def run(count: int) -> None:
        nonlocal state, done
        for _ in range(count):
            state, _ = step(np.int32(done % num_steps), state)
            done += 1
        jax.block_until_ready(state)

    return turns.Candidate(run)
