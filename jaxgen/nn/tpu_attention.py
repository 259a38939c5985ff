# SPDX-License-Identifier: MIT
"""Attention on TPUs without a score matrix in memory: JAX's Pallas kernel, on any mesh."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as kernel
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgen.types import Array

BLOCKS = (512, 384, 256, 128)  # tokens that are in the chip's fast memory at once


def on_one_device(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(D)) v by Dao et al. 2022 (arXiv:2205.14135), tokens padded to blocks.

    q: [B, T, heads, D], k and v: [B, S, heads, D] -> [B, T, heads, D].
    """
    (b, t, _, d), s = q.shape, k.shape[1]
    rows, columns = block_of(t), block_of(s)
    padded_t, padded_s = padded(t, rows), padded(s, columns)
    segments = None
    if padded_s > s:  # a query sees keys of its own segment: padding is another
        columns_of = (jnp.arange(padded_s) >= s).astype(jnp.int32)
        rows_of = jnp.zeros((b, padded_t), jnp.int32)
        segments = kernel.SegmentIds(rows_of, jnp.broadcast_to(columns_of, (b, padded_s)))
    out = kernel.flash_attention(
        *(
            jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)
            for x, length in ((q, padded_t), (k, padded_s), (v, padded_s))
        ),
        segment_ids=segments,
        sm_scale=d**-0.5,
        block_sizes=kernel.BlockSizes(rows, columns, columns, 1),
    )
    return out.swapaxes(1, 2)[:, :t]


def block_of(tokens: int) -> int:
    """The largest block that leaves little padding; else the one that leaves the least.

    A larger block of queries reads the keys less often.
    """
    little = [block for block in BLOCKS if padded(tokens, block) <= 1.05 * tokens]
    return max(little, default=min(BLOCKS, key=lambda block: padded(tokens, block)))


def padded(tokens: int, block: int) -> int:
    """The number of tokens in whole blocks."""
    return -(-tokens // block) * block


def flash_attention(q: Array, k: Array, v: Array, mesh: Mesh | None) -> Array:
    """`on_one_device`, or on each of a mesh: the compiler cannot divide a kernel by itself.

    Images lie along the axis "data". Along "model" lie heads or, if they cannot be divided,
    queries. What cannot be divided at all, every device of an axis computes.
    """
    if mesh is None:
        return on_one_device(q, k, v)

    def divided(axis: str, count: int) -> str | None:
        return axis if axis in mesh.shape and count % mesh.shape[axis] == 0 else None

    images, heads = divided("data", q.shape[0]), divided("model", q.shape[2])
    queries = None if heads else divided("model", q.shape[1])
    of_queries, of_keys = P(images, queries, heads, None), P(images, None, heads, None)
    run = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(of_queries, of_keys, of_keys), out_specs=of_queries,
        check_vma=False,
    )  # fmt: skip
    return run(q, k, v)
