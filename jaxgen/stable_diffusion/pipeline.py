# SPDX-License-Identifier: MIT
"""Stable Diffusion 1.x, 2.x and XL: text to image, image to image, inpainting.

pipe = jaxgen.StableDiffusion.from_pretrained("folder, file or Hub id", dtype=jnp.bfloat16)
images = pipe("a lighthouse at dusk", num_steps=30, sampler="dpmpp_2m", seed=7)

The class holds networks, parameters and compiled programs, and no state that a call changes; only
`set_adapters` and `set_embeddings` change it. The computation itself is `generate.generate`, a pure
function.
"""

import copy
import threading
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgen import fields, files
from jaxgen.adapters import beside, controlnet_file, embedding_file, merge, spec, unet_file
from jaxgen.nn import quantized
from jaxgen.stable_diffusion import decoding, few_steps, loading, placement, programs
from jaxgen.stable_diffusion import (
    hires as two_passes,
)
from jaxgen.stable_diffusion.call import arguments
from jaxgen.stable_diffusion.hires import Hires
from jaxgen.stable_diffusion.inputs import Inputs
from jaxgen.stable_diffusion.networks import TOKENIZERS
from jaxgen.stable_diffusion.programs import OnStep
from jaxgen.stable_diffusion.request import Request, completed
from jaxgen.stable_diffusion.text_encoding import Text
from jaxgen.stable_diffusion.texts.embedder import Embedder
from jaxgen.types import Array, Params
from jaxgen.warm import saved_pipeline
from jaxgen.weights import hub
from jaxgen.weights.diffusers import Checkpoint, Component

EMBEDDING_ROWS = 256  # 0.8 MB of memory in Stable Diffusion 1.x


