# SPDX-License-Identifier: MIT
"""How noise becomes an image: schedules, samplers as tables, and the one loop that runs them.

    from jaxgen.diffusion import config, guidance, sample, schedule

    sampler = config.from_config(scheduler_config, name=None)       # or "dpmpp_2m_karras", ...
    table = sampler(num_steps=30, start_step=0)                     # NumPy, built on the host
    streams = sample.noise_keys(jax.vmap(jax.random.key)(seeds))    # one key per image, [B]

Inside jit, with `table`, the streams and everything else as arguments:

    noise = sample.initial_noise(streams.initial, (h, w, 4))        # or the caller's latents
    x = sample.scaled_noise(table, noise)                           # text to image
    x = sample.noised(table, clean, noise)                          # image to image
    denoise = sample.at_times(model, table)                         # or any function (x, row)
    denoise = guidance.guide(denoise, guidance_scale, guidance_rescale)  # [B] each; omit at scale 1
    latent = sample.sample(denoise, table, x, streams.steps)

`model(x, t)` gets latents already scaled for it and a float32 scalar time, and returns its raw
output: the table knows the prediction type. Under `guide` it gets 2 B latents in pairs (negative,
positive of image 0, then of image 1, ...), and its texts must be ordered alike.

Image to image: `schedule.start_step(num_steps, strength)` says how many steps to skip; the sampler
builds the table of a run that begins there, since methods with history begin anew. Strength 0 is a
table with nothing to run. Masked sampling: `inpainting=sample.Inpainting(mask, clean, noise)`.
To see every step, call `sample.step` from Python, with `sample.first_state(x)` at the start.
`samplers` has the samplers as functions: `samplers.euler(model, sigmas.euler_grid(model, 30))`.
"""
