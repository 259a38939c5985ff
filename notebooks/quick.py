# SPDX-License-Identifier: MIT
"""Training is shortened here when a notebook is only tried: JAXGEN_NOTEBOOK_QUICK=1.

No cell is skipped. Claims about a trained model hold after the full training only:

    assert quick.ON or mse < 0.02
"""

import os

ON = os.environ.get("JAXGEN_NOTEBOOK_QUICK") == "1"


def steps(full: int, short: int) -> int:
    """The number of steps to train: `full`, or `short` in a quick run."""
    return short if ON else full
