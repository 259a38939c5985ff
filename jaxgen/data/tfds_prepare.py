# SPDX-License-Identifier: MIT
"""Downloads MNIST, Fashion-MNIST and CIFAR-10 and prepares them as TFDS does, without TensorFlow.

The stock builders give the metadata, the URLs and the checksums; only unpacking is done here,
because theirs needs TensorFlow. The result lies where TFDS itself looks for the set.
"""

import contextlib
import pathlib
import queue
import tarfile
import tempfile
import threading
import types
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
from PIL import Image

from jaxgen.data import idx

NAMES = ("mnist", "fashion_mnist", "cifar10")
_PROBE_SECONDS = 8.0
_MAX_BYTES = 2**28  # unpacked size of one file; the largest is 47 MB
_CIFAR_RECORD = 1 + 3 * 32 * 32  # label, then the planes of red, green and blue


def prepare(name: str, root: pathlib.Path):
    """Downloads a set and prepares it under `root` in array_record files; returns its builder.

    Everything is made in temporary folders and renamed at the end, so a failure leaves nothing.
    Raises ValueError within seconds when the host cannot be reached.
    """
    if name not in NAMES:
        raise ValueError(
            f"{name} is not prepared under {root}, and only {', '.join(NAMES)} can be prepared "
            f"without TensorFlow; prepare it where TensorFlow is installed with "
            f"file_format='array_record' and copy the folder, or use a folder of pictures"
        )
    builder_class, url = _builder_class(name)
    _probe(name, url, root)

    import tensorflow_datasets as tfds

    root.mkdir(parents=True, exist_ok=True)
    try:
        builder = builder_class(data_dir=root, file_format="array_record")
        with tempfile.TemporaryDirectory(prefix="incomplete.downloads.", dir=root) as downloads:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(
                    try_download_gcs=False, force_checksums_validation=True
                ),
            )
    except Exception as error:
        raise ValueError(f"{name} cannot be prepared: {error}. {_ways_out(name, root)}") from error
    finally:
        with contextlib.suppress(OSError):  # empty only after a failure
            (root / name).rmdir()
    return builder


def _builder_class(name: str) -> tuple[type, str]:
    """Returns the stock builder with its unpacking replaced, and a URL that it downloads."""
    # classes of TFDS can be subclassed only once TFDS, an extra, is imported
    from tensorflow_datasets.image_classification import cifar, mnist

    if name == "cifar10":
        return _cifar_class(cifar.Cifar10)
    stock = mnist.MNIST if name == "mnist" else mnist.FashionMNIST
    return _mnist_class(stock, name), stock.URL + "train-labels-idx1-ubyte.gz"


def _mnist_class(stock: type, stock_name: str) -> type:
    class Mnist(stock, skip_registration=True):
        name = stock_name

        def _split_generators(self, dl_manager):
            # the stock method asks for unpacked files, all at once; here they stay gzip, and come
            # one by one, so that nothing is still being written when one of them fails
            def download(urls: dict[str, str]) -> dict:
                return {key: dl_manager.download(url) for key, url in urls.items()}

            return super()._split_generators(types.SimpleNamespace(download_and_extract=download))

        def _generate_examples(self, num_examples, data_path, label_path):
            images = idx.read(pathlib.Path(data_path), _MAX_BYTES)
            labels = idx.read(pathlib.Path(label_path), _MAX_BYTES)
            if not len(images) == len(labels) == num_examples:
                raise ValueError(f"{len(images)} images and {len(labels)} labels: {num_examples}?")
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {"image": Image.fromarray(image), "label": int(label)}

    return Mnist


def _cifar_class(stock: type) -> tuple[type, str]:
    class Cifar10(stock, skip_registration=True):
        name = "cifar10"

        def _split_generators(self, dl_manager):
            info = self._cifar_info
            archive = dl_manager.download(info.url)
            names = _read_members(archive, info.prefix, info.label_files)[0].decode().split()
            self.info.features["label"].names = names
            return {
                "train": self._generate_examples("train_", archive, info.train_files),
                "test": self._generate_examples("test_", archive, info.test_files),
            }

        def _generate_examples(self, split_prefix, archive, files):
            parts = _read_members(archive, self._cifar_info.prefix, files)
            for i, (image, label) in enumerate(_cifar_records(parts)):
                record = {"id": f"{split_prefix}{i:05d}", "image": image, "label": label}
                yield i, record

    # `_cifar_info` is a property that reads only the class's name
    return Cifar10, stock._cifar_info.fget(types.SimpleNamespace(name="cifar10")).url


def _read_members(archive, prefix: str, names: list[str]) -> list[bytes]:
    """Reads named files of a tar into memory: no path of the archive reaches the disk."""
    contents = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = member.name.removeprefix(prefix)
            file = tar.extractfile(member) if member.isfile() and name in names else None
            if file is None:
                continue
            if member.size > _MAX_BYTES:
                raise ValueError(f"{member.name} declares {member.size:,} bytes")
            contents[name] = file.read()
    missing = sorted(set(names) - set(contents))
    if missing:
        raise ValueError(f"the archive has no {', '.join(missing)}")
    return [contents[name] for name in names]


def _cifar_records(parts: list[bytes]) -> Iterator[tuple[Image.Image, int]]:
    for part in parts:
        records = np.frombuffer(part, np.uint8).reshape(-1, _CIFAR_RECORD)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for image, label in zip(images, records[:, 0], strict=True):
            yield Image.fromarray(np.ascontiguousarray(image)), int(label)


def _probe(name: str, url: str, root: pathlib.Path) -> None:
    """Raises ValueError unless the URL answers soon: TFDS itself retries for minutes."""
    answer: queue.Queue = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
                answer.put(None)
        except Exception as error:
            answer.put(error)

    # a thread, because the time a name look-up takes cannot be limited otherwise
    threading.Thread(target=ask, daemon=True).start()
    try:
        error = answer.get(timeout=_PROBE_SECONDS)
    except queue.Empty:
        error = TimeoutError(f"no answer in {_PROBE_SECONDS:.0f} s")
    if isinstance(error, urllib.error.HTTPError) and error.code in (405, 501):
        return  # the host is there and only refuses to be asked this way
    if error is not None:
        raise ValueError(
            f"{name} is not prepared under {root} and {url} cannot be reached ({error}). "
            f"{_ways_out(name, root)}"
        ) from error


def _ways_out(name: str, root: pathlib.Path) -> str:
    return (
        f"Three ways need no download: copy a prepared {name} folder into {root}; give "
        f"the path of a folder of its IDX files or of its pictures; or give the path of an .npz. "
        f"The set digits needs no download."
    )
