# SPDX-License-Identifier: MIT
"""The three training steps in PyTorch, written as is usual there.

A step takes images and its random draws. With jaxgen's draws it must have jaxgen's loss; in a race
it draws for itself.
"""

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import torch_networks
from benchmarks.peers.torch_networks import softplus
from jaxgen.measure import turns

Draws = tuple[torch.Tensor, ...]
_PROGRAMS = tempfile.TemporaryDirectory(prefix="jaxgen-inductor-")  # gone when Python ends
MODES = {
    "pytorch": None,
    "pytorch_compile": "default",
    "pytorch_graphs": "reduce-overhead",  # CUDA graphs
}


class Peer(NamedTuple):
    """A model in training."""

    step: Callable[[torch.Tensor, Draws], torch.Tensor]  # (uint8 images, draws) -> loss
    draw: Callable[[torch.Tensor], Draws]
    num_parameters: int


class Player(NamedTuple):
    """Networks and the optimiser of their parameters."""

    networks: tuple[nn.Sequential, ...]
    tx: torch.optim.Optimizer

    def descend(self, loss: torch.Tensor) -> None:
        self.tx.zero_grad(set_to_none=True)
        loss.backward()
        self.tx.step()


def device() -> torch.device:
    """PyTorch's device of the kind that JAX runs on."""
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def prepare() -> None:
    """Sets the same arithmetic as XLA's: float32 products on Tensor Cores where there are any.

    Compiled programs go to a new folder, since jaxgen too compiles everything here.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", _PROGRAMS.name)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def peer(model: str, originals: Any, params: Any, options: Any, mode: str | None) -> Peer:
    """A model in training from a jaxgen model's weights.

    originals: its two linen modules; params: their parameters; options: the script's Config;
    mode: of torch.compile, None does not compile.
    """
    names = ("generator", "discriminator") if model == "gan" else ("encoder", "decoder")
    shapes = _input_shapes(model, originals, options.latent_dim)
    networks = []
    for name, original, shape in zip(names, originals, shapes, strict=True):
        network = torch_networks.twin(original, shape)
        torch_networks.take(network, params[name])
        network = network.to(device())
        if device().type == "cuda" and options.network == "conv":
            network.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
        networks.append(network)
    make = {"autoencoder": _autoencoder, "vae": _vae, "gan": _gan}[model]
    count = sum(p.numel() for network in networks for p in network.parameters())
    return make(tuple(networks), options, mode, count)


def candidate(peer: Peer, images: np.ndarray, batch_size: int) -> turns.Candidate:
    """The peer's training on these images [N, H, W, C], shuffled in every epoch."""
    batches = _shuffled(_placed(images), batch_size)

    def run(count: int) -> None:
        for x in itertools.islice(batches, count):
            peer.step(x, peer.draw(x))
        synchronize()

    return turns.Candidate(run)


def losses(
    peer: Peer, images: np.ndarray, draws: Sequence[tuple[np.ndarray, ...]]
) -> Iterator[float]:
    """The losses of consecutive steps on the same images [B, H, W, C], one for each tuple of draws.

    Draws that are images are [B, H, W, C] too.
    """
    x = _placed(images)
    for step_draws in draws:
        parts = [_placed(d) if d.ndim == 4 else torch.from_numpy(d.copy()) for d in step_draws]
        yield float(peer.step(x, tuple(part.to(device()) for part in parts)))


def memory_mark() -> int:
    """The bytes of the device that PyTorch holds now, where growth begins; 0 on the host."""
    if device().type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def memory_growth(since: int) -> int | None:
    """The most bytes of the device that PyTorch held since a mark, above it; None on the host."""
    return torch.cuda.max_memory_allocated() - since if device().type == "cuda" else None


def release() -> None:
    """Frees compiled programs, CUDA graphs and the device's memory."""
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and it takes seconds to load
        torch.compiler.reset()
    if device().type == "cuda":
        torch.cuda.empty_cache()


# --- models ------------------------------------------------------------------------------------


def _autoencoder(networks: Any, options: Any, mode: str | None, count: int) -> Peer:
    encoder, decoder = networks
    player, arithmetic = _player(networks, options), _arithmetic(options)

    def loss(images: torch.Tensor) -> torch.Tensor:
        with arithmetic():
            x = _in_range(images)
            output = decoder(encoder(x)).float()
        return F.mse_loss(output, x)

    loss = _compiled(loss, mode)

    def step(images: torch.Tensor, draws: Draws) -> torch.Tensor:
        value = loss(images)
        player.descend(value)
        return value.detach()

    return Peer(step, lambda x: (), count)


