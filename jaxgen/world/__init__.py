# SPDX-License-Identifier: MIT
"""A rendered world of coloured shapes: pictures with captions, endlessly, from a key."""
