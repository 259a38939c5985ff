# SPDX-License-Identifier: MIT
"""How FAST it is: candidates that take turns, what a step costs, and what the device can give."""
