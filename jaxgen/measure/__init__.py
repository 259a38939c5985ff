# SPDX-License-Identifier: MIT
"""The measurement of speed: candidates that take turns, costs of programs, limits of the device."""
