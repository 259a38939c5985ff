# SPDX-License-Identifier: MIT
"""Seeded damage to every kind of file that jaxgen reads, and what its readers make of it."""
