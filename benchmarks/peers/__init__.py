# SPDX-License-Identifier: MIT
"""What jaxgen is raced against: the same work in PyTorch and in Flax diffusers."""