def _vae(networks: Any, options: Any, mode: str | None, count: int) -> Peer:
    encoder, decoder = networks
    player, arithmetic = _player(networks, options), _arithmetic(options)

    def loss(x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """The negative ELBO of binary images x, 0 or 1."""
        with arithmetic():
            mean, logvar = encoder(2 * x - 1).float().chunk(2, dim=1)
            logits = decoder(mean + torch.exp(logvar / 2) * eps).float()
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mean**2 - logvar.exp())
        return (recon + kl) / len(x)

    loss = _compiled(loss, mode)

    def draw(images: torch.Tensor) -> Draws:
        eps = torch.randn(len(images), options.latent_dim, device=images.device)
        return torch.bernoulli(images.float() / 255), eps

    def step(images: torch.Tensor, draws: Draws) -> torch.Tensor:
        value = loss(*draws)
        player.descend(value)
        return value.detach()

    return Peer(step, draw, count)


def _gan(networks: Any, options: Any, mode: str | None, count: int) -> Peer:
    generator, discriminator = networks
    g, d = (_player((network,), options, options.b1) for network in networks)
    arithmetic = _arithmetic(options)
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    average = [p.detach().clone() for p in generator.parameters()]
    done = 0

    def d_loss(images: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        with arithmetic():
            with torch.no_grad():
                fake = generator(z).float()
            real, fake = discriminator(torch.cat([_in_range(images), fake])).float().chunk(2)
        return (softplus(-real) + softplus(fake)).mean()

    def g_loss(z: torch.Tensor) -> torch.Tensor:
        with arithmetic():
            # detached: no gradient of the discriminator's weights is worked out for nothing
            fake = torch.func.functional_call(discriminator, frozen, (generator(z).float(),))
        return softplus(-fake.float()).mean()

    d_loss, g_loss = _compiled(d_loss, mode), _compiled(g_loss, mode)

    def draw(images: torch.Tensor) -> Draws:
        shape = (len(images), options.latent_dim)
        return tuple(torch.randn(shape, device=images.device) for _ in range(2))

    def step(images: torch.Tensor, draws: Draws) -> torch.Tensor:
        nonlocal done
        d_value = d_loss(images, draws[0])
        d.descend(d_value)
        d_value = d_value.detach().clone()  # CUDA graphs write the next result over this one
        g_value = g_loss(draws[1])
        g.descend(g_value)
        done += 1
        rate = min(options.ema_decay, (1 + done) / (10 + done))
        with torch.no_grad():
            torch._foreach_lerp_(average, list(generator.parameters()), 1 - rate)
        return d_value + g_value.detach()

    return Peer(step, draw, count)


# --- parts -------------------------------------------------------------------------------------


def _player(networks: Any, options: Any, b1: float = 0.9) -> Player:
    parameters = [p for network in networks for p in network.parameters()]
    betas = (b1, 0.999)
    tx = torch.optim.Adam(parameters, options.run.learning_rate, betas=betas, fused=True)
    return Player(networks, tx)


def _compiled(fn: Callable[..., Any], mode: str | None) -> Callable[..., Any]:
    return fn if mode is None else torch.compile(fn, mode=mode, dynamic=False)


def _arithmetic(options: Any) -> Callable[[], Any]:
    """A function that returns the context in which products are computed in the networks' type."""
    kind, half = device().type, options.run.dtype == "bfloat16"
    return lambda: torch.autocast(kind, torch.bfloat16, enabled=half)


def _in_range(images: torch.Tensor) -> torch.Tensor:
    return images.float() * (2 / 255) - 1


def _placed(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(torch_networks.turned(images)).to(device())


def _shuffled(images: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    while True:
        order = torch.randperm(len(images), device=images.device)
        for start in range(0, len(images) - batch_size + 1, batch_size):
            yield images[order[start : start + batch_size]]


def _input_shapes(model: str, originals: Any, latent_dim: int) -> tuple[Any, Any]:
    """The inputs of the two networks: an image's shape, or the number of latents."""
    image = originals[0 if model == "gan" else 1].image_shape
    return (latent_dim, image) if model == "gan" else (image, latent_dim)
