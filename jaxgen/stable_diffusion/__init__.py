# SPDX-License-Identifier: MIT
"""Texts become pictures: the pipeline, its pure core, and what it loads.

The way of a prompt, each step a file that knows only those before it or below it:

    pipeline     StableDiffusion: the call
    request      Request, the call as data, and BatchRequest, the same in arrays
    call         Request -> BatchRequest: all checks (image_arguments: of images and masks, ...)
    embedder     texts of the batch -> context: prompts (token ids), text_encoding (CLIP)
    inputs       Inputs: all arrays of a batch
    generate     Inputs -> latents: `begin` once, `step` for every row of the sampler's table
    decoding     latents -> pictures, in pieces
    programs     what is compiled;  networks, loading: modules and parameters;  placement: devices

Users import

    jaxgen.StableDiffusion                                    the pipeline
    jaxgen.stable_diffusion.request.Request                   for `StableDiffusion.inputs`
    jaxgen.stable_diffusion.text_encoding.Text                what `StableDiffusion.embed` returns
    jaxgen.stable_diffusion.inputs.Inputs                     what `StableDiffusion.inputs` returns
    jaxgen.stable_diffusion.generate                          generate, latents, begin, step
    jaxgen.stable_diffusion.placement.mesh_of                 a mesh over several devices
"""
