# SPDX-License-Identifier: MIT
"""Compares what this device computes with float64 on the host, by shape, and times it.

    python -m benchmarks.correctness
    python -m benchmarks.correctness --small --output runs/correctness.json

The exit status is 1 if an error is larger than its type allows.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import result_file
from jaxgen import files, script
from jaxgen.measure import environment
from jaxgen.nn import attention, linear, norm

Row = dict[str, Any]
BOUND = 1e-2  # relative, of bfloat16 results: rounding one costs 2e-3
# queries, keys, heads, features of a head, causal: SD 1.5, XL, a text encoder, the decoder
ATTENTION = {
    "sd15, 64x64": (4096, 4096, 8, 40, False),
    "sd15, 32x32": (1024, 1024, 8, 80, False),
    "sd15, 16x16": (256, 256, 8, 160, False),
    "sd15, 8x8": (64, 64, 8, 160, False),
    "sd15, 64x64, text": (4096, 77, 8, 40, False),
    "sd15, 8x8, text": (64, 77, 8, 160, False),
    "sdxl, 64x64": (4096, 4096, 10, 64, False),
    "sdxl, 32x32, text": (1024, 77, 20, 64, False),
    "text encoder": (77, 77, 12, 64, True),
    "decoder": (4096, 4096, 1, 512, False),
}
IMAGES = ((2, 64, 320), (2, 32, 640), (2, 8, 1280), (1, 256, 128))  # batch, side, channels


@dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    small: bool = False  # a shape of each kind that a CPU computes in seconds
    output: str = "runs/correctness.json"  # results go to this file


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    files.check_writable(Path(config.output))
    rows: list[Row] = []
    content = {"environment": environment.record(), "rows": rows}
    for row in comparisons(config.small):
        rows.append(row)
        result_file.write(Path(config.output), content)
        verdict = "ok" if row["error"] < row["bound"] else "WRONG"
        print(f"{row['case']}: error {row['error']:.1e}, {row['seconds'] * 1e6:.0f} us, {verdict}")
    sys.exit(any(not row["error"] < row["bound"] for row in rows))


def comparisons(small: bool) -> Iterator[Row]:
    """The rows of all comparisons."""
    for name, (queries, keys, heads, features, causal) in ATTENTION.items():
        if small:
            queries, keys = min(queries, 64), min(keys, 77)
            heads = 2
        yield _attention(name, (queries, keys, heads, features), causal)
    for batch, side, channels in IMAGES[2:3] if small else IMAGES:
        for mean in (0, 10):
            yield _norm(batch, side, channels, mean)
    yield _bias_gradient(8 if small else 128)
    yield _convolution(8 if small else 64, 32)


def _attention(name: str, size: tuple[int, int, int, int], causal: bool) -> Row:
    queries, keys, heads, features = size
    q, k, v = (_normal(i, (2, n, heads, features)) for i, n in enumerate((queries, keys, keys)))
    fn = jax.jit(lambda q, k, v: attention.attention(q, k, v, causal=causal))
    out, seconds = _timed(fn, q, k, v)
    q, k, v = (np.asarray(x[:1, :, :1], np.float64) for x in (q, k, v))  # one head is enough
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(features)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    return _row(f"attention, {name}", out[:1, :, :1], exact, seconds)


def _norm(batch: int, side: int, channels: int, mean: float) -> Row:
    x = _normal(0, (batch, side, side, channels)) + jnp.bfloat16(mean)
    layer = norm.GroupNorm(32, 1e-5, jnp.bfloat16)
    params = {"params": {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}}
    normalize: Any = layer.apply
    out, seconds = _timed(jax.jit(lambda x: jax.nn.silu(normalize(params, x))), x)
    groups = np.asarray(x, np.float64).reshape(batch, side * side, 32, -1)
    centred = groups - groups.mean((1, 3), keepdims=True)
    y = (centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
    name = f"norm and SiLU, {batch}x{side}x{side}x{channels}, mean {mean}"
    return _row(name, out, y / (1 + np.exp(-y)), seconds)


def _bias_gradient(batch: int) -> Row:
    slopes = _normal(1, (batch, 14, 14, 32)) + jnp.bfloat16(1)

    def loss(bias: jax.Array, slopes: jax.Array) -> jax.Array:
        return jnp.sum(linear.add(jnp.zeros_like(slopes), bias).astype(jnp.float32) * slopes)

    out, seconds = _timed(jax.jit(jax.grad(loss)), jnp.zeros(32), slopes)
    exact = np.asarray(slopes, np.float64).sum((0, 1, 2))
    return _row(f"gradient of a bias, batch {batch}", out, exact, seconds, 1e-4)


def _convolution(side: int, channels: int) -> Row:
    x, kernel = _normal(0, (1, side, side, channels)), _normal(1, (3, 3, channels, 16))
    params = {"params": {"kernel": kernel, "bias": jnp.zeros(16)}}
    out, seconds = _timed(jax.jit(linear.Conv3x3(16, jnp.bfloat16).apply), params, x)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(
        padded[:, i : i + side, j : j + side] @ np.asarray(kernel[i, j], np.float64)
        for i in range(3)
        for j in range(3)
    )
    return _row(f"convolution, {side}x{side}x{channels}", out, exact, seconds)


def _normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.bfloat16)


def _timed(fn: Callable[..., jax.Array], *args: Any) -> tuple[jax.Array, float]:
    """The result, and the seconds of a call: the fastest of three rounds of ten."""
    out = jax.block_until_ready(fn(*args))
    rounds = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(10):
            out = fn(*args)
        jax.block_until_ready(out)
        rounds.append((time.perf_counter() - began) / 10)
    return out, min(rounds)


def _row(case: str, out: jax.Array, exact: Any, seconds: float, bound: float = BOUND) -> Row:
    error = np.linalg.norm(np.asarray(out, np.float64) - exact) / np.linalg.norm(exact)
    return {"kind": "correctness", "case": case, "error": float(error), "bound": bound} | {
        "seconds": seconds
    }


if __name__ == "__main__":
    script.main(main)
