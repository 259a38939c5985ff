# SPDX-License-Identifier: MIT
"""Parameters change here: objectives, steps, parallel modes and the loop.

Users import

    losses, latent_losses, adversarial     objectives for one example and one key
    step                                   gradient_step, gan_step, scan_steps, vmap_models
    parallel                               data_mesh, put, parallelize
    loop, order, optimizer, augment        the loop, and what it is fed with
"""
