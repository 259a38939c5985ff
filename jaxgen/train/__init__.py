# SPDX-License-Identifier: MIT
"""How parameters change: objectives, steps, parallel modes and the loop."""
