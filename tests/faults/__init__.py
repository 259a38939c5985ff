# SPDX-License-Identifier: MIT
"""The fault matrix: what `--resume` makes of runs that were damaged, killed or cut off."""
