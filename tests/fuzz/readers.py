# SPDX-License-Identifier: MIT
"""The readers of foreign files, each with a sound folder to damage.

`make` writes the folder, `read` reads all of it as a program would and asserts what must hold of
everything that is accepted. Both run in processes of their own, so that they may start JAX.
"""

import contextlib
import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image
from support import checkpoints, clip_words, ldm_shapes

from experiments import autoencoder
from fuzz import part_readers
from jaxgen import files
from jaxgen.data import caption_folder, sets
from jaxgen.data.source import read_all
from jaxgen.diffusion import config
from jaxgen.pictures import images
from jaxgen.runs import checkpoint, command_line, log, run_folder
from jaxgen.stable_diffusion import loading
from jaxgen.weights import diffusers, single_file, tensors, tokenizer

GIB = 2**30
_MOST_BYTES = 2**26  # of arrays that a data set may have here
_STATE = {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.int32(7)}


class Reader(NamedTuple):
    """How a folder is made and read, and what the reader promises."""

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    memory: int = GIB  # bytes that reading may take beside the interpreter
    inside_only: bool = False  # links that lead out of the folder are refused


def _make_json(folder: Path) -> None:
    value = {"a": [1, 2.5, None, {"b": "text"}], "class": "X", "deep": {"er": {"est": True}}}
    (folder / "config.json").write_text(files.dumps(value))


def _make_safetensors(folder: Path) -> None:
    arrays = {"w": np.ones((3, 4), np.float32), "b": np.zeros(4, np.float16), "n": np.int64(3)}
    path = folder / "model.safetensors"
    safetensors.numpy.save_file({k: np.asarray(v) for k, v in arrays.items()}, path)


def _read_safetensors(folder: Path) -> None:
    stored = tensors.open_file(folder / "model.safetensors")
    for tensor in list(stored.values())[:100]:
        assert tensor.read().shape == tensor.shape


def _make_model(folder: Path) -> None:
    whole = folder.with_name(folder.name + ".whole")
    diffusers.write(whole, checkpoints.checkpoint("xl"))
    folder.rmdir()
    whole.rename(folder)


def _read_model(folder: Path) -> None:
    _check_pipeline(diffusers.read(folder), folder)


def _check_pipeline(stored: diffusers.Checkpoint, where: Path) -> None:
    """Networks and a sampler can be built, which names the folder if it cannot."""
    with _named(where):
        loading.networks(stored)
        config.from_config(stored.scheduler)(20)
        config.from_config(stored.scheduler, "dpmpp_2m")(20)
    for tokens in stored.tokenizers.values():
        tokenizer.tokenize(tokens, ["a cat"])


