# SPDX-License-Identifier: MIT
"""Names of models -> checkpoints: a folder, a single file, or an id of the Hub.

checkpoint = hub.open_checkpoint("a/folder, a file or an id")
component = checkpoint.components["unet"]
module = UNet2DConditionModel(**diffusers.fields(component))
abstract = jax.eval_shape(module.init, key, ...)["params"]
params = weights.load(component.tensors, abstract, dtype)
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from jaxgen import fields, files
from jaxgen.weights import (
    autoencoder,
    diffusers,
    ldm_configs,
    model_index,
    single_file,
    weight_files,
)
from jaxgen.weights.diffusers import Checkpoint

# A model that comes with jaxgen; latent_autoencoder.py and latent_diffusion.py trained it.
EMBEDDED = "shapes"
EMBEDDED_TINY = "shapes-tiny"  # its tiny autoencoder; studies/tiny_autoencoder.py trained that
MODELS = Path(__file__).parent.parent / "models"
EMBEDDED_FOLDERS = {EMBEDDED: EMBEDDED, EMBEDDED_TINY: f"{EMBEDDED}/vae_tiny"}  # in MODELS
MODEL = (
    "a diffusers folder, a .safetensors file, a Hub id such as stable-diffusion-v1-5/"
    f"stable-diffusion-v1-5, or {EMBEDDED!r}, the small model that comes with jaxgen"
)
VAE = (
    "the folder or .safetensors file of an autoencoder, a Hub id such as "
    f"stabilityai/sd-vae-ft-mse, or {EMBEDDED_TINY!r}, the tiny one of {EMBEDDED!r}"
)
TOKENIZER = (
    "a folder with vocab.json and merges.txt, or a Hub id such as openai/clip-vit-large-patch14"
)
# a page of the Hub, as it is copied from a browser: repository, revision, file
PAGE = re.compile(
    r"(?:https?://)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)"
    r"(?:/(?:blob|resolve|tree)/([\w.-]+)(?:/([^?#]+?))?)?/?(?:[?#].*)?"
)
SECONDS = 5.0  # to wait for the first answer of the Hub
# Where PyTorch diffusers finds the tokenizers of single files. All have CLIP's one vocabulary (what
# they differ in, the padding, follows from the kind of model), so that one is as good as another.
PUBLIC_TOKENIZERS = (
    "openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-xl-base-1.0",
)


def open_checkpoint(
    path_or_id: str | Path,
    variant: str | None = None,
    tokenizer: str | Path | None = None,
    prediction_type: str | None = None,
    vae: str | Path | None = None,
) -> Checkpoint:
    """The pipeline in a diffusers folder, a single-file checkpoint, a Hub repository, or "shapes".

    vae: an autoencoder to take instead of the checkpoint's own: the folder of one or of a pipeline,
    a single file, or a Hub id. prediction_type: what the UNet returns, "epsilon", "v_prediction" or
    "sample", where that is not what a folder's scheduler says, or what is guessed of a single file
    (see `single_file.read`). What was passed over is said in one warning.
    tokenizer, for single files only: a folder with vocab.json and merges.txt (or with subfolders
    tokenizer and tokenizer_2) as a path or a Hub id, by default the public one of CLIP from the
    Hub or its cache.
    """
    for name, value in (("variant", variant), ("prediction_type", prediction_type)):
        if not isinstance(value, str | None):
            raise ValueError(f"{name} is {fields.shown(value)}; give a string, or leave it out")
    if variant is not None and not re.fullmatch(r"[\w.-]{1,80}", variant):
        raise ValueError(f"variant is {fields.shown(variant)}; give one such as 'fp16'")
    with files.one_error(path_or_id):
        checkpoint = _open(path_or_id, variant, tokenizer, prediction_type, vae)
    if checkpoint.notes:
        text = f"{path_or_id}: {'; '.join(checkpoint.notes)}"
        warnings.warn(files.printable(text, 2000), stacklevel=2)
    return checkpoint._replace(name=name_of(path_or_id))


def name_of(path_or_id: str | Path) -> str:
    """What a path or a Hub id is called: itself, or what the address of a page of the Hub shows."""
    page = _page(path_or_id)
    return "/".join(part for part in (page[1], page[3]) if part) if page else str(path_or_id)


def resolve(path_or_id: str | Path, variant: str | None = None) -> Path:
    """The local folder or file of a model, fetched from the Hub into its cache when it is an id.

    Only what `diffusers.read` opens is fetched. HF_HUB_OFFLINE and HF_HOME are honoured. Raises
    ValueError when there is no such path, or when the id can neither be reached nor is cached.
    """

    def wanted(names: list[str]) -> list[str]:
        return diffusers.wanted_files(names, variant, name_of(path_or_id))

    path = resolve_part(path_or_id, MODEL, wanted)
    weight_files.check_ending(path)
    return path


def resolve_vae(path_or_id: str | Path, variant: str | None = None) -> Path:
    """The local folder or file of an autoencoder, from a path or a Hub id."""

    def wanted(names: list[str]) -> list[str]:
        return autoencoder.wanted_files(names, variant, name_of(path_or_id))

    return resolve_part(path_or_id, VAE, wanted)


def resolve_part(
    path_or_id: str | Path, expected: str, wanted: Callable[[list[str]], list[str]]
) -> Path:
    """The local folder or file of a part of a model, from a path or a Hub id.

    expected: what it should be, for errors; wanted chooses from the names in a repository. The
    address of a page of the Hub serves for its id, and that of a file's page for the file.
    """
    page = _page(path_or_id)
    if page and page[3]:
        weight_files.check_ending(Path(page[3]))
        return _fetch_file(page[1], page[3], page[2])
    if page:
        return _fetch(page[1], wanted, page[2])
    path = _existing(path_or_id, expected)
    return path if path is not None else _fetch(str(path_or_id), wanted)


def resolve_tokenizer(path_or_id: str | Path) -> Path:
    """The local folder of a tokenizer, from a path or a Hub id."""
    return resolve_part(path_or_id, TOKENIZER, _tokenizer_files)


def public_tokenizer() -> Path:
    """The folder of CLIP's tokenizer: what any earlier use left in the cache, or fetched."""
    for repo in PUBLIC_TOKENIZERS:
        for folder in ("", "tokenizer/"):
            paths = [
                huggingface_hub.try_to_load_from_cache(repo, f"{folder}{name}")
                for name in ("vocab.json", "merges.txt")
            ]
            if all(isinstance(path, str) for path in paths):
                return Path(str(paths[0])).parent
    repo = PUBLIC_TOKENIZERS[0]
    try:
        return _fetch(repo, _tokenizer_files)
    except ValueError as error:
        raise ValueError(
            "a single-file checkpoint carries no tokenizer, and CLIP's public one cannot be had. "
            f"Fetch it once online (hf download {repo} vocab.json merges.txt), or pass tokenizer= "
            "(--tokenizer) a folder with both files, such as the subfolder tokenizer of any Stable "
            f"Diffusion in diffusers' layout. What was tried: {error}"
        ) from None


