# SPDX-License-Identifier: MIT
"""What `benchmark.py` measures and how it is shown."""
