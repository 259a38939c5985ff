# SPDX-License-Identifier: MIT
"""Turns the texts of a request into what the UNet attends to, on the devices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgen import fields
from jaxgen.adapters import embedding_file
from jaxgen.stable_diffusion import placement, text_encoding
from jaxgen.stable_diffusion.networks import Networks
from jaxgen.stable_diffusion.programs import Programs
from jaxgen.stable_diffusion.request import BatchRequest
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.stable_diffusion.texts import notation, prompts
from jaxgen.types import Params
from jaxgen.weights import tokenizer
from jaxgen.weights.tokenizer import Tokenizer

MOST_CHUNKS = 1000  # or what the longest text needs


class Embedder(NamedTuple):
    """The text encoders of a pipeline with their parameters, tokenizers and programs."""

    networks: Networks
    params: dict[str, Params]  # by encoder
    tokenizers: dict[str, Tokenizer]  # by encoder
    programs: Programs
    mesh: Mesh | None
    zero_negative: bool  # no negative prompt means zeros, not the encoding of ""
    vectors: dict[str, Any]  # by encoder, [R, D]: what the words of `with_embeddings` mean

    def with_embeddings(self, entries: Sequence[embedding_file.Spec]) -> "Embedder":
        """Returns an embedder that knows the words of textual inversion files, and no others.

        Every word gets as many ids after the encoder's own as it has vectors, the same rows for all
        encoders.
        """
        widths = {name: encoder.hidden_size for name, encoder in self.networks.encoders.items()}
        embeddings = [one for entry in entries for one in embedding_file.read(entry, widths)]
        for one in embeddings:
            _check_can_be_found(one)
        embedding_file.check_words(embeddings, self._num_rows())
        tokenizers, vectors = {}, {}
        for name, encoder in self.networks.encoders.items():
            rows, ids, start = np.zeros((self._num_rows(), widths[name]), np.float32), {}, 0
            for one in embeddings:
                end = start + len(one.vectors[name])
                rows[start:end] = one.vectors[name]
                ids[one.word] = list(range(encoder.vocab_size + start, encoder.vocab_size + end))
                start = end
            tokenizers[name] = self.tokenizers[name]._replace(new_words=tokenizer.new_words(ids))
            vectors[name] = placement.place_everywhere(self.mesh, rows)
        return self._replace(tokenizers=tokenizers, vectors=vectors)

    def has_new_words(self) -> bool:
        """Whether `with_embeddings` has given it words."""
        return any(one.new_words for one in self.tokenizers.values())

    def encode(
        self,
        texts: Sequence[str],
        clip_skip: int = 0,
        weighting: bool = True,
        num_chunks: int | None = None,
    ) -> Text:
        """Encodes texts; see `StableDiffusion.embed`."""
        is_list = isinstance(texts, list | tuple) or getattr(texts, "ndim", 0) == 1
        if not is_list or not all(isinstance(text, str) for text in texts) or not len(texts):
            raise ValueError(f"texts is {fields.shown(texts)}; give a list of one or more strings")
        if not isinstance(weighting, bool):
            raise ValueError(f"weighting is {fields.shown(weighting)}; use True or False")
        clip_skip, num_chunks = fields.plain((clip_skip, num_chunks))
        needed = self._num_chunks(texts, weighting)
        whole = isinstance(num_chunks, int) and not isinstance(num_chunks, bool)
        if num_chunks is not None and not (whole and needed <= num_chunks <= MOST_CHUNKS):
            raise ValueError(
                f"num_chunks is {fields.shown(num_chunks)}; it must be {needed}, which the longest "
                f"text needs, or more, at most {MOST_CHUNKS}"
            )
        text_encoding.check_clip_skip(self.networks, clip_skip)
        chunks = {
            name: prompts.chunk(tokens, texts, num_chunks or needed, weighting)
            for name, tokens in self.tokenizers.items()
        }
        chunks = placement.place(self.mesh, chunks)
        return self.programs.embed(self.params, chunks, self.vectors, clip_skip=int(clip_skip))

    def context_of(self, batch: BatchRequest) -> Text:
        """Encodes the sets of texts of a batch: context [B, S, T, E], negative ones first."""
        phases, num_chunks = batch.phases, self._common_chunks(batch)
        negative, positive = (
            self._placed(batch.negative_prompt_embeds),
            self._placed(batch.prompt_embeds),
        )
        texts, blank = [], np.zeros((len(batch.seeds), phases.size), bool)
        for k, column in enumerate(phases.negatives):
            if negative is None:
                # as in diffusers, clip_skip is for the prompt only
                own = [text or "" for text in column]
                texts.append(self.encode(own, 0, batch.weighting, num_chunks))
                blank[:, k] = [text is None and self.zero_negative for text in column]
            else:
                texts.append(negative)
        for column in phases.positives:
            if positive is None:
                texts.append(self.encode(column, batch.clip_skip, batch.weighting, num_chunks))
            else:
                texts.append(positive)
        if len(texts) == 1:
            return jax.tree.map(lambda x: x[:, None], texts[0])
        return self.programs.stack(texts, placement.place(self.mesh, blank))

    def _num_rows(self) -> int:
        """Counts the vectors that new words may have."""
        return len(next(iter(self.vectors.values())))

    def _num_chunks(self, texts: Sequence[str], weighting: bool) -> int:
        """Counts the chunks of the longest text, with whichever tokenizer needs more."""
        return max(prompts.count_chunks(t, texts, weighting) for t in self.tokenizers.values())

    def _common_chunks(self, batch: BatchRequest) -> int:
        """Counts the chunks that all texts get, since they are stacked."""
        tokens = next(iter(self.tokenizers.values())).max_length
        texts, counts = [], [1]
        for columns, encoded in (
            (batch.phases.negatives, batch.negative_prompt_embeds),
            (batch.phases.positives, batch.prompt_embeds),
        ):
            if encoded is None:
                texts += [text or "" for column in columns for text in column]
            elif columns:
                counts.append(encoded.context.shape[1] // tokens)
        return max([*counts, *([self._num_chunks(texts, batch.weighting)] if texts else [])])

    def _placed(self, text: Text | None) -> Text | None:
        """Divides texts that the caller has encoded over the mesh."""
        return text if self.mesh is None or text is None else placement.place(self.mesh, text)


def _check_can_be_found(embedding: embedding_file.Embedding) -> None:
    """Raises ValueError for a word that a prompt would be cut at, before it is looked for."""
    sign = notation.AND.search(embedding.word) or prompts.BREAK.search(embedding.word)
    if sign:
        raise ValueError(
            f"{embedding.file}: {fields.shown(embedding.word)} cannot be a word of prompts, in "
            f"which {sign[0]} separates texts; give another one, as (path, word)"
        )
