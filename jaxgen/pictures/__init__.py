# SPDX-License-Identifier: MIT
"""Arrays become what people look at: grids, curves, animations, PNG files.

Users import

    images                                 grid, beside, captioned, save, save_gif, save_curves
    latent_space                           samples, interpolation, traversal, manifold
"""
