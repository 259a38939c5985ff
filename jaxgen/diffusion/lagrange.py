# SPDX-License-Identifier: MIT
"""Lagrange polynomials, which every multistep method integrates."""

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.polynomial import polyfromroots


def basis(nodes: np.ndarray) -> list[Polynomial]:
    """The polynomials that are 1 at their own node and 0 at the others, one per node."""
    polynomials = []
    for k, node in enumerate(nodes):
        others = np.delete(nodes, k)
        polynomials.append(Polynomial(polyfromroots(others)) / np.prod(node - others))
    return polynomials
