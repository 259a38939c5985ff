# SPDX-License-Identifier: MIT
"""Scripts that study a system or make a part of one, each run by its path."""
