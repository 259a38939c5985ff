# SPDX-License-Identifier: MIT
"""How good a model is: likelihoods and sample statistics. Pure."""
