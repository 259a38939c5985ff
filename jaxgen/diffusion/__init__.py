# SPDX-License-Identifier: MIT
"""How noise becomes an image: schedules, samplers as tables, and the one loop that runs them."""
