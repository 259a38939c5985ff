# SPDX-License-Identifier: MIT
"""How good a model is: likelihoods, and what a classifier says of samples."""
