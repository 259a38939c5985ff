# SPDX-License-Identifier: MIT
"""What a network computes: Flax linen modules, without keys, losses or files."""
