# SPDX-License-Identifier: MIT
"""XLA's CPU backend is made fast here; no network knows of it.

Users import

    tune.tune_cpu                          the one call, before anything is computed
"""
