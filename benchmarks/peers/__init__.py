# SPDX-License-Identifier: MIT
"""The peers of jaxgen in a race: the same work in PyTorch and in Flax diffusers."""