def _open(
    path_or_id: str | Path,
    variant: str | None,
    tokenizer: str | Path | None,
    prediction_type: str | None,
    vae: str | Path | None,
) -> Checkpoint:
    path = resolve(path_or_id, variant)
    own_vae = None if vae is None else autoencoder.read(resolve_vae(vae, variant), variant)
    if path.is_dir():
        if tokenizer is not None:
            model_index.check_is_pipeline(path)
            raise ValueError(
                f"tokenizer is for single files, and {path_or_id} is a folder with its own; leave "
                f"it out{model_index.or_single_file(path)}"
            )
        checkpoint = diffusers.read(path, variant, own_vae)
        if prediction_type is None:
            return checkpoint
        scheduler = ldm_configs.predicting(checkpoint.scheduler, prediction_type)
        return checkpoint._replace(scheduler=scheduler)
    folder = public_tokenizer if tokenizer is None else resolve_tokenizer(tokenizer)
    return single_file.read(path, folder, prediction_type, own_vae)


def _page(path_or_id: str | Path) -> re.Match[str] | None:
    """The parts of the address of a page of the Hub, see `PAGE`; None for all else."""
    return PAGE.fullmatch(path_or_id) if isinstance(path_or_id, str) else None


def _tokenizer_files(names: list[str]) -> list[str]:
    pattern = r"(tokenizer(_2)?/)?(vocab|tokenizer|tokenizer_config|special_tokens_map)\.json"
    merges = r"(tokenizer(_2)?/)?merges\.txt"
    return [name for name in names if re.fullmatch(f"{pattern}|{merges}", name)]


