# SPDX-License-Identifier: MIT
"""Generative models as pure functions, at accelerator speed."""

__version__ = "0.1.0"
