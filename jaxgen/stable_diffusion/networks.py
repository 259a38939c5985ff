# SPDX-License-Identifier: MIT
"""The networks of a pipeline, what follows from their configurations, and whether they fit."""

from typing import Any, NamedTuple

from jaxgen.nn.stable_diffusion.autoencoder_tiny import Autoencoder
from jaxgen.nn.stable_diffusion.clip import CLIPTextModel
from jaxgen.nn.stable_diffusion.controlnet import ControlNetModel
from jaxgen.nn.stable_diffusion.unet import UNet2DConditionModel
from jaxgen.weights.diffusers import Checkpoint

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
ENCODERS = ("text_encoder", "text_encoder_2")  # in the order of their features in the context


class Networks(NamedTuple):
    """The modules of a pipeline, and what follows from their configurations."""

    unet: UNet2DConditionModel
    vae: Autoencoder
    encoders: dict[str, CLIPTextModel]  # those of ENCODERS: one, or in XL both
    controlnets: tuple[ControlNetModel, ...] = ()

    def __hash__(self) -> int:
        return hash((self.unet, self.vae, *self.encoders.items(), self.controlnets))

    @property
    def is_xl(self) -> bool:
        """True where the UNet takes pooled text and sizes, as Stable Diffusion XL does."""
        return self.unet.addition_embed_type == "text_time"

    @property
    def num_sizes(self) -> int:
        """The numbers beside XL's pooled text: 6 of sizes, in refiners 4 and an aesthetic score."""
        pooled = self.encoders["text_encoder_2"].projection_dim
        rest = (self.unet.projection_class_embeddings_input_dim or 0) - pooled
        return rest // (self.unet.addition_time_embed_dim or 1)

    @property
    def inpaints(self) -> bool:
        """True where the UNet takes a mask and a masked image beside the latent."""
        return self.unet.in_channels != self.vae.latent_channels

    @property
    def default_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that the model was trained for, if it states them."""
        size, factor = self.unet.sample_size, self.vae.factor
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return height * factor, width * factor


def check_together(networks: Networks) -> None:
    """Raises ValueError where the parts are of different models, though each may be sound."""
    unet, channels = networks.unet, networks.vae.latent_channels
    faults = _faults_of_pictures("the autoencoder", networks.vae)
    if unet.in_channels not in (channels, 2 * channels + 1):
        faults.append(
            f"the UNet takes {unet.in_channels} channels; with this autoencoder {channels}, or "
            f"{2 * channels + 1} for inpainting, are expected"
        )
    if unet.out_channels != channels:
        faults.append(f"the UNet returns {unet.out_channels} channels instead of {channels}")
    width = sum(encoder.hidden_size for encoder in networks.encoders.values())
    if width != unet.cross_attention_dim:
        faults.append(
            f"the text encoders give {width} features and the UNet attends to "
            f"{unet.cross_attention_dim}"
        )
    if networks.is_xl != ("text_encoder_2" in networks.encoders):
        faults.append(
            f"a UNet {'with' if networks.is_xl else 'without'} pooled text and the text encoders "
            f"{' and '.join(networks.encoders)} do not belong together"
        )
    elif networks.is_xl and networks.num_sizes not in (5, 6):
        faults.append(f"the UNet takes {networks.num_sizes} sizes, and XL has 6, its refiner 5")
    faults += [
        fault
        for k, net in enumerate(networks.controlnets, start=1)
        for fault in _faults_of_control(f"ControlNet {k}", net, networks)
    ]
    if faults:
        raise ValueError("the parts of the checkpoint do not fit: " + "; ".join(faults))


def _faults_of_pictures(name: str, net: Any) -> list[str]:
    """Says where a network's pictures have not the three channels that all pictures here have."""
    return [
        f"{name} has {field} {getattr(net, field)}; pictures have 3"
        for field in ("in_channels", "out_channels")
        if getattr(net, field) != 3
    ]


def check_vocabularies(networks: Networks, checkpoint: Checkpoint) -> None:
    """Raises ValueError where a tokenizer's ids or rows are not those that its encoder takes."""
    lengths = {
        TOKENIZERS[name]: checkpoint.tokenizers[TOKENIZERS[name]].max_length
        for name in networks.encoders
        if TOKENIZERS[name] in checkpoint.tokenizers
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the tokenizers make rows of {' and '.join(map(str, lengths.values()))} tokens, which "
            "must be equally long; take both of this model"
        )
    for name, encoder in networks.encoders.items():
        tokens = checkpoint.tokenizers.get(TOKENIZERS[name])
        positions = encoder.max_position_embeddings
        if tokens and tokens.max_length > positions:
            raise ValueError(
                f"{TOKENIZERS[name]} makes rows of {tokens.max_length} tokens, and {name} has "
                f"{positions} positions; take the tokenizer that belongs to this model"
            )
        largest = max(tokens.vocab.values(), default=0) if tokens else 0
        if largest >= encoder.vocab_size:
            raise ValueError(
                f"{TOKENIZERS[name]} gives ids up to {largest}, and {name} has "
                f"{encoder.vocab_size} tokens; take the tokenizer that belongs to this model"
            )


def _faults_of_control(name: str, net: ControlNetModel, networks: Networks) -> list[str]:
    """Says why a ControlNet does not belong to this UNet, in the order of what users mistake."""
    unet, faults = networks.unet, []
    if net.cross_attention_dim != unet.cross_attention_dim:
        faults.append(
            f"{name} attends to {net.cross_attention_dim} features of text and the UNet to "
            f"{unet.cross_attention_dim}; take one that was trained for this model"
        )
    for field in ("block_out_channels", "layers_per_block"):
        if getattr(net, field) != getattr(unet, field):
            faults.append(
                f"{name} has {field} {getattr(net, field)} and the UNet {getattr(unet, field)}"
            )
    if net.conditioning_channels != 3:
        faults.append(
            f"{name} has conditioning_channels {net.conditioning_channels}; pictures have 3"
        )
    if net.in_channels != networks.vae.latent_channels:
        faults.append(f"{name} takes {net.in_channels} channels, not the latents'")
    if net.addition_embed_type != unet.addition_embed_type:
        faults.append(f"{name} and the UNet differ in addition_embed_type")
    if 2 ** (len(net.conditioning_embedding_out_channels) - 1) != networks.vae.factor:
        faults.append(f"{name} does not make its image {networks.vae.factor} times smaller")
    return faults
