# SPDX-License-Identifier: MIT
"""Scripts, each run by its path: `python experiments/vae.py`. The benchmarks import them."""

import sys
from pathlib import Path

# where Python looks when it runs one of them: for the others, and for parts/
sys.path.append(str(Path(__file__).parent))
