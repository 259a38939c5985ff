# SPDX-License-Identifier: MIT
"""Networks are computed here: Flax linen modules, without keys, losses or files.

Users import

    autoencoder, gan, classifier           the small ones, dense and convolutional
    stable_diffusion.{clip, unet, ...}     Stable Diffusion's; module names are diffusers'
    functional                             init and apply of a module as plain functions
"""
