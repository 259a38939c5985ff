# SPDX-License-Identifier: MIT
"""TensorFlow Datasets without TensorFlow: prepared sets by name or by folder.

Sets are read through `as_data_source`, which needs the array_record (or parquet) file format; the
default format of TFDS, tfrecord, can be read by TensorFlow only.
"""

import difflib
import os
import pathlib
import re

import numpy as np

from jaxgen.data import pixels, source, tfds_prepare

_NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\d.*]+)?")  # name/configuration:version


def is_prepared_folder(folder: pathlib.Path) -> bool:
    """Whether a folder is one version of a prepared set, as .../mnist/3.0.1 is."""
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()


def open_folder(
    folder: pathlib.Path, split: str, *, image_size: int | None, channels: int | None
) -> source.Source:
    """A Source over a prepared folder, whatever made it."""
    tfds = import_tfds(str(folder))
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # the metadata are JSON and protocol buffers: many kinds of errors
        raise ValueError(f"{folder} is not a prepared TFDS set ({error}); copy it again") from error
    return open_builder(builder, split, image_size=image_size, channels=channels)


def open_name(
    name: str,
    split: str,
    *,
    image_size: int | None,
    channels: int | None,
    data_dir: str | None = None,
) -> source.Source:
    """A Source over a set by its TFDS name: mnist, emnist/letters, cifar10:3.0.2.

    A set that is not prepared yet is downloaded and prepared if it is one that can be.

    data_dir: where prepared sets lie; None means $TFDS_DATA_DIR, then ~/tensorflow_datasets.
    Raises ValueError for a name that is not known, and when the set is neither prepared nor
    within reach.
    """
    tfds = import_tfds(name)
    root = pathlib.Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    known = tfds.list_builders(with_community_datasets=False)
    folder = _find_prepared(name, root) if _NAME.fullmatch(name) else None
    if folder is not None:
        return open_folder(folder, split, image_size=image_size, channels=channels)
    if re.split("[/:]", name)[0] not in known:
        raise ValueError(
            f"unknown data set {name!r}, and no such path.{_suggest(name, ('digits', *known))} "
            f"Understood are: digits; the path of an .npz, of a folder of IDX files, of a folder "
            f"of pictures or of a prepared TFDS folder; a TFDS name such as "
            f"{', '.join(tfds_prepare.NAMES)}"
        )
    builder = tfds_prepare.prepare(name, root)
    return open_builder(builder, split, image_size=image_size, channels=channels)


def open_builder(
    builder, split: str, *, image_size: int | None, channels: int | None
) -> source.Source:
    """A Source over a TFDS builder whose set is prepared."""
    image_key, label_key = _find_features(builder)
    records = _open_records(builder, _split_expression(list(builder.info.splits), split))
    shape = _shape(builder, image_key, image_size, channels)
    names = ()
    if label_key is not None:
        feature = builder.info.features[label_key]
        names = tuple(feature.names or (str(i) for i in range(feature.num_classes)))

    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        try:
            examples = records.__getitems__(indices)  # much faster than one by one
        except Exception as error:  # array_record raises what its C++ throws
            raise ValueError(
                f"{builder.data_path}: records {indices[0]} to {indices[-1]} of {split} cannot be "
                f"read: {error}"
            ) from error
        images = [pixels.fit_array(_without_alpha(e[image_key]), shape) for e in examples]
        labels = [0 if label_key is None else e[label_key] for e in examples]
        return np.stack(images), np.array(labels, np.int32)

    return source.Source(len(records), shape, names, read)


def import_tfds(name: str):
    """The tensorflow_datasets module, or an error that names the extra and what asked for it."""
    try:
        import array_record  # noqa: F401  (TFDS imports these two only when it comes to reading)
        import importlib_resources  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        known = ("digits", *tfds_prepare.NAMES)
        raise ImportError(
            f'{name!r} is looked up in TensorFlow Datasets: pip install "jaxgen[data]" '
            f"(TensorFlow is not needed).{_suggest(name, known)} Without it: digits, or the path "
            f"of an .npz, of a folder of IDX files, or of a folder of pictures"
        ) from error
    return tfds


def _find_prepared(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """The folder root/name[/configuration]/version of a prepared set, the newest if several.

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


def _open_records(builder, expression: str):
    try:
        return builder.as_data_source(split=expression)
    except NotImplementedError as error:  # tfds has no random access to this format
        raise ValueError(
            f"{builder.data_path} is in the {builder.info.file_format.value} format, which only "
            f"TensorFlow reads; prepare it again with file_format='array_record', or give another "
            f"data_dir"
        ) from error


def _split_expression(splits: list[str], split: str) -> str:
    """The TFDS split for train or test: validation stands in for test, then a held-out tenth."""
    if split == "train":
        return "train" if {"test", "validation"} & set(splits) else "train[:90%]"
    for name in ("test", "validation"):
        if name in splits:
            return name
    return "train[90%:]"


def _find_features(builder) -> tuple[str, str | None]:
    """Keys of the image and of the class label (None when there is none) of a record."""
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
    return image_key, label_key


def _shape(
    builder, image_key: str, image_size: int | None, channels: int | None
) -> tuple[int, int, int]:
    height, width, stored_channels = builder.info.features[image_key].shape
    if image_size is not None:
        height = width = image_size
    if height is None or width is None:
        raise ValueError(
            f"the images of {builder.name} have different sizes; pass --image-size to resize and "
            f"crop them to one"
        )
    return height, width, channels or (1 if stored_channels == 1 else 3)


def _without_alpha(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] from [H, W, 4], laid on white; other images as they are."""
    if image.shape[-1] != 4:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _suggest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
