# SPDX-License-Identifier: MIT
"""Stable Diffusion as candidates of a race: its parts one by one, and whole images."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sd import sd_models, sd_programs
from benchmarks.sd.sd_models import Model
from benchmarks.sd.sd_programs import Size
from jaxgen.measure import cost, products, turns
from jaxgen.stable_diffusion import placement, programs
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.types import Array

PARTS = ("text encoder", "UNet step", "VAE decode", "images")


class Part(NamedTuple):
    """A part of the pipeline after its first call."""

    candidate: turns.Candidate  # a unit of work is one call
    facts: dict[str, Any]
    output: np.ndarray  # of the first call, which a peer has to equal


class Start(NamedTuple):
    """The arrays on the host that all candidates start from."""

    chunks: Any  # token ids by encoder, a text for each image
    text: Text  # context [B, 2, T, E], pooled [B, 2, P]
    inputs: Any  # of the UNet; the decoder gets the noise of it


class Compiled(NamedTuple):
    """A program after its first call."""

    call: Callable[..., Any]
    facts: dict[str, Any]
    output: Any  # of the first call


def start(model: Model, size: Size) -> tuple[dict[str, Part], Start]:
    """All parts of jaxgen's pipeline, compiled and run once, and what they started from."""
    sd_programs.check(model.networks, size)
    run = programs.build(model.networks)
    encoders = {name: model.params[name] for name in model.networks.encoders}
    chunks = jax.device_put(sd_programs.chunks(model.networks, size))
    embed = _compiled(run.embed, (encoders, chunks), encoders, {"clip_skip": 0})
    no_blank = jnp.zeros((size.batch_size, 2), bool)
    text = run.stack([embed.output] * 2, no_blank)
    inputs = placement.place_inputs(None, sd_programs.inputs(model.networks, size, text))
    begin = Start(*jax.device_get((chunks, _as_float32(text), inputs)))

    unet, vae = model.params["unet"], model.params["vae"]
    fixed, state = run.begin(unet, inputs)
    first_state = jax.tree.map(jnp.copy, state)  # step donates its own
    step = _compiled(run.step, (unet, inputs, fixed, np.int32(0), state), unet)
    cut = {"cut": sd_programs.decoder_cut(model.networks, size)}
    decode = _compiled(run.decode, (vae, inputs.noise), vae, cut)

    def whole() -> Array:
        texts = [embed.call(encoders, chunks) for _ in range(2)]
        text = run.stack(texts, no_blank)
        now = inputs._replace(context=text.context, pooled=text.pooled)
        return decode.call(vae, _latents(run, step.call, unet, now, size))[0]

    latents, picture = np.asarray(step.output[0].latents[0]), np.asarray(decode.output[0])
    begin_flops = products.flops(run.begin, unet, inputs)  # once an image, not in every step
    steps = chain(partial(step.call, unet, inputs, fixed), first_state, size.num_steps)
    encodings = calls(partial(embed.call, encoders, chunks))
    decodings = calls(partial(decode.call, vae, inputs.noise))
    parts = {
        "text encoder": Part(encodings, embed.facts, np.asarray(begin.text.context[:, 1])),
        "UNet step": Part(steps, step.facts, latents),
        "VAE decode": Part(decodings, decode.facts, picture),
    }
    times = ((embed, 2), (step, size.num_steps), (decode, 1))
    return parts | {"images": _images(whole, model, times, begin_flops)}, begin


def _images(
    whole: Callable[[], Array],
    model: Model,
    times: Sequence[tuple[Compiled, int]],
    begin_flops: int,
) -> Part:
    """Whole images, drawn once; their costs are the sum of the parts', each times its calls."""
    began = time.perf_counter()
    pictures = np.asarray(whole())
    elapsed = time.perf_counter() - began
    # other devices run all steps as one program, which `whole` compiled just now
    earlier = [part for part, count in times if count < 3 or jax.default_backend() == "cpu"]
    compiling = sum(part.facts["trace_s"] + part.facts["compile_s"] for part in earlier)
    facts = {
        "time_to_first_step_s": compiling + elapsed,
        "parameters": sd_models.num_parameters(model.params),
        "product_flops_per_step": begin_flops
        + sum(count * part.facts["product_flops_per_step"] for part, count in times),
    }
    return Part(calls(whole), facts, pictures)


def _latents(run: Any, step: Any, params: Any, inputs: Any, size: Size) -> Array:
    """The latents after all steps, as the pipeline runs them: one dispatch, on CPU one a step."""
    if jax.default_backend() != "cpu":
        rest = inputs._replace(noise=np.zeros(0, np.float32))
        return run.latents(params, rest, jnp.copy(inputs.noise))
    fixed, state = run.begin(params, inputs)
    for i in range(size.num_steps):
        state, estimate = step(params, inputs, fixed, np.int32(i), state)
        jax.block_until_ready(estimate)
    return state.latents[0]


def _compiled(fn: Any, args: tuple, params: Any, static: dict[str, Any] | None = None) -> Compiled:
    """The program for these arguments, after one call; params: those of the network in args."""
    static = static or {}
    began = time.perf_counter()
    lowered = fn.lower(*args, **static)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    costs = cost.cost(lowered, compiled)
    flops = products.flops(partial(fn, **static), *args)
    started = time.perf_counter()
    output = jax.block_until_ready(compiled(*args))
    times = {"trace_s": traced - began, "compile_s": done - traced}
    times["first_run_s"] = time.perf_counter() - started
    facts = {
        **times, "time_to_first_step_s": sum(times.values()), "product_flops_per_step": flops,
        "compiler_flops_per_step": costs.flops, "compiler_bytes_per_step": costs.bytes_accessed,
        "program_memory_bytes": costs.peak_bytes,
        "parameters": sd_models.num_parameters(params),
    }  # fmt: skip
    return Compiled(compiled, facts, output)


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def calls(call: Callable[[], Any]) -> turns.Candidate:
    """A candidate that repeats the same call."""

    def run(count: int) -> None:
        output = None
        for _ in range(count):
            output = call()
        jax.block_until_ready(output)

    return turns.Candidate(run)


def chain(step: Callable[..., Any], state: Array, num_steps: int) -> turns.Candidate:
    """A candidate whose calls each go on from the state of the one before: step donates it."""
    done = 0

    def run(count: int) -> None:
        nonlocal state, done
        for _ in range(count):
            state, _ = step(np.int32(done % num_steps), state)
            done += 1
        jax.block_until_ready(state)

    return turns.Candidate(run)
