# SPDX-License-Identifier: MIT
"""Attention: one function for every network, and the rule that picks its implementation."""

import functools
import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxgen import fields
from jaxgen.types import Array

IMPLEMENTATIONS = ("cudnn", "pallas", "xla", "chunked")
MIB = 2**20
KERNEL_KEYS = 512  # from so many on attention on TPUs goes through a kernel
# of the function that is being traced: None, or (the mesh,) of `for_inference`
_INFERENCE: ContextVar[tuple[Mesh | None] | None] = ContextVar("inference", default=None)


def for_inference(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """The function, whose attention may use the TPU's kernel when it is traced.

    The kernel must know how arrays are divided: as in the pipeline, images along the axis "data" of
    `mesh` and heads along "model"; None is one device. And it has no gradient here.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        token = _INFERENCE.set((mesh,))
        try:
            return function(*args, **kwargs)
        finally:
            _INFERENCE.reset(token)

    return run


def attention(
    q: Array, k: Array, v: Array, *, causal: bool = False, implementation: str | None = None
) -> Array:
    """softmax(q k^T / sqrt(D)) v, Vaswani et al. 2017 (arXiv:1706.03762) eq. 1.

    q: [B, T, heads, D], k and v: [B, S, heads, D] -> [B, T, heads, D] in the dtype of q. Scores
    and softmax are float32. `causal` lets token i see tokens 0..i. The implementation is chosen by
    `choose_implementation` unless it is named. Raises ValueError for a name that does not exist.
    """
    backend, capability = current_backend()
    if implementation is None:
        score_bytes = 4 * math.prod(q.shape[:3]) * k.shape[1]
        implementation = choose_implementation(
            backend, capability, q.dtype, q.shape[-1], score_bytes, causal,
            k.shape[1] if _INFERENCE.get() else 0,
        )  # fmt: skip
    match implementation:
        case "cudnn":
            return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
        case "pallas" if not causal:
            from jaxgen.nn import tpu_attention  # Pallas takes a while to import

            return tpu_attention.flash_attention(q, k, v, *(_INFERENCE.get() or (None,)))
        case "xla":
            return whole_attention(q, k, v, causal)
        case "chunked" if not causal:
            return chunked_attention(q, k, v, score_block_bytes(backend))
    raise ValueError(
        f"attention implementation {fields.shown(implementation)} with causal={causal} does not "
        f"exist; use one of {', '.join(IMPLEMENTATIONS)} ('chunked' and 'pallas' are not "
        "causal), or None to choose"
    )


def choose_implementation(
    backend: str,
    compute_capability: tuple[int, int],
    dtype: jnp.dtype,
    head_dim: int,
    score_bytes: int,
    causal: bool = False,
    inference_keys: int = 0,
) -> str:
    """The fastest implementation that exists for these shapes: one of `IMPLEMENTATIONS`.

    cuDNN's flash attention takes 16-bit types and head sizes that are multiples of 8, up to 128
    from compute capability 8.0 and up to 256 from 9.0 (Hopper).

    The kernel for TPUs is for inference in bfloat16 (`for_inference`; inference_keys: S, or 0
    elsewhere). For XL's heads of 64 it moves, as the compiler counts for v5e and v6e, 0.24 and 0.16
    of XLA's bytes at 1024 keys, 0.06 and 0.04 at 4096; for SD 2.1's 0.76 and 0.51 at 576 keys; to
    text, or at 256 keys, often more than XLA.

    All else goes through XLA, in chunks if the float32 score matrix is larger than
    `score_block_bytes`; causal attention (77 tokens of text) is never that large.
    """
    largest = 256 if compute_capability >= (9, 0) else 128
    fits = dtype in (jnp.float16, jnp.bfloat16) and head_dim % 8 == 0 and head_dim <= largest
    if backend == "gpu" and compute_capability >= (8, 0) and fits:
        return "cudnn"
    whole_lanes = head_dim <= 128 or head_dim % 128 == 0
    many = inference_keys >= KERNEL_KEYS and not causal
    if backend == "tpu" and dtype == jnp.bfloat16 and whole_lanes and many:
        return "pallas"
    return "chunked" if score_bytes > score_block_bytes(backend) and not causal else "xla"


def score_block_bytes(backend: str) -> int:
    """The largest part of the score matrix that is held in memory at once, in bytes.

    On CPU a part stays in the processor's cache between the two products, about four times faster
    at 1024 tokens. Elsewhere it bounds memory: 1024x1024 pixels have 16384^2 scores in the
    autoencoder.
    """
    return 8 * MIB if backend == "cpu" else 256 * MIB


def current_backend() -> tuple[str, tuple[int, int]]:
    """The backend's name and CUDA compute capability, (0, 0) on CPU, TPU and AMD."""
    version = str(getattr(jax.devices()[0], "compute_capability", ""))
    major, _, minor = version.partition(".")
    capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
    return jax.default_backend(), capability


def whole_attention(q: Array, k: Array, v: Array, causal: bool = False) -> Array:
    """Attention with the whole score matrix in memory; shapes as in `attention`."""
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if causal:
        visible = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(visible[None, None], scores, -jnp.inf)

    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))  # [B, heads, T, S]
    total = weights.sum(axis=-1)[..., None]
    # dividing the output instead of the weights touches D columns instead of S
    out = jnp.einsum(
        "bhqk,bkhd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (out / total).swapaxes(1, 2).astype(q.dtype)


def chunked_attention(q: Array, k: Array, v: Array, block_bytes: int) -> Array:
    """Attention for one head and one block of queries after the other; shapes as in `attention`.

    Every block holds the whole batch, so that the batch can be divided over devices.
    """
    b, t, heads, d = q.shape
    num_chunks = -(-4 * b * t * k.shape[1] // block_bytes)  # for each head
    chunk = -(-t // num_chunks)
    q = jnp.pad(q, ((0, 0), (0, num_chunks * chunk - t), (0, 0), (0, 0)))
    blocks = q.reshape(b, num_chunks, chunk, heads, d).transpose(3, 1, 0, 2, 4)
    blocks = blocks.reshape(heads * num_chunks, b, chunk, 1, d)
    k, v = (x.transpose(2, 0, 1, 3)[:, :, :, None] for x in (k, v))  # [heads, B, S, 1, D]

    def attend(block: tuple[Array, Array]) -> Array:
        queries, head = block
        return whole_attention(queries, k[head], v[head])

    out = jax.lax.map(attend, (blocks, jnp.arange(heads * num_chunks) // num_chunks))
    out = out.reshape(heads, num_chunks, b, chunk, d).transpose(2, 1, 3, 0, 4)
    return out.reshape(b, num_chunks * chunk, heads, d)[:, :t]
