# SPDX-License-Identifier: MIT
"""The files of the states of `iwae_table.py`: one for each run, whole or not there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import files
from parts.iwae_cells import Run


class Store(NamedTuple):
    """The files of runs that have these settings in common."""

    folder: Path
    settings: str  # what a continuation must share with the run that it goes on with
    digest: str  # of the training images
    ending: str = ""  # of the files' names

    def path(self, run: Run) -> Path:
        """Names the file of a run."""
        return self.folder / f"{run.name}{self.ending}.msgpack"

    def save(self, runs: Sequence[Run], states: Any) -> None:
        """Writes the state of each run, states with leaves [S, ...]."""
        on_host = jax.device_get(states)
        for i, run in enumerate(runs):
            state = jax.tree.map(lambda x, i=i: x[i], on_host)
            content = flax.serialization.to_bytes(
                {"settings": self.settings, "digest": self.digest, "state": state}
            )
            sealed = files.sealed(content)
            files.write_whole(self.path(run), lambda p, c=sealed: p.write_bytes(c))

    def restored(self, run: Run, state: Any) -> Any:
        """Reads a run's state, or returns the caller's where it has none.

        Raises ValueError for a damaged file, for one of other settings, and for a file that could
        not be replaced.
        """
        path = self.path(run)
        files.check_writable(path)
        if not path.is_file():
            return state
        with files.one_error(path):
            content: Any = flax.serialization.msgpack_restore(files.unsealed(path.read_bytes()))
            if content["settings"] != self.settings:
                raise ValueError(f"{path} is of {content['settings']}, not of {self.settings}")
            if content.get("digest", self.digest) != self.digest:  # older files have none
                raise ValueError("trained on other images than these; use another --folder")
            return flax.serialization.from_state_dict(state, content["state"])

    def check_finite(self, runs: Sequence[Run], values: np.ndarray, states: Any, num: int) -> None:
        """Raises ValueError where a run is not finite, with its step, once the others are saved.

        values: the losses [S] of an epoch, which do not show its last update; the states do.
        """
        leaves = [values, *jax.tree.leaves(states)]
        finite = np.all([jnp.isfinite(x).reshape(len(x), -1).all(axis=1) for x in leaves], axis=0)
        if finite.all():
            return
        healthy, faulty = np.flatnonzero(finite), np.flatnonzero(~finite).tolist()
        self.save([runs[i] for i in healthy.tolist()], jax.tree.map(lambda x: x[healthy], states))
        kept = [self.path(runs[i]) for i in faulty if self.path(runs[i]).is_file()]
        raise ValueError(
            f"{', '.join(runs[i].name for i in faulty)}: no longer finite after step {num}, at "
            f"{values[faulty]} nats; their last good states: {', '.join(map(str, kept)) or 'none'}"
        )
