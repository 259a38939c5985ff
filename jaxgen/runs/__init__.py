# SPDX-License-Identifier: MIT
"""One training run, from its options to its folder."""
