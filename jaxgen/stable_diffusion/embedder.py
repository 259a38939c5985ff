# SPDX-License-Identifier: MIT
"""From the texts of a request to what the UNet is conditioned on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgen.stable_diffusion import prompts
from jaxgen.stable_diffusion.loading import Networks
from jaxgen.stable_diffusion.programs import Programs, place
from jaxgen.stable_diffusion.request import Request, Settings
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.types import Params
from jaxgen.weights.tokenizer import Tokenizer


class Embedder(NamedTuple):
    """The text encoders of a pipeline with all they need; call it on texts."""

    networks: Networks
    params: dict[str, Params]  # by encoder
    tokenizers: dict[str, Tokenizer]  # by encoder
    programs: Programs
    mesh: Mesh | None
    zero_negative: bool  # no negative prompt means zeros, not the encoding of ""

    def __call__(
        self,
        texts: Sequence[str],
        clip_skip: int = 0,
        weighting: bool = True,
        num_chunks: int | None = None,
    ) -> Text:
        """Encoded texts; see `StableDiffusion.embed`."""
        needed = self.num_chunks(texts, weighting)
        if num_chunks is not None and num_chunks < needed:
            raise ValueError(f"the longest text needs {needed} chunks; num_chunks is {num_chunks}")
        layers = min(encoder.num_hidden_layers for encoder in self.networks.encoders.values())
        most = layers - self.is_xl
        if isinstance(clip_skip, bool) or not 0 <= clip_skip <= most:
            raise ValueError(f"clip_skip is {clip_skip}; use 0 (no layer left out) to {most}")
        chunks = {
            name: prompts.chunk(tokens, texts, num_chunks or needed, weighting)
            for name, tokens in self.tokenizers.items()
        }
        return self.programs.embed(self.params, place(self.mesh, chunks), clip_skip=int(clip_skip))

    @property
    def is_xl(self) -> bool:
        return len(self.networks.encoders) == 2

    def num_chunks(self, texts: Sequence[str], weighting: bool = True) -> int:
        """Chunks of the longest text, with whichever tokenizer needs more."""
        return max(prompts.count_chunks(t, texts, weighting) for t in self.tokenizers.values())

    def conditions(self, asked: Request, chosen: Settings) -> Text:
        """The texts of a batch: context [B, G, T, E], G = 2 where negative texts guide."""
        # UNets distilled to know their guidance scale need no negative half
        guided = chosen.guided and self.networks.unet.time_cond_proj_dim is None
        self._check("prompt_embeds", asked.prompt_embeds)
        self._check("negative_prompt_embeds", asked.negative_prompt_embeds)
        num_chunks = self._common_chunks(asked, chosen, guided)
        positive = asked.prompt_embeds
        if positive is None:
            positive = self(chosen.prompts or [], asked.clip_skip, asked.weighting, num_chunks)
        positive = self._whole_batch(positive, chosen)
        if not guided:
            return jax.tree.map(lambda x: x[:, None], positive)

        negative, empty = asked.negative_prompt_embeds, np.zeros(len(chosen.seeds), bool)
        if negative is None:
            texts = [text or "" for text in chosen.negatives]
            # as in diffusers, clip_skip is for the prompt only
            negative = self(texts, 0, asked.weighting, num_chunks)
            if self.zero_negative:
                empty = np.asarray([text is None for text in chosen.negatives])
        negative = self._whole_batch(negative, chosen)
        return self.programs.pair(negative, positive, place(self.mesh, empty))

    def _common_chunks(self, asked: Request, chosen: Settings, guided: bool) -> int:
        """Chunks that prompts and negatives share, since their encodings are stacked."""
        tokens = next(iter(self.tokenizers.values())).max_length
        given = [asked.prompt_embeds]
        texts = list(chosen.prompts or [])
        if guided:
            given.append(asked.negative_prompt_embeds)
            texts += [text or "" for text in chosen.negatives]
        counts = [text.context.shape[1] // tokens for text in given if text is not None]
        return max([1, *counts, *([self.num_chunks(texts, asked.weighting)] if texts else [])])

    def _check(self, name: str, text: Text | None) -> None:
        """Encoded texts that the caller gives must be of this model's kind."""
        if text is None:
            return
        width = self.networks.unet.cross_attention_dim
        if np.ndim(text.context) != 3 or text.context.shape[-1] != width:
            raise ValueError(
                f"{name} has context of shape {np.shape(text.context)}; expected [B, T, {width}]"
            )
        if self.is_xl != (text.pooled is not None):
            wanted = "needs pooled as well" if self.is_xl else "takes no pooled"
            raise ValueError(f"{name}: this model {wanted}; pass what `embed` returns")

    def _whole_batch(self, text: Text, chosen: Settings) -> Text:
        """Encoded texts, one for each image, on the devices."""
        b = len(chosen.seeds)
        if len(text.context) != b:
            text = jax.tree.map(lambda x: np.repeat(np.asarray(x), b, axis=0), text)
        return _placed(self.mesh, text)


def _placed(mesh: Mesh | None, text: Any) -> Any:
    return text if mesh is None else place(mesh, text)
