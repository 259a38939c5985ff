# SPDX-License-Identifier: MIT
"""Arrays to what people look at: grids, curves, animations, PNG files."""
