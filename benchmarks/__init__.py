# SPDX-License-Identifier: MIT
"""How fast jaxgen is, beside its peers and the device: `python -m benchmarks`."""
