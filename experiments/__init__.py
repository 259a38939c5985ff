# SPDX-License-Identifier: MIT
"""Scripts, each run by its path: `python experiments/vae.py`. The benchmarks import them."""
