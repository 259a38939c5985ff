# SPDX-License-Identifier: MIT
"""The batch, as a loss of one example sees it: for objectives that are of the whole batch."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.types import DATA_AXIS, Array


def all_examples(v: Array) -> Array:
    """Gathers the values of all examples of the global batch, in its order: v [...] -> [B, ...].

    Without an enclosing vmap the batch is this example, B = 1. Only the innermost vmap is gathered,
    the one over examples: call it outside of a vmap over samples. Inside pmap and shard_map it
    gathers over the axis `DATA_AXIS` too, so that a loss does not depend on how the batch is
    divided. Gradients flow to all examples. With microbatches it sees one of them.
    """
    here = _gathered(v)
    try:
        return lax.all_gather(here, DATA_AXIS, tiled=True)
    except NameError:  # jax's error for an axis that nothing maps: the batch is global already
        return here


@jax.custom_batching.custom_vmap
def _gathered(v: Array) -> Array:
    """A vmap rule, as jaxgen.nn.norm has one: collectives over a vmap's axis fail in shard_map."""
    return v[None]


@_gathered.def_vmap
def _(axis_size: int, in_batched: list[bool], v: Array) -> tuple[Array, bool]:
    return (v if in_batched[0] else jnp.broadcast_to(v, (axis_size, *v.shape))), False
