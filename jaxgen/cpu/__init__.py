# SPDX-License-Identifier: MIT
"""What XLA's CPU backend needs to be fast; no network knows of it."""
