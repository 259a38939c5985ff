# SPDX-License-Identifier: MIT
"""Training is shortened here when a notebook is only tried: JAXGEN_NOTEBOOK_QUICK=1.

No cell is skipped. Claims about a trained model hold after the full training only:

    assert quick.ON or mse < 0.02
"""

import gc
import os

from jaxgen.measure import ceilings

ON = os.environ.get("JAXGEN_NOTEBOOK_QUICK") == "1"

if ON:
    ceilings.SIDES["cpu"], ceilings.COPY_BYTES["cpu"] = (256,), 2**22
    gc.set_threshold(100_000, 50, 100)  # JAX's traces: a tenth of the time went into walking them
    gc.freeze()


def steps(full: int, short: int) -> int:
    """The number of steps to train: `full`, or `short` in a quick run."""
    return short if ON else full
