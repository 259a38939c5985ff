# SPDX-License-Identifier: MIT
"""TensorFlow Datasets without TensorFlow: prepared sets by name or by folder.

Sets are read through `as_data_source`, which needs the array_record (or parquet) file format; the
default format of TFDS, tfrecord, can be read by TensorFlow only.
"""

import difflib
import functools
import io
import os
import pathlib
import re
from typing import Any

import numpy as np

from jaxgen import fields, files
from jaxgen.data import picture_file, pillow, pixels, source, tfds_prepare

_METADATA = ("dataset_info.json", "features.json")
_METADATA_BYTES = 2**24
_NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\d.*]+)?")  # name/configuration:version


def is_prepared_folder(folder: pathlib.Path) -> bool:
    """Says whether a folder is one version of a prepared set, as .../mnist/3.0.1 is."""
    return all((folder / name).is_file() for name in _METADATA)


def open_folder(
    folder: pathlib.Path, split: str, *, image_size: int | None, channels: int | None
) -> source.Source:
    """Opens a prepared folder as a Source, whatever program prepared it."""
    tfds = import_tfds(str(folder))
    try:
        _check_folder(folder)
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # the metadata are JSON and protocol buffers: many kinds of errors
        raise ValueError(
            f"{files.printable(folder)} is not a prepared TFDS set ({files.printable(error)}); "
            f"copy it again"
        ) from error
    return open_builder(builder, split, image_size=image_size, channels=channels)


def open_name(
    name: str,
    split: str,
    *,
    image_size: int | None,
    channels: int | None,
    data_dir: str | None = None,
) -> source.Source:
    """Opens a set by its TFDS name as a Source: mnist, emnist/letters, cifar10:3.0.2.

    A set that is not prepared yet is downloaded and prepared if it is one that can be.

    data_dir: where prepared sets lie; None means $TFDS_DATA_DIR, then ~/tensorflow_datasets.
    Raises ValueError for an unknown name, and when the set is neither prepared nor within reach.
    """
    tfds = import_tfds(name)
    root = files.expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    known = tfds.list_builders(with_community_datasets=False)
    folder = _find_prepared(name, root) if _NAME.fullmatch(name) else None
    if folder is not None:
        return open_folder(folder, split, image_size=image_size, channels=channels)
    if re.split("[/:]", name)[0] not in known:
        raise ValueError(
            f"unknown data set {files.printable(repr(name))}, and no such path."
            f"{_suggest(name, ('digits', 'mnist5k', *known))} "
            f"Understood are: digits; mnist5k; the path of an .npz, of a folder of IDX files, of a "
            f"folder of pictures or of a prepared TFDS folder; a TFDS name such as "
            f"{', '.join(tfds_prepare.NAMES)}"
        )
    builder = tfds_prepare.prepare(name, root)
    return open_builder(builder, split, image_size=image_size, channels=channels)


def open_builder(
    builder, split: str, *, image_size: int | None, channels: int | None
) -> source.Source:
    """Opens the set of a TFDS builder, which is prepared, as a Source."""
    place = files.printable(builder.data_path)
    with files.one_error(place):  # metadata of a wrong kind
        expression = _split_expression(list(builder.info.splits), split)
        image_key, label_key, names = _find_features(builder)
        shape = _shape(builder, image_key, image_size, channels)
    records = _open_records(builder, expression, image_key, place)
    is_binary = functools.cache(lambda: _is_binary(records, image_key, place))  # at the first read

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        shown = f"{place}: records {indices[0]} to {indices[-1]} of {split} cannot be read"
        try:
            examples = records.__getitems__(indices)  # much faster than one by one
            binary = is_binary()
            images = [_decode(example[image_key], shape, binary) for example in examples]
            labels = [0 if label_key is None else int(e[label_key]) for e in examples]
        except Exception as error:  # array_record raises what its C++ throws
            raise ValueError(f"{shown}: {files.printable(error)}") from error
        if min(labels) < 0 or max(labels) >= max(len(names), 1):
            raise ValueError(f"{shown}: a label is not one of the {len(names)} classes")
        return np.stack(images), np.array(labels, np.int32)

    line = f"{split} {len(records):,} images" + f" of {len(names)} classes" * bool(names)
    line += f"; the TFDS split {expression}"
    return source.Source(len(records), shape, names, read, description=line)


def import_tfds(name: str):
    """Imports tensorflow_datasets; the error without it names the extra and the data set."""
    try:
        import array_record  # noqa: F401  (TFDS imports these two only when it comes to reading)
        import importlib_resources  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        known = ("digits", "mnist5k", *tfds_prepare.NAMES)
        raise ImportError(
            f'{fields.shown(name)} is looked up in TensorFlow Datasets: pip install -e ".[data]" '
            f"(TensorFlow is not needed).{_suggest(name, known)} Without it: digits, mnist5k, or "
            f"the path of an .npz, of a folder of IDX files, or of a folder of pictures"
        ) from error
    return tfds


