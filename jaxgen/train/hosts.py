# SPDX-License-Identifier: MIT
"""The processes of a run on several hosts, found by a cluster manager or the environment."""

import os
import re

import jax

from jaxgen import files

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS (the host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID "
    "(from 0)"
)


def join() -> None:
    """Finds the other processes, through the cluster manager or the environment's variables.

    Raises ValueError where neither says which processes there are, or the variables nothing clear.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is not None and not re.fullmatch(r"\S+:\d+", address):
        shown = files.printable(address, 80)
        raise ValueError(f"JAX_COORDINATOR_ADDRESS is {shown!r}; give the host:port of process 0")
    count, index = _number("JAX_NUM_PROCESSES", 1), _number("JAX_PROCESS_ID", 0)
    if count is not None and index is not None and index >= count:
        raise ValueError(f"JAX_PROCESS_ID is {index}; use 0 to {count - 1}, by JAX_NUM_PROCESSES")
    try:
        # a dead process is noticed after this long instead of 100 s, and ends the others
        jax.distributed.initialize(
            num_processes=count, process_id=index, heartbeat_timeout_seconds=30
        )
    except ValueError as error:  # of what is missing
        raise ValueError(
            f"--distributed: {error} Start the processes by a cluster manager that JAX knows, or "
            f"set {VARIABLES} for each"
        ) from error


def _number(name: str, least: int) -> int | None:
    """Reads a variable that holds a whole number; None where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not (re.fullmatch("[0-9]{1,9}", text) and int(text) >= least):
        shown = files.printable(text, 80)
        raise ValueError(f"{name} is {shown!r}; give a whole number, {least} or more")
    return int(text)
