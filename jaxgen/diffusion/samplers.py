# SPDX-License-Identifier: MIT
"""All sampler factories, by the names that users know.

    factory(schedule, num_steps, *, its own options, start_step=0) -> Table

They live beside their kin: `timestep_samplers` (steps through integer timesteps), `sigma_samplers`
(through noise levels), `dpm_solver`, `deis` and `unipc` (exponential integrators).
"""

from jaxgen.diffusion.deis import deis
from jaxgen.diffusion.dpm_solver import dpm_multistep, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m
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
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "lms",
    "pndm",
    "tcd",
    "unipc",
]
