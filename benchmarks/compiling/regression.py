# SPDX-License-Identifier: MIT
"""Which compiled programs became worse than in results that are committed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from benchmarks import result_file
from benchmarks.compiling import gpu
from benchmarks.sd import sd_models
from jaxgen.nn import attention
from jaxgen.stable_diffusion import loading

Row = dict[str, Any]
RISE = 1.05  # more than this is worse
FIELDS = ("kernels", "launches", "bytes", "temp_bytes")
FUSED_ATTENTION = "__cudnn$fmhaSoftmax"


def read(paths: Sequence[Path]) -> list[Row]:
    """The rows of results, the oldest result first; the dates are those of their environments.

    Raises ValueError for a file that is no result of GPU programs.
    """
    results = [result_file.read(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        if not _is_comparable(result):
            raise ValueError(
                f"{path} is no result of compile_for_gpu; name one, as "
                "benchmarks/results/gpu_h100_sd15.json"
            )
    results.sort(key=lambda result: result["environment"]["date"])
    return [row for result in results for row in result["rows"]]


def _is_comparable(result: Row) -> bool:
    """Whether a result has what `worse` reads, which a comparison with itself shows."""
    rows, date = result["rows"], result["environment"].get("date")
    try:
        _ = {_key(row): _worse(row, row) for row in rows if not row["error"]}
        return bool(rows) and isinstance(date, str) and all(row["kind"] == "gpu" for row in rows)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def worse(before: Sequence[Row], now: Sequence[Row]) -> list[str]:
    """A sentence for each way in which a program is worse than before.

    A program that was not compiled before is one too: its results have to be committed. Of one
    that is there twice, the later row counts.
    """
    known = {_key(row): row for row in before if not row["error"]}
    sentences = []
    for row in now:
        if row["error"]:
            continue  # is a failure already
        place = f"{row['num_devices']} {row['target']}, {row['program']}"
        fused, rule = row["calls"].get(FUSED_ATTENTION, 0), fused_by_rule(row)
        if fused < rule:
            sentences.append(
                f"{place}: attention is fused in {fused} places, by the rule in {rule}"
            )
        if _key(row) not in known:
            sentences.append(f"{place}: is not in the results to compare with; commit its row")
            continue
        sentences += [f"{place}: {what}" for what in _worse(known[_key(row)], row)]
    return sentences


def fused_by_rule(row: Row) -> int:
    """How many attentions of a UNet, whose model its name says, the rule gives to cuDNN.

    0 for any other program: a text encoder stops before its last layers.
    """
    name = re.match(r"(\w+)( in \w+)?, .*: UNet", row["program"])
    if name is None:
        return 0
    dtype, capability = jnp.dtype(row["dtype"]), gpu.TARGETS[row["target"]]
    rules = [
        attention.choose_implementation("gpu", capability, dtype, size, score_bytes=0)
        for size in _head_sizes(name[1])
    ]
    return rules.count("cudnn")


def _head_sizes(model: str) -> list[int]:
    """The features of a head, for each attention of a UNet."""
    unet = sd_models.networks(model, jnp.float32).unet
    heads, channels = loading.attention_heads(unet), unet.block_out_channels
    heads_of = dict(zip(channels, heads * (len(channels) // len(heads)), strict=True))
    leaves: dict[tuple[str, ...], Any] = flatten_dict(loading.shapes(unet))
    widths = [x.shape[-1] for path, x in leaves.items() if path[-2:] == ("to_q", "kernel")]
    return [width // heads_of[width] for width in widths]


def _key(row: Row) -> tuple[Any, ...]:
    return row["target"], row["num_devices"], row["program"]


def _worse(old: Row, new: Row) -> list[str]:
    sentences = [
        f"{name} rose from {old[name]:,} to {new[name]:,}"
        for name in FIELDS
        if new[name] > RISE * old[name]
    ]
    fused = [row["calls"].get(FUSED_ATTENTION, 0) for row in (old, new)]
    if fused[1] < fused[0]:
        sentences.append(f"attention is fused in {fused[1]} places and was in {fused[0]}")
    if new["alias_bytes"] * RISE < old["alias_bytes"]:
        sentences.append(
            f"{new['alias_bytes']:,} bytes of arguments are used again and "
            f"{old['alias_bytes']:,} were: a donation is lost"
        )
    if new["dtype"] == "bfloat16" and new["wide_convolutions"]:
        sentences.append(f"{new['wide_convolutions']} convolutions have operands in float32")
    return sentences
