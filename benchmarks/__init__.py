# SPDX-License-Identifier: MIT
"""The speed of jaxgen, beside its peers and the device's limits: `python -m benchmarks`."""
