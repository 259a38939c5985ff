# SPDX-License-Identifier: MIT
"""Stable Diffusion with PyTorch diffusers' networks and scheduler, from jaxgen's weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers

from benchmarks.peers.torch_training import device, memory_growth, memory_mark, synchronize
from benchmarks.sd.sd_models import Model
from benchmarks.sd.sd_programs import GUIDANCE, SCHEDULER, Size
from jaxgen.measure import turns
from jaxgen.weights import configs, layout

CLASSES: dict[str, Any] = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}


class Parts(NamedTuple):
    """The parts of the pipeline, as functions without arguments."""

    run: dict[str, Callable[[], torch.Tensor]]
    parameters: dict[str, int]
    itemsize: int  # bytes of a parameter

    def first(self, part: str) -> tuple[np.ndarray, int | None]:
        """The output of a part, in jaxgen's layout, and the device's memory that it needs."""
        before = memory_mark()
        output = self.run[part]().float().cpu().numpy()
        growth = memory_growth(before)
        memory = None if growth is None else growth + self.parameters[part] * self.itemsize
        return np.moveaxis(output, 1, -1) if output.ndim == 4 else output, memory

    def candidate(self, part: str) -> turns.Candidate:
        def run(count: int) -> None:
            for _ in range(count):
                self.run[part]()
            synchronize()

        return turns.Candidate(run)


def start(model: Model, size: Size, begin: Any, dtype: str, mode: str | None) -> Parts:
    """The pipeline's parts, not yet run. mode: of torch.compile, None does not compile.

    begin: the arrays that jaxgen started from, a `benchmarks.diffusion.Start`.
    """
    kind = getattr(torch, dtype)
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    networks: dict[str, Any] = {name: _network(name, model, kind) for name in model.configs}
    if mode is not None:
        vae = networks["vae"]
        vae.decoder = torch.compile(vae.decoder, mode=mode)
        others = {name: n for name, n in networks.items() if name != "vae"}
        networks |= {name: torch.compile(n, mode=mode) for name, n in others.items()}
    pipe = _Pipe(networks, model, size, begin, kind)
    run = {
        "text encoder": lambda: pipe.texts()[0],
        "UNet step": pipe.first_step,
        "VAE decode": lambda: pipe.decode(pipe.noise),
        "images": pipe.images,
    }
    counts = {name: sum(p.numel() for p in n.parameters()) for name, n in networks.items()}
    encoders = sum(count for name, count in counts.items() if name.startswith("text_encoder"))
    parameters = {
        "text encoder": encoders, "UNet step": counts["unet"], "VAE decode": counts["vae"],
        "images": sum(counts.values()),
    }  # fmt: skip
    run = {name: _without_gradients(fn) for name, fn in run.items()}
    return Parts(run, parameters, kind.itemsize)


class _Pipe:
    """The pipeline of diffusers between its networks, on tensors that are on the device."""

    def __init__(self, networks: Any, model: Model, size: Size, begin: Any, kind: Any) -> None:
        self.networks, self.model, self.size, self.kind = networks, model, size, kind
        scheduler: Any = diffusers.DDIMScheduler.from_config(SCHEDULER)
        scheduler.set_timesteps(size.num_steps)
        self.scheduler = scheduler
        self.times = scheduler.timesteps.to(device())  # once: each copy waits for the device
        self.ids = {
            name: torch.from_numpy(np.array(chunks.ids[:, 0])).long().to(device())
            for name, chunks in begin.chunks.items()
        }
        noise = np.ascontiguousarray(begin.inputs.noise.transpose(0, 3, 1, 2))
        self.noise = torch.from_numpy(noise).to(device())
        self.context = self._placed(_halves(begin.text.context))
        self.added = None
        if begin.text.pooled is not None:
            sizes = np.concatenate([begin.inputs.time_ids] * 2)
            pooled = self._placed(_halves(begin.text.pooled))
            self.added = {"text_embeds": pooled, "time_ids": self._placed(sizes).float()}

    def texts(self) -> tuple[torch.Tensor, Any]:
        """The context [B, T, E] and, in XL, the pooled text [B, P]."""
        contexts, pooled = [], None
        for name, ids in self.ids.items():
            encoding = self.networks[name](ids, output_hidden_states=self.model.networks.is_xl)
            last = (
                encoding.hidden_states[-2]
                if self.model.networks.is_xl
                else encoding.last_hidden_state
            )
            # copies: CUDA graphs write the next result over this one
            contexts.append(last.clone())
            pooled = encoding.text_embeds.clone() if name == "text_encoder_2" else None
        return torch.cat(contexts, dim=-1), pooled

    def step(self, latents: torch.Tensor, i: int, context: torch.Tensor, added: Any):
        t = self.scheduler.timesteps[i]
        both = self.scheduler.scale_model_input(torch.cat([latents] * 2), t).to(self.kind)
        eps = self.networks["unet"](
            both, self.times[i], encoder_hidden_states=context, added_cond_kwargs=added
        ).sample
        negative, positive = eps.float().chunk(2)
        guided = negative + GUIDANCE * (positive - negative)
        return self.scheduler.step(guided, t, latents).prev_sample

    def first_step(self) -> torch.Tensor:
        return self.step(self.noise, 0, self.context, self.added)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The pictures of latents: uint8 [B, 3, H, W]."""
        vae = self.networks["vae"]
        picture = vae.decode(latents.to(self.kind) / vae.config.scaling_factor).sample.float()
        return ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    def images(self) -> torch.Tensor:
        texts = [self.texts() for _ in range(2)]
        context = torch.cat([context for context, _ in texts])
        added = self.added
        if added is not None:
            added = added | {"text_embeds": torch.cat([pooled for _, pooled in texts])}
        latents = self.noise
        for i in range(self.size.num_steps):
            latents = self.step(latents, i, context, added)
        return self.decode(latents)

    def _placed(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(x, np.float32)).to(device(), self.kind)


def _network(name: str, model: Model, kind: Any) -> Any:
    """diffusers' or transformers' network with jaxgen's parameters."""
    config = dict(model.configs[name])
    if name.startswith("text_encoder"):
        network = CLASSES[name](transformers.CLIPTextConfig(**config))
    else:
        network = CLASSES[name].from_config(config)
    stored = layout.to_tensors(model.params[name], configs.conv_1x1(config))
    known = network.state_dict()
    state = {
        _known(key, known): torch.from_numpy(np.array(tensor.read(), np.float32))
        for key, tensor in stored.items()
    }
    network.load_state_dict(state, strict=True)
    network = network.to(device(), kind).eval().requires_grad_(False)
    if device().type == "cuda" and not name.startswith("text_encoder"):
        network = network.to(memory_format=torch.channels_last)
    return network


def _known(key: str, known: Any) -> str:
    """The key as this version of transformers has it: newer ones leave the prefix out."""
    short = key.removeprefix("text_model.")
    return short if key not in known and short in known else key


def _halves(pairs: np.ndarray) -> np.ndarray:
    """The pairs [B, 2, ...] as diffusers has them: all negative ones, then all positive ones."""
    return np.concatenate([pairs[:, 0], pairs[:, 1]])


def _without_gradients(fn: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.inference_mode():
            return fn()

    return call
