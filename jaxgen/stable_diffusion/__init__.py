# SPDX-License-Identifier: MIT
"""Texts to pictures: the pipeline, its pure core, and what it loads."""
