# SPDX-License-Identifier: MIT
"""Which compiled programs became worse than in results that are committed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RISE = 1.05  # more than this is worse
FIELDS = ("kernels", "launches", "bytes", "temp_bytes")
FUSED_ATTENTION = "__cudnn$fmhaSoftmax"


def read(path: Path) -> list[Row]:
    """The rows of a result. Raises ValueError for a file that is no result of GPU programs."""
    try:
        rows = json.loads(path.read_text())["rows"]
        if all(row["kind"] == "gpu" for row in rows):
            return rows
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; name a committed result") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no result of compile_for_gpu; name one, as results/gpu.json")


def worse(before: Sequence[Row], now: Sequence[Row]) -> list[str]:
    """A sentence for each way in which a program is worse than before.

    A program that was not compiled before is one too: its results have to be committed.
    """
    known = {_key(row): row for row in before if not row["error"]}
    sentences = []
    for row in now:
        if row["error"]:
            continue  # is a failure already
        place = f"{row['num_devices']} {row['target']}, {row['program']}"
        if _key(row) not in known:
            sentences.append(f"{place}: is not in the results to compare with; commit its row")
            continue
        sentences += [f"{place}: {what}" for what in _worse(known[_key(row)], row)]
    return sentences


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
