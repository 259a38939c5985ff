# SPDX-License-Identifier: MIT
"""What makes XLA's CPU backend fast; no network knows of it."""
