# SPDX-License-Identifier: MIT
"""Stable Diffusion's networks; their submodules carry diffusers' names.

Import from here: `unet.UNet2DConditionModel`, `controlnet.ControlNetModel`, `clip.CLIPTextModel`,
`autoencoder_kl.AutoencoderKL`.
"""
