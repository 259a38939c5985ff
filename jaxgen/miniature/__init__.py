# SPDX-License-Identifier: MIT
"""A small Stable Diffusion of your own: its data, networks, figures and model card.

Users import

    captioned, model, following, model_card
"""
