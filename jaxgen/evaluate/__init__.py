# SPDX-License-Identifier: MIT
"""How good a model is: likelihoods, and a classifier's view of samples."""
