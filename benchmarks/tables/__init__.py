# SPDX-License-Identifier: MIT
"""Results as tables for the terminal and for pages."""
