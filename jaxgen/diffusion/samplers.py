# SPDX-License-Identifier: MIT
"""All samplers as functions of a noise schedule and a grid of noise levels.

    sampler(schedule, grid, *, its own options, start_step=0) -> Table

The grid comes from `sigmas`; `config.from_config` joins both under the names that users know. They
live beside their kin: `timestep_samplers` (steps through integer timesteps), `sigma_samplers`
(through noise levels), `dpm_solver`, `deis` and `unipc` (exponential integrators).
"""

from jaxgen.diffusion.deis import deis
from jaxgen.diffusion.dpm_solver import dpm_multistep, dpmpp_2s
from jaxgen.diffusion.sigma_samplers import dpm2, dpm2_ancestral, euler, euler_ancestral, heun, lms
from jaxgen.diffusion.timestep_samplers import ddim, ddpm, lcm, pndm, tcd
from jaxgen.diffusion.unipc import unipc

__all__ = [
    "ddim",
    "ddpm",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_multistep",
    "dpmpp_2s",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "lms",
    "pndm",
    "tcd",
    "unipc",
]