@contextlib.contextmanager
def _named(where: Path):
    """Errors of functions that take values, not files, for which the caller names the folder."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _make_single_file(kind: ldm_shapes.Ldm, folder: Path) -> None:
    whole = len(checkpoints.VOCAB)  # the tokenizer's, each of whose ids needs a row
    own = {"clip": (whole, *kind.clip[1:]), "open_clip": (whole, *kind.open_clip[1:])}
    part_readers.make_single_file(folder, kind._replace(**own))
    _make_tokenizer(folder)


def _read_single_file(folder: Path) -> None:
    stored = single_file.read(folder / "model.safetensors", folder)
    _check_pipeline(stored, folder)


def _make_tokenizer(folder: Path) -> None:
    tokenizer.write(folder, tokenizer.build(*clip_words.small_vocabulary()))


def _make_tokenizer_json(folder: Path) -> None:
    vocab, merges = clip_words.small_vocabulary()
    model = {"type": "BPE", "vocab": vocab, "merges": [f"{a} {b}" for a, b in merges]}
    added = [{"content": tokenizer.BOS, "normalized": False}, {"content": tokenizer.EOS}]
    value = {"model": model, "added_tokens": added}
    (folder / "tokenizer.json").write_text(files.dumps(value))
    (folder / "tokenizer_config.json").write_text(files.dumps({"model_max_length": 77}))


def _read_tokenizer(folder: Path) -> None:
    tokens = tokenizer.read(folder)
    ids = tokenizer.tokenize(tokens, ["a red bird, 8k", "\ud800\x00"])
    assert ids.min() >= 0
    assert ids.max() < 2**20


def _make_idx(folder: Path) -> None:
    for prefix in ("train", "t10k"):
        pictures = np.arange(20 * 64, dtype=np.uint8).tobytes()
        head = bytes([0, 0, 8, 3, 0, 0, 0, 20, 0, 0, 0, 8, 0, 0, 0, 8])
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pictures))
        labels = bytes([0, 0, 8, 1, 0, 0, 0, 20]) + bytes(range(20))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


def _make_npz(folder: Path) -> None:
    images_, labels = np.arange(40 * 64).reshape(40, 8, 8) % 256, np.arange(40) % 4
    np.savez(folder / "data.npz", images=images_.astype(np.uint8), labels=labels)


def _read_npz(folder: Path) -> None:
    _check_set(sets.load(str(folder / "data.npz"), max_bytes=_MOST_BYTES))


def _read_set(folder: Path) -> None:
    _check_set(sets.load(str(folder), image_size=8, max_bytes=_MOST_BYTES))


def _check_set(data: sets.Dataset) -> None:
    assert data.images.dtype == np.uint8
    assert data.images.ndim == 4
    assert data.images.size
    assert len(data.images) == len(data.labels)
    assert data.labels.min() >= 0


def _picture(i: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 12, 3), np.uint8))


def _make_pictures(folder: Path) -> None:
    for i, suffix in enumerate(["png", "jpg", "png", "gif", "webp", "bmp", "tif", "png"]):
        place = folder / ("ab"[i % 2])
        place.mkdir(exist_ok=True)
        _picture(i).save(place / f"{i}.{suffix}")


def _make_captions(folder: Path) -> None:
    (folder / "train").mkdir()
    names = [f"{i}.{'png' if i % 2 else 'jpg'}" for i in range(6)]
    for i, name in enumerate(names):
        _picture(i).save(folder / "train" / name)
    lines = [json.dumps({"file_name": name, "text": f"picture {name}"}) for name in names]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _read_captions(folder: Path) -> None:
    captioned = caption_folder.open_split(folder, "train", image_size=8, channels=3)
    read_all(captioned.source)
    assert all(captioned.captions)


def _make_tfds(folder: Path) -> None:
    import tensorflow_datasets as tfds

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "small"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image, label = (
                tfds.features.Image(shape=(8, 8, 3)),
                tfds.features.ClassLabel(names="ab"),
            )
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(20):
                # an array would be packed by TensorFlow
                yield i, {"image": Image.new("RGB", (8, 8), (i, 0, 0)), "label": i % 2}

    builder = Small(data_dir=folder.with_name("prepared"), file_format="array_record")
    builder.download_and_prepare()
    folder.rmdir()
    Path(builder.data_path).rename(folder)


def _make_config(folder: Path) -> None:
    from dataclasses import asdict

    run_folder.write_config(folder, "autoencoder", asdict(autoencoder.Config()))


def _read_config(folder: Path) -> None:
    command_line.read(autoencoder.Config, str(folder), "autoencoder")


def _make_metrics(folder: Path) -> None:
    rows = [{"step": i, "loss": 0.5, "vector": [0.25, 1e-30]} for i in range(0, 200, 10)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)


def _read_metrics(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    log.keep(path, lambda step: step <= 150)
    assert all(isinstance(row["step"], int) for row in log.read_rows(path))


def _make_checkpoint(folder: Path) -> None:
    with contextlib.closing(checkpoint.open_manager(folder)) as manager:
        checkpoint.save(manager, 7, jax.tree.map(jnp.asarray, _STATE))
        manager.wait_until_finished()


def _read_checkpoint(folder: Path) -> None:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _STATE)
    with contextlib.closing(checkpoint.open_manager(folder, read_only=True)) as manager:
        state, _ = checkpoint.restore(manager, like)
    assert all(np.array_equal(state[name], value) for name, value in _STATE.items())


def _make_png(folder: Path) -> None:
    images.save(folder / "0.png", _picture(0), {"prompt": "a cat", "note": "é" * 40})


def _read_png(folder: Path) -> None:
    images.read(folder / "0.png")
    assert all(isinstance(text, str) for text in images.read_text(folder / "0.png").values())


READERS = {
    "json": Reader(_make_json, lambda folder: files.read_object(folder / "config.json")),
    "safetensors": Reader(_make_safetensors, _read_safetensors),
    "model folder": Reader(_make_model, _read_model),
    "single file": Reader(partial(_make_single_file, ldm_shapes.TINY_V1), _read_single_file),
    "single file 2": Reader(partial(_make_single_file, ldm_shapes.TINY_V2), _read_single_file),
    "single file xl": Reader(partial(_make_single_file, ldm_shapes.TINY_XL), _read_single_file),
    "adapter": Reader(part_readers.make_adapter, part_readers.read_adapter),
    "controlnet": Reader(part_readers.make_controlnet, part_readers.read_controlnet),
    "embedding": Reader(part_readers.make_embedding, part_readers.read_embedding),
    "tokenizer": Reader(_make_tokenizer, _read_tokenizer),
    "tokenizer.json": Reader(_make_tokenizer_json, _read_tokenizer),
    "idx": Reader(_make_idx, _read_set),
    "npz": Reader(_make_npz, _read_npz),
    "pictures": Reader(_make_pictures, _read_set, memory=2 * GIB),
    "captions": Reader(_make_captions, _read_captions, memory=2 * GIB, inside_only=True),
    "tfds": Reader(_make_tfds, _read_set, memory=2 * GIB, inside_only=True),
    "run config": Reader(_make_config, _read_config),
    "run metrics": Reader(_make_metrics, _read_metrics),
    "checkpoint": Reader(_make_checkpoint, _read_checkpoint, memory=2 * GIB),
    "png": Reader(_make_png, _read_png, memory=2 * GIB),
}
