# SPDX-License-Identifier: MIT
"""What prompts say of several texts and of time: their notation, and the texts of every step."""
