# SPDX-License-Identifier: MIT
"""Textual inversion files -> the vectors of new words, by text encoder.

Gal et al. 2022 (arXiv:2208.01618). Read are safetensors files of diffusers (a tensor named as the
word), of AUTOMATIC1111's interface and kohya's scripts (`emb_params`), and those of XL (`clip_l`
and `clip_g`, or `text_encoders_0` and `text_encoders_1`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen import fields, files
from jaxgen.weights import hub, model_index, tensors
from jaxgen.weights.tensors import Tensor

FIRST, SECOND = "text_encoder", "text_encoder_2"
# the tensors whose word is the file's own name -> whose vectors they are
UNNAMED = {
    "emb_params": FIRST,
    "clip_l": FIRST,
    "text_encoders_0": FIRST,
    "clip_g": SECOND,
    "text_encoders_1": SECOND,
}
IN_FOLDERS = {FIRST: "learned_embeds.safetensors", SECOND: "learned_embeds_2.safetensors"}
BASES: dict[tuple[int, ...], str] = {
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
}
EMBEDDING = "a textual inversion: a .safetensors file, a folder that holds one, or a Hub id"
PICKLES = (".pt", ".bin", ".ckpt", ".pth", ".pkl")
CONVERT = (
    "Reading one can run code, so jaxgen reads textual inversions as safetensors only. Where you "
    'trust it, convert it with PyTorch: data = torch.load("OLD", weights_only=True); '
    'data = {"emb_params": data["string_to_param"]["*"]} if "string_to_param" in data else data; '
    'safetensors.torch.save_file(data, "NEW.safetensors")'
)
SPEC = "a path or (path, word)"
BRACKETS = "()[]\\|"  # they mean something in prompts
Spec = str | Path | tuple  # a path, or (path, word)
Stored = dict[str, dict[str, Tensor]]  # word -> encoder -> tensor


class Embedding(NamedTuple):
    """What a word means to each text encoder."""

    word: str
    vectors: dict[str, np.ndarray]  # by encoder, float32 [n, D]
    file: str  # for messages


def from_text(text: str) -> tuple[str, str] | str:
    """Reads FILE or FILE:WORD of a command line."""
    path, colon, word = text.rpartition(":")
    of_path = not word or "/" in word or "\\" in word or word.endswith(".safetensors")
    return (path, word) if colon and not of_path else text


def read(entry: Spec, widths: Mapping[str, int]) -> list[Embedding]:
    """Reads the words of one file, for text encoders of these widths.

    entry: a path, or (path, word), which names the word of a file with one. Raises one ValueError
    that names the file and, where its vectors are of another width, the model that it is for.
    """
    path, word = _parts_of(entry)
    with files.one_error(path):
        return _read(path, word, widths)


def check_words(embeddings: Sequence[Embedding], rows: int) -> None:
    """Raises ValueError where two entries have one word, or all together too many vectors."""
    by_word: dict[str, Embedding] = {}
    for own in embeddings:
        other = by_word.setdefault(own.word.lower(), own)
        if other.file != own.file:
            raise ValueError(
                f"{other.file} and {own.file} both have the word {fields.shown(own.word)}; "
                "give one of them another word, as (path, word)"
            )
        if other.word == own.word and other is not own:
            raise ValueError(
                f"{own.file} is given twice for {fields.shown(own.word)}; give it once"
            )
        if other is not own:
            raise ValueError(
                f"{own.file} gives the words {fields.shown(other.word)} and "
                f"{fields.shown(own.word)}, which prompts do not tell apart, for a word is found "
                "in any case; give each file and each word once"
            )
    count = sum(len(next(iter(one.vectors.values()))) for one in embeddings)
    if count > rows:
        raise ValueError(
            f"the new words have {count} vectors, and this pipeline has room for {rows}; load it "
            f"with embedding_rows={count} or more"
        )


def _read(path: str | Path, word: str | None, widths: Mapping[str, int]) -> list[Embedding]:
    file, stored = _stored(path)
    if word is not None and len(stored) > 1:
        listed = files.printable(", ".join(stored), 200)
        raise ValueError(f"{file} has {len(stored)} words ({listed}); give its path without a word")
    return [
        _checked(file, own if word is None else word, by_encoder, widths)
        for own, by_encoder in stored.items()
    ]


def _parts_of(entry: Spec) -> tuple[str | Path, str | None]:
    match entry:
        case str() | Path() as path:
            return path, None
        case [str() | Path() as path, str() as word]:
            return path, word
    raise ValueError(f"an embedding is {fields.shown(entry)}; give {SPEC}")


def _stored(path_or_id: str | Path) -> tuple[str, Stored]:
    """Opens a file, or a folder with one for each text encoder."""
    if Path(path_or_id).suffix.lower() in PICKLES:
        raise ValueError(f"{path_or_id} is a pickle. {CONVERT}")
    path = hub.resolve_part(path_or_id, EMBEDDING, _wanted)
    if not path.is_dir():
        return str(path), _words_in(path, FIRST)
    names = {encoder: name for encoder, name in IN_FOLDERS.items() if (path / name).is_file()}
    if FIRST not in names:
        raise ValueError(
            f"{path} has no {IN_FOLDERS[FIRST]}; expected {EMBEDDING}"
            f"{model_index.or_single_file(path)}"
        )
    stored: Stored = {}
    for encoder, name in names.items():
        for word, own in _words_in(path / name, encoder).items():
            stored.setdefault(word, {}).update(own)
    return str(path), stored


def _wanted(names: list[str]) -> list[str]:
    return [name for name in names if name in IN_FOLDERS.values()]


def _words_in(file: Path, encoder: str) -> Stored:
    """The tensors of a file by word; those with a name of their own belong to `encoder`."""
    stored: Stored = {}
    names: dict[tuple[str, str], str] = {}  # of the tensors by word and encoder
    for name, tensor in tensors.open_file(file).items():
        word, owner = file.stem if name in UNNAMED else name, UNNAMED.get(name, encoder)
        other = names.setdefault((word, owner), name)
        if other != name:
            raise ValueError(
                f"{file} has {files.printable(other, 60)} and {files.printable(name, 60)}, both "
                f"the vectors of {files.printable(word, 60)!r} for {owner}; expected one of them"
            )
        stored.setdefault(word, {})[owner] = tensor
    if not stored:
        raise ValueError(f"{file} holds no tensors; expected the vectors of a word")
    return stored


def _checked(
    file: str, word: str, stored: Mapping[str, Tensor], widths: Mapping[str, int]
) -> Embedding:
    """Reads the vectors of one word, which must be those of this model."""
    named = f"{file}: the vectors of {files.printable(word, 60)!r}"
    shapes = {encoder: tensor.shape for encoder, tensor in stored.items()}
    if any(len(shape) not in (1, 2) or 0 in shape for shape in shapes.values()):
        raise ValueError(
            f"{named} have shapes {list(shapes.values())}; expected [vectors, width]. Is it a LoRA "
            "or a checkpoint?"
        )
    own = {encoder: shape[-1] for encoder, shape in shapes.items()}
    if own != dict(widths):
        raise ValueError(_of_another_model(named, own, widths))
    dtypes = {str(tensor.dtype) for tensor in stored.values()}
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(
            f"{named} have the type {' and '.join(sorted(dtypes))}; expected floating point, such "
            "as float16 or float32"
        )
    vectors = {
        encoder: np.atleast_2d(np.asarray(tensor.read(), np.float32))
        for encoder, tensor in stored.items()
    }
    if not all(np.isfinite(own).all() for own in vectors.values()):
        raise ValueError(f"{named} hold values that are no finite numbers")
    if len({len(own) for own in vectors.values()}) > 1:
        counts = " and ".join(str(len(own)) for own in vectors.values())
        raise ValueError(f"{named} are {counts}; expected as many for each text encoder")
    if not word.strip() or word != word.strip() or any(sign in word for sign in BRACKETS):
        raise ValueError(
            f"{file}: {fields.shown(word)} cannot be a word of prompts, whose brackets, "
            "backslashes and bars have a meaning; give another one, as (path, word)"
        )
    return Embedding(word, vectors, file)


def _of_another_model(named: str, own: Mapping[str, int], widths: Mapping[str, int]) -> str:
    """Says for which model the vectors of a file are."""
    base = BASES.get(tuple(own[name] for name in (FIRST, SECOND) if name in own))
    made_for = f" It is for {base}." if base else ""
    sizes = " and ".join(map(str, own.values()))
    expected = " and ".join(map(str, widths.values()))
    several = f" (one for each of its {len(widths)} text encoders)" if len(widths) > 1 else ""
    return (
        f"{named} have {sizes} numbers, and this model's have {expected}{several}.{made_for} Take "
        "one that was trained for this model"
    )