class StableDiffusion:
    """A loaded pipeline draws images when it is called.

    loop: "device" runs all steps in one dispatch, "host" dispatches step by step. None takes the
    device but on CPU, where dispatching costs nothing beside a step and Ctrl-C is heard after each.
    The pictures are the same. vae_tile: latents larger than this (in latent pixels) are decoded in
    overlapping tiles. programs_folder: keeps programs, traced, for the next start; see `save`.
    embedding_rows: room for the vectors of `set_embeddings`. kernel_layout: "cudnn" keeps the
    kernels of convolutions in memory in the order of axes that GPUs read; their shapes stay.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        loop: Literal["device", "host"] | None = None,
        vae_tile: int = decoding.TILE,
        controlnets: Sequence[Component] = (),
        programs_folder: str | Path | None = None,
        embedding_rows: int = EMBEDDING_ROWS,
        quantize: Literal["int8", "fp8", "w8a8"] | None = None,
        kernel_layout: Literal["cudnn"] | None = None,
    ) -> None:
        if not isinstance(loop, str | None) or loop not in (None, "device", "host"):
            raise ValueError(f"loop is {fields.shown(loop)}; use 'device', 'host', or None")
        self.dtype, self.mesh = loading.check_dtype(dtype), placement.check(mesh)
        self.networks = loading.networks(checkpoint, self.dtype, controlnets)
        self.checkpoint = saved_pipeline.without_weights(checkpoint)
        self.scheduler = checkpoint.scheduler  # scheduler_config.json
        self.made_for = few_steps.of_checkpoint(checkpoint)
        self.distilled = self.made_for  # or what the adapters that are set were distilled for
        folder = loading.check_folder(programs_folder)
        self.programs, self.store = programs.of_networks(self.networks, self.mesh, folder)
        shapes_of = partial(saved_pipeline.shapes, self.store, loading.shapes)
        self.quantize = quantized.check(quantize)
        layout = placement.check_kernel_layout(kernel_layout)
        self.base = loading.load(
            checkpoint, self.networks, self.mesh, controlnets, shapes_of, self.quantize, layout
        )
        self.params = self.base  # with the adapters that are set merged in
        self.adapters: beside.Beside | None = None  # those that each image chooses
        self.loop = loop or ("host" if jax.default_backend() == "cpu" else "device")
        self.vae_tile = decoding.check_tile(vae_tile)
        self._decoders: dict[tuple[int, ...], threading.Thread] = {}  # by latents' shape; compiling
        encoders = self.networks.encoders
        self.embedder = Embedder(
            self.networks,
            {name: self.params[name] for name in encoders},
            {name: checkpoint.tokenizers[TOKENIZERS[name]] for name in encoders},
            self.programs,
            self.mesh,
            bool(checkpoint.index.get("force_zeros_for_empty_prompt", self.networks.is_xl)),
            loading.embedding_rows(self.networks, self.mesh, embedding_rows),
        )

    def with_params(self, params: dict[str, Params]) -> "StableDiffusion":
        """This pipeline with other parameters, by component; nothing is compiled anew for them.

        They lie where and have the types that this pipeline's have.
        """
        other = copy.copy(self)
        other.base = other.params = params
        own = {name: params[name] for name in self.networks.encoders}
        other.embedder = self.embedder._replace(params=own)
        return other

    def set_adapters(self, adapters: Sequence[spec.Spec], per_image: Any = None) -> None:
        """Merges LoRA files into the loaded parameters, in place of those that were set before.

        adapters: for each a path, (path, strength), or (path, strength, {"text": 0.5}) with factors
        for "unet", "text" (all text encoders) or one of them by name; [] restores the checkpoint's
        own parameters. Every set is merged anew from these, so strengths never add up and rounding
        never grows. Nothing of the pipeline is compiled anew. Files: safetensors of kohya's
        scripts, LyCORIS, diffusers and PEFT, or folders of the last two.
        per_image: [B][K] weighs adapter k in image b of the calls to come, which make B images; the
        adapters then stay beside the weights and must be plain LoRA of the UNet. Raises ValueError,
        and leaves the pipeline as it was, for a file that does not fit it.
        """
        if isinstance(adapters, (str, Path)) or not isinstance(adapters, Sequence):
            raise ValueError(f"adapters is {fields.shown(adapters)}; give a list of {spec.SPEC}")
        if self.quantize and len(adapters):
            raise ValueError("adapters change full kernels; load the pipeline without quantize")
        opened = merge.open_all(self.base, adapters) if len(adapters) else []
        if per_image is not None:
            beside_ = beside.stack(self.base, opened, per_image, self.dtype)
            self.adapters, self.params = beside_, self.base
        else:
            self.params = merge.merge(self.base, opened) if opened else self.base
            self.adapters = None
        active = (one.adapter.names for one in opened if one.strengths["unet"])
        self.distilled = few_steps.of_adapters(active) or self.made_for
        own = {name: self.params[name] for name in self.networks.encoders}
        self.embedder = self.embedder._replace(params=own)

    def set_embeddings(self, embeddings: Sequence[embedding_file.Spec]) -> None:
        """Gives prompts the words of textual inversion files, in place of those that were set.

        embeddings: for each a path or (path, word); [] takes all words away. A file of diffusers
        has its word inside, another's is its own name. In a prompt a word stands for all of its
        vectors, and means nothing but them. Nothing of the pipeline is compiled anew. Files:
        safetensors of diffusers, AUTOMATIC1111's interface and kohya's scripts. Raises ValueError,
        and leaves the pipeline as it was, for a file that does not fit it.
        """
        if isinstance(embeddings, (str, Path)) or not isinstance(embeddings, Sequence):
            raise ValueError(
                f"embeddings is {fields.shown(embeddings)}; give a list of {embedding_file.SPEC}"
            )
        self.embedder = self.embedder.with_embeddings(embeddings)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        *,
        variant: str | None = None,
        tokenizer: str | Path | None = None,
        prediction_type: str | None = None,
        vae: str | Path | None = None,
        unet: str | Path | None = None,
        controlnet: str | Path | Sequence[str | Path] = (),
        loop: Literal["device", "host"] | None = None,
        vae_tile: int = decoding.TILE,
        programs_folder: str | Path | None = None,
        embedding_rows: int = EMBEDDING_ROWS,
        quantize: Literal["int8", "fp8", "w8a8"] | None = None,
        kernel_layout: Literal["cudnn"] | None = None,
    ) -> "StableDiffusion":
        """Loads a pipeline from a diffusers folder, a single .safetensors file, or a Hub id.

        dtype: float32, bfloat16 or float16, of parameters and arithmetic. mesh: with an axis "data"
        the images of a batch are divided over its devices, with an axis "model" the parameters.
        variant ("fp16", ...): which weight files to take. vae: an autoencoder to take instead of
        the checkpoint's own, a folder, a file or a Hub id; unet: the same, as distilled ones are
        published; controlnet: the same, one or several, which every call gives images to. tokenizer
        and prediction_type: see `hub.open_checkpoint`. programs_folder: keeps
        programs, traced, for the next start; by default that of a folder that `save` made.
        quantize: keeps the kernels of UNet, ControlNets and text encoders in 8 bits; arithmetic
        stays in dtype, but "w8a8" multiplies int8 by int8 in dense layers of UNet and ControlNets.
        kernel_layout: see the class; no GPU has confirmed it yet.
        """
        placement.check_kernel_layout(kernel_layout)
        loading.check_dtype(dtype)
        quantized.check(quantize)
        checkpoint = hub.open_checkpoint(path_or_id, variant, tokenizer, prediction_type, vae)
        if unet is not None:
            checkpoint = unet_file.with_unet(checkpoint, unet, variant)
        loading.warn_of_scheduler_keys(checkpoint)
        paths = [controlnet] if isinstance(controlnet, str | Path) else controlnet
        if not isinstance(paths, list | tuple):
            raise ValueError(f"controlnet is {fields.shown(paths)}; give one or a list of them")
        nets = [controlnet_file.open_controlnet(path) for path in paths]
        folder = loading.check_folder(programs_folder) or saved_pipeline.programs_of(path_or_id)
        return cls(
            checkpoint, dtype, mesh, loop, vae_tile, nets, folder, embedding_rows, quantize,
            kernel_layout,
        )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Saves a folder that starts faster than the checkpoint: `from_pretrained(folder, dtype)`.

        It has diffusers' layout, with weights in linen's layout and this pipeline's types, adapters
        merged in, for jaxgen alone; and the programs of the calls so far, traced, which serve the
        same version of jaxgen and JAX on the same kind of device. Its later calls add theirs. A
        folder that exists is an error, and so is what has no place in it: kernels in 8 bits,
        ControlNets, adapters that each image chooses, words of `set_embeddings`.
        """
        unsaved = {
            "kernels in 8 bits": self.quantize,
            "ControlNets": self.networks.controlnets,
            "adapters that each image chooses": self.adapters,
            "words of embeddings": self.embedder.has_new_words(),
        }
        for what, value in unsaved.items():
            if value:
                raise ValueError(f"{what} are not saved; save without, and give them when loading")
        saved_pipeline.save(files.expanded(folder), self.checkpoint, self.params, self.store)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str | None] | None = None,
        num_steps: int | None = None,
        guidance_scale: Any = None,
        sampler: Any = None,
        seed: int | Sequence[int] = 0,
        height: int | None = None,
        width: int | None = None,
        image: Any = None,
        strength: float = 0.8,
        mask: Any = None,
        latents: Any = None,
        output: Literal["image", "latent"] = "image",
        *,
        guidance_rescale: Any = 0.0,
        guidance_parallel: float | Sequence[float] = 1.0,
        guidance_limit: float | Sequence[float | None] | None = None,
        guidance_momentum: float | Sequence[float] = 0.0,
        pag_scale: Any = 0.0,
        pag_layers: str | Sequence[str] = "mid",
        spacing: str | None = None,
        levels: str | None = None,
        times: Sequence[int] | None = None,
        eta: float | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        clip_skip: int = 0,
        weighting: bool = True,
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        prompt_embeds: Text | None = None,
        negative_prompt_embeds: Text | None = None,
        control_image: Any = None,
        control_scale: float | Sequence[float] = 1.0,
        control_start: float | Sequence[float] = 0.0,
        control_end: float | Sequence[float] = 1.0,
        guess_mode: bool = False,
        image_latents: Any = None,
        hires: float | Hires | None = None,
        cache_interval: int = 1,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """Draws images, uint8 [B, H, W, 3]; with output="latent" float32 [B, H/f, W/f, C].

        `request.Request`, whose fields these are, describes each argument. B is the length of
        whatever is given per image, such as prompt and seed; single values serve all, and from one
        seed, image j takes seed + j. on_step(done, total, latents, estimate) is called on the host
        after every step. Raises ValueError before any long work, or when the result is not finite.
        """
        options = dict(locals())  # the parameters by name: those of Request, and these two
        del options["self"], options["on_step"]
        request = Request(**options)
        if on_step is not None and not callable(on_step):
            raise ValueError(f"on_step is a {type(on_step).__name__}; give a function, see above")
        result = self.draw(request, on_step)
        if output == "image":
            self.store.keep()
        return result

    @property
    def defaults(self) -> tuple[int, float]:
        """The number of steps and the guidance scale of calls that do not say them."""
        return self.distilled.num_steps, self.distilled.guidance_scale

    def draw(self, request: Request, on_step: OnStep | None = None) -> np.ndarray:
        """Draws what a call with the fields of the request does."""
        request = completed(request, *self.defaults)
        if request.hires is not None:
            first, second = two_passes.passes(request, self.networks, self.scheduler)
            small = self.draw(first, on_step)
            request = two_passes.enlarged(second, small)
        final = self.latents(self.inputs(request), on_step)
        if request.output == "image":
            return self.decode(final)
        final = np.asarray(final)
        decoding.check_finite(np.asarray(np.isfinite(final).all(axis=(1, 2, 3))), self.dtype)
        return final

    def inputs(self, request: Request) -> Inputs:
        """Turns a request into arrays on the devices: what `generate.generate` takes."""
        request = completed(request, *self.defaults)
        batch = arguments.batch(request, self.networks, self.scheduler)
        hint = few_steps.hint(self.distilled, self.scheduler, request, batch)
        if hint is not None:
            warnings.warn(hint, stacklevel=4)  # the caller of __call__
        placement.check_divides(self.mesh, len(batch.seeds))
        if request.output == "image":
            self._compile_decoder(programs.latent_shape(self.networks.vae, batch))
        text = self.embedder.context_of(batch)
        own = beside.for_batch(self.adapters, len(batch.seeds))
        return programs.inputs(
            self.programs, self.networks, self.params, self.mesh, batch, text, own
        )

    def latents(self, inputs: Inputs, on_step: OnStep | None = None) -> Array:
        """Runs all steps: the final latents, float32 [B, h, w, C]. It uses up inputs.noise."""
        placement.check_kept(inputs)
        params = self.params["unet"]
        if self.loop == "device" and on_step is None:
            # the noise travels alone: its buffer is given away, and the latents are put there
            rest = inputs._replace(noise=np.zeros(0, np.float32))
            return self.programs.latents(params, rest, inputs.noise)
        return programs.step_by_step(self.programs, params, inputs, on_step)

    def _compile_decoder(self, shape: tuple[int, ...]) -> None:
        """Compiles the decoder while the text encoder and the UNet are; `decode` waits for it."""
        cut = decoding.cut_of(shape, self.networks.vae.factor, tile=self.vae_tile)
        if self.mesh is None and shape not in self._decoders and len(cut.origins) == 1:
            compile_it = partial(programs.compile_decoder, self.programs, self.params["vae"])
            self._decoders[shape] = threading.Thread(target=compile_it, args=(shape, cut))
            self._decoders[shape].start()

    def decode(self, latents: Array) -> np.ndarray:
        """Decodes latents, as `output="latent"` or `on_step` gives them: uint8 [B, H, W, 3]."""
        latents, params = placement.place(self.mesh, latents), self.params["vae"]
        groups, factor = placement.num_groups(self.mesh), self.networks.vae.factor
        cut = decoding.cut_of(latents.shape, factor, groups, self.vae_tile)
        if latents.shape in self._decoders:
            self._decoders[latents.shape].join()
        at_once = self.loop == "device" or len(cut.origins) == 1
        pictures, finite = programs.decode(self.programs, params, latents, cut, at_once)
        decoding.check_finite(np.asarray(finite), self.dtype)
        return np.asarray(pictures)

    def embed(
        self,
        texts: Sequence[str],
        clip_skip: int = 0,
        weighting: bool = True,
        num_chunks: int | None = None,
    ) -> Text:
        """Encodes texts with the text encoders: context [B, K * T, E], and in XL pooled [B, P].

        K is num_chunks, or what the longest text needs; see `prompts.chunk`. Of the notation of
        prompts, emphasis and BREAK are read; AND and texts that change belong to whole runs.
        """
        return self.embedder.encode(texts, clip_skip, weighting, num_chunks)
