# SPDX-License-Identifier: MIT
"""Scripts, each run by its path: `python experiments/vae.py`. The benchmarks import them."""

import sys
from pathlib import Path

# in front, where Python itself puts the folder of a script that it runs: behind, an installed
# `parts`, `gan` or `vae` would be imported in place of ours
sys.path.insert(0, str(Path(__file__).parent))
