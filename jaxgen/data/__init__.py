# SPDX-License-Identifier: MIT
"""Files and data sets to examples: uint8 images with labels or captions."""
