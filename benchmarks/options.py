# SPDX-License-Identifier: MIT
"""The options of `python -m benchmarks`; each class is a group of its help."""

from dataclasses import dataclass, field
from typing import Any

import tyro


@dataclass(frozen=True)
class Training:
    """How jaxgen trains AE, VAE and GAN; None takes several ways for the device."""

    dispatch: tuple[str, ...] | None = None  # step (one per dispatch), scan (many)
    parallel: tuple[str, ...] | None = None  # jit, pmap, shard_map
    num_models: tuple[int, ...] | None = None  # models trained at once by vmap
    num_devices: int | None = None  # None takes all
    scan_steps: int | None = None  # per dispatch of scan; None: 50, or 10 for conv networks on CPU


@dataclass(frozen=True)
class StableDiffusion:
    """How Stable Diffusion draws; None takes what suits model and device."""

    checkpoint: str | None = None  # a real model (folder, file or Hub id), not random weights
    resolutions: tuple[int, ...] | None = None  # pixels of a side
    num_steps: int | None = None  # sampling steps of an image
    kernel_layout: str | None = None  # of convolutions: cudnn, see StableDiffusion


@dataclass(frozen=True)
class Timing:
    """How long is measured."""

    turns: int = 5  # of each candidate
    seconds: float = 0.5  # of one turn, about
    minutes: float | None = None  # begin no case after this long; None: 9 on a GPU, else no limit


@dataclass(frozen=True)
class Config:
    """What is measured."""

    quick: bool = False  # few cases, few turns: two minutes on two CPU cores
    models: tuple[str, ...] = ("autoencoder", "vae", "gan")  # also sd15, sd21, sdxl
    networks: tuple[str, ...] = ("dense", "conv")  # of AE, VAE and GAN
    batch_sizes: tuple[int, ...] | None = None  # images per step, over all devices
    dtypes: tuple[str, ...] | None = None  # float32, bfloat16
    # pytorch, pytorch_compile, pytorch_graphs, flax_diffusers (Stable Diffusion only); None takes
    # all that are installed
    peers: tuple[str, ...] | None = None
    no_peers: bool = False  # measure jaxgen alone
    output: str = "runs/benchmark"  # results go to this path with .json and .png
    training: tyro.conf.OmitArgPrefixes[Training] = field(default_factory=Training)
    stable_diffusion: tyro.conf.OmitArgPrefixes[StableDiffusion] = field(
        default_factory=StableDiffusion
    )
    timing: tyro.conf.OmitArgPrefixes[Timing] = field(default_factory=Timing)


def check(config: Config) -> None:
    """Raises ValueError for numbers that are out of range."""
    counts: dict[str, Any] = {
        "--turns": config.timing.turns, "--scan-steps": config.training.scan_steps,
        "--num-steps": config.stable_diffusion.num_steps,
        "--num-models": config.training.num_models, "--batch-sizes": config.batch_sizes,
    }  # fmt: skip
    for flag, value in counts.items():
        values = value if isinstance(value, tuple) else (value,)
        if any(v is not None and v < 1 for v in values):
            raise ValueError(f"{flag} is {' '.join(map(str, values))}; use 1 or more")
    times = {"--seconds": config.timing.seconds, "--minutes": config.timing.minutes}
    for flag, value in times.items():
        if value is not None and not value > 0:
            raise ValueError(f"{flag} is {value}; use a positive time")
    if not config.models:
        raise ValueError("--models names nothing; use autoencoder, vae, gan, sd15, sd21 or sdxl")
