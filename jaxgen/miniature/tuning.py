# SPDX-License-Identifier: MIT
"""Fine-tuning: what training needs of a finished model, of any size and family.

captioned pictures -> posteriors and token ids; UNet and text encoders -> the loss of low-rank
factors, whose base is an input of the step and no part of its state.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.adapters import low_rank
from jaxgen.diffusion import config
from jaxgen.diffusion.schedule import Schedule
from jaxgen.nn.stable_diffusion.autoencoder_tiny import Autoencoder
from jaxgen.stable_diffusion import decoding, text_encoding
from jaxgen.stable_diffusion.networks import TOKENIZERS, Networks
from jaxgen.stable_diffusion.texts.prompts import Chunks
from jaxgen.train import latent_losses
from jaxgen.types import Array, Example, Key, LossFn, Metrics, Params
from jaxgen.weights import tokenizer
from jaxgen.weights.diffusers import Checkpoint
from jaxgen.weights.tokenizer import Tokenizer

BASE = "base"  # what a batch calls the parameters that stay as they are


def check_trainable(networks: Networks) -> None:
    """Raises ValueError for models whose training is another one than plain denoising."""
    unet = networks.unet
    if networks.inpaints:
        raise ValueError(
            f"the UNet takes {unet.in_channels} channels, as inpainting models do, and this trains "
            "text-to-image models; give --model one of these"
        )
    if unet.time_cond_proj_dim is not None:
        raise ValueError(
            "the UNet takes its guidance scale as an input: it is a distilled model (LCM), which "
            "plain denoising would undo; give --model the one that it was distilled from"
        )


def training_schedule(checkpoint: Checkpoint) -> Schedule:
    """The noise levels and the prediction type that a model was trained with."""
    return config.training_schedule(checkpoint.scheduler)


def token_ids(checkpoint: Checkpoint, networks: Networks, captions: Sequence[str]) -> np.ndarray:
    """The ids of captions for all text encoders, int32 [N, encoders, T]; warns of those cut."""
    tables = [checkpoint.tokenizers[TOKENIZERS[name]] for name in networks.encoders]
    cut = sum(_is_cut(tables[0], text) for text in captions)
    if cut:
        warnings.warn(
            f"{cut} of {len(captions)} captions have more than {tables[0].max_length - 2} tokens; "
            "the model reads that many of each",
            stacklevel=2,
        )
    return np.stack([tokenizer.tokenize(table, captions) for table in tables], axis=1)


def encode_pictures(vae: Autoencoder, params: Params, pictures: Array) -> tuple[Array, Array]:
    """Mean and log-variance of pictures [B, H, W, 3] in the sampler's scale, a few at a time.

    Each is [B, h, w, C].
    """

    def one(picture: Array) -> tuple[Array, Array]:
        moments: Any = vae.apply({"params": params}, picture[None], method="encode")
        mean, logvar = (x.astype(jnp.float32) for x in moments)
        zero = jnp.zeros(mean.shape[1:], jnp.float32)
        factor = decoding.scaled(vae, zero[None] + 1) - decoding.scaled(vae, zero[None])
        return decoding.scaled(vae, mean)[0], (logvar + 2 * jnp.log(factor))[0]

    _, height, width, _ = pictures.shape
    at_once = max(1, decoding.PIXELS_AT_ONCE // (height * width))
    return jax.lax.map(one, pictures, batch_size=min(at_once, len(pictures)))


def low_rank_loss(
    networks: Networks,
    schedule: Schedule,
    empty_caption: np.ndarray,
    image_size: int,
    scale: float,
    caption_dropout: float,
) -> LossFn:
    """The denoising loss of low-rank factors, `latent_losses.diffusion_loss` on a frozen base.

    params: factors of "unet" and of text encoders, as `adapters.low_rank` has them; example: as
    there, with ids [encoders, T], and the base as BASE. scale: alpha / r. XL's sizes are those of
    pictures of image_size pixels that nobody cropped.
    """
    unet = networks.unet

    def predict(variables: Params, x_t: Array, t: Array, text: Any) -> Array:
        sizes = (image_size, image_size, 0, 0, image_size, image_size)
        added = (text.pooled, jnp.asarray([sizes], jnp.float32)) if networks.is_xl else ()
        with low_rank.added(scale):
            out: Any = unet.apply(variables, x_t[None], t[None], text.context, *added)
        return out[0]

    def embed(params: Params, ids: Array) -> Any:
        chunks = {
            name: Chunks(ids[i][None, None], jnp.ones((1, 1, ids.shape[1])))
            for i, name in enumerate(networks.encoders)
        }
        return text_encoding.encode(networks, params, chunks)

    inner = latent_losses.diffusion_loss(
        predict, embed, schedule.alphas_cumprod, schedule.prediction_type, empty_caption,
        caption_dropout,
    )  # fmt: skip

    def loss(params: Params, example: Example, key: Key) -> tuple[Array, Metrics]:
        base = example[BASE]
        encoders = {
            # text encoders are small beside the UNet, so that their weights may be made anew
            name: low_rank.merged(base[name], params[name], scale) if name in params else base[name]
            for name in networks.encoders
        }
        unet_variables = {"params": base["unet"], low_rank.COLLECTION: params.get("unet", {})}
        return inner({"unet": unet_variables, "text_encoder": encoders}, example, key)

    return loss


def with_factors(base: dict[str, Params], factors: dict[str, Params], scale: float) -> Any:
    """The parameters of all components, with the factors merged in."""
    changed = {
        name: low_rank.merged(base[name], tree, scale) for name, tree in factors.items() if tree
    }
    return {**base, **changed}


def _is_cut(table: Tokenizer, text: str) -> bool:
    return len(tokenizer.encode(table, text)) > table.max_length - 2