def _existing(path_or_id: str | Path, expected: str) -> Path | None:
    """The path if there is one, None for what may be a Hub id, else ValueError."""
    if not isinstance(path_or_id, str | Path):
        raise ValueError(
            f"{fields.shown(path_or_id)} is no path and no Hub id. Expected {expected}"
        )
    path, text = files.existing(path_or_id), str(path_or_id)
    if text and path is not None:
        return path
    if text in EMBEDDED_FOLDERS:
        return MODELS / EMBEDDED_FOLDERS[text]
    is_id = isinstance(path_or_id, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text)
    if not is_id or text.endswith((".safetensors", *weight_files.UNSAFE)):
        in_repo = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)/([\w./-]+\.safetensors)", text)
        page = f"https://huggingface.co/{in_repo[1]}/blob/main/{in_repo[2]}" if in_repo else ""
        advice = f"; if it is a file on the Hub, give {page}" * bool(page)
        raise ValueError(
            f"no such file or folder: {files.printable(text, 400)!r}{advice}. Expected {expected}"
        )
    return None


def _fetch(
    repo: str, wanted: Callable[[list[str]], list[str]], revision: str | None = None
) -> Path:
    """The cached folder of a repository with those of its files that `wanted` chooses.

    revision: a branch, a tag or a commit; None is the main branch.
    """
    try:
        info = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=SECONDS)
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise ValueError(
            f"there is no folder {repo}, and the Hub does not give out a model of that name: check "
            "the spelling, accept its terms on huggingface.co, or set HF_TOKEN "
            f"({files.first_line(error)})"
        ) from None
    except (OSError, errors.HTTPError) as error:
        return _cached(repo, revision, error)
    patterns = wanted([file.rfilename for file in info.siblings or []])
    try:
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)
        )
    except (OSError, errors.HTTPError) as error:
        raise ValueError(
            f"fetching {repo} from the Hub failed ({files.first_line(error)}); what arrived is "
            "kept, so run the same again"
        ) from None


def _fetch_file(repo: str, name: str, revision: str) -> Path:
    """The cached file of a repository."""
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
    except (OSError, errors.HTTPError) as error:
        raise ValueError(
            f"{name} of {repo} is not in the Hub's cache and cannot be fetched "
            f"({files.first_line(error)}); check the address, or give a local file"
        ) from None


def _cached(repo: str, revision: str | None, reason: Exception) -> Path:
    """Finds the folder in the Hub's cache when the Hub cannot be reached."""
    try:
        # An empty list of patterns: the cache lacks what nobody wanted, and `read` misses the rest.
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, local_files_only=True, allow_patterns=[]
            )
        )
    except OSError:
        raise ValueError(
            f"{repo} is neither a folder here nor in the Hub's cache, and the Hub cannot be "
            f"reached ({files.first_line(reason)}). Give a local folder, or run once online; "
            "HF_HOME says where the cache is, and HF_HUB_OFFLINE=1 forbids asking the Hub"
        ) from None
