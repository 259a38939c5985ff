# SPDX-License-Identifier: MIT
"""The two stages of experiments/latent_diffusion.py."""
