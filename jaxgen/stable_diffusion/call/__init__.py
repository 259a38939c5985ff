# SPDX-License-Identifier: MIT
"""A call of the pipeline is checked here and brought into arrays, before any long work.

arguments            the whole: Request -> BatchRequest
image_arguments      images, masks, latents and sizes
control_arguments    what ControlNets follow, and when
sampler_arguments    the table of the sampler, and guidance in its rows
"""
