# SPDX-License-Identifier: MIT
"""Speed is measured here: candidates that take turns, costs of programs, limits of the device.

Users import

    turns, products, cost, ceilings, environment
"""
