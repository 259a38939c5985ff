# SPDX-License-Identifier: MIT
"""A rendered world of coloured shapes: as many pictures with captions as wanted, from a key."""