def _find_prepared(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """Finds root/name[/configuration]/version of a prepared set, the newest of several.

    The folders are looked at directly, because TFDS first makes a builder from its code, and the
    code of many sets imports TensorFlow.
    """
    name, _, version = name.partition(":")
    for depth in (f"{version or '*'}", f"*/{version or '*'}"):
        folders = [path for path in (root / name).glob(depth) if is_prepared_folder(path)]
        if len({path.parent for path in folders}) > 1:
            configs = sorted({f"{name}/{path.parent.name}" for path in folders})
            raise ValueError(f"{name} is prepared in several configurations; use one of {configs}")
        if folders:
            return max(folders, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    return None


def _check_folder(folder: pathlib.Path) -> None:
    """Raises ValueError for files outside of the folder and for metadata that name other code."""
    root = os.path.realpath(folder)
    for path in folder.iterdir():
        if not pathlib.Path(os.path.realpath(path)).is_relative_to(root):
            raise ValueError(f"{path.name} is a link out of the folder")
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.name} is not a regular file")
    _, features = (files.read_object(folder / name, _METADATA_BYTES) for name in _METADATA)
    nodes: list[Any] = [features]
    while nodes:  # TFDS imports the module of every class that is named here
        node = nodes.pop()
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        keys = ("pythonClassName", "type") if isinstance(node, dict) else ()
        for name in (node[key] for key in keys if key in node):
            if not (isinstance(name, str) and name.startswith("tensorflow_datasets.")):
                raise ValueError(f"features.json names {str(name)[:80]}, which is not of TFDS")


def _open_records(builder, expression: str, image_key: str, place: str):
    """Opens the records of a split, in which pictures stay encoded."""
    import tensorflow_datasets as tfds

    try:
        # TFDS would let OpenCV or Pillow open whatever format the bytes are of
        decoders = {image_key: tfds.decode.SkipDecoding()}
        records = builder.as_data_source(split=expression, decoders=decoders)
        len(records)
    except NotImplementedError as error:  # tfds has no random access to this format
        raise ValueError(
            f"{place} is in the {builder.info.file_format.value} format, which only "
            f"TensorFlow reads; prepare it again with file_format='array_record', or give another "
            f"data_dir"
        ) from error
    except Exception as error:  # missing files and what the C++ of array_record throws
        raise ValueError(
            f"{place} has no {expression} that can be read ({files.printable(error)}); "
            f"copy it again"
        ) from error
    return records


def _decode(
    image: bytes | np.ndarray, shape: tuple[int, int, int], binary: bool = False
) -> np.ndarray:
    """Decodes a stored picture to uint8 [H, W, C]."""
    if isinstance(image, np.ndarray):
        return pillow.fit_array(pixels.on_white(image), shape, binary)
    with picture_file.open_file(io.BytesIO(image), "a picture") as picture:
        return pillow.fit(picture, shape, binary)


def _is_binary(records, image_key: str, place: str) -> bool:
    """Says whether the pictures hold only 0 and 1; nearly always, the first one answers it."""
    spread = np.linspace(0, len(records) - 1, min(source.SAMPLE, len(records))).astype(int)
    stored = (records[i][image_key] for i in spread.tolist())
    return pillow.is_binary(map(_range_of, stored), place)


def _range_of(image: bytes | np.ndarray) -> tuple[int, int]:
    if isinstance(image, np.ndarray):
        return int(image.max()), 255
    with picture_file.open_file(io.BytesIO(image), "a picture") as picture:
        return pillow.range_of(picture)


def _split_expression(splits: list[str], split: str) -> str:
    """Names the TFDS split: validation stands in for a missing test, then a held-out tenth."""
    if split == "train":
        return "train" if {"test", "validation"} & set(splits) else "train[:90%]"
    for name in ("test", "validation"):
        if name in splits:
            return name
    return "train[90%:]"


def _find_features(builder) -> tuple[str, str | None, tuple[str, ...]]:
    """Finds the keys of a record's image and label (None without one), and the class names."""
    import tensorflow_datasets as tfds

    features, supervised = builder.info.features, builder.info.supervised_keys or ()
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    labels = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
    image_key = next((key for key in (*supervised, "image", *images) if key in images), None)
    label_key = next((key for key in (*supervised, "label") if key in labels), None)
    if image_key is None or features[image_key].np_dtype != np.uint8:
        raise ValueError(
            f"{builder.name} has no 8-bit images; its features are {sorted(features)}. "
            f"Choose a data set of images"
        )
    if label_key is None:
        return image_key, None, ()
    names = features[label_key].names or (str(i) for i in range(features[label_key].num_classes))
    return image_key, label_key, tuple(names)


def _shape(
    builder, image_key: str, image_size: int | None, channels: int | None
) -> tuple[int, int, int]:
    stored_shape = builder.info.features[image_key].shape
    if len(stored_shape) != 3:
        raise ValueError(
            f"the images have {len(stored_shape)} axes; expected height, width, channels"
        )
    height, width, stored_channels = stored_shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise ValueError(
            f"the images of {builder.name} have different sizes; pass --image-size to resize and "
            f"crop them to one"
        )
    return height, width, channels or (1 if stored_channels == 1 else 3)


def _suggest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {fields.shown(close[0])}?" if close else ""
