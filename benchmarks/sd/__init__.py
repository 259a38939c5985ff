# SPDX-License-Identifier: MIT
"""Stable Diffusion as it is measured: published shapes, and inputs by size."""
