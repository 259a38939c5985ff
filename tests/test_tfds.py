# SPDX-License-Identifier: MIT
"""TFDS sets are found, downloaded, prepared and read without TensorFlow and without a network."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import socket
import struct
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import cifar, mnist

from jaxgen.data import sets, source, stream, tfds_prepare
from jaxgen.data import tfds as tfds_io

RNG = np.random.default_rng(0)


# prepared sets


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set as a user may have prepared it: any size, transparency, the splits that are given."""

    name = "pictures"
    VERSION = tfds.core.Version("1.0.0")
    shape = (None, None, 4)
    splits = ("train",)
    labelled = True
    step, levels = 10, 20  # of brightness, from one picture to the next

    def _info(self):
        features = {"picture": tfds.features.Image(shape=self.shape)}
        if self.labelled:
            features["kind"] = tfds.features.ClassLabel(names=["ant", "bee", "cat"])
        keys = ("picture", "kind") if self.labelled else None
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split):
        for i in range(20):
            height, width, channels = self.shape
            array = np.full(
                (height or 4 + i, width or 8, channels), self.step * (i % self.levels), np.uint8
            )
            array[..., 3:] = 255
            image = Image.fromarray(array[..., 0] if channels == 1 else array)
            record = {"picture": image}
            yield i, record | ({"kind": i % 3} if self.labelled else {})


def prepare(builder_class: type, root, **attributes):
    variant = type("Variant", (builder_class,), attributes, skip_registration=True)
    variant.name = "pictures"
    builder = variant(data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_a_prepared_set_is_read_by_name_and_by_folder(tmp_path):
    builder = prepare(Pictures, tmp_path, shape=(4, 8, 4), splits=("train", "test"))
    by_name = sets.load("pictures", data_dir=str(tmp_path))
    by_folder = sets.load(str(builder.data_path))

    assert by_name.images.shape == (20, 4, 8, 3)
    assert by_name.class_names == ("ant", "bee", "cat")
    value = by_name.images[:, 0, 0, 0]
    assert sorted(value.tolist()) == list(range(0, 200, 10))  # opaque: alpha changes nothing
    np.testing.assert_array_equal(by_name.labels, value // 10 % 3)  # labels stay with images
    np.testing.assert_array_equal(by_folder.images, by_name.images)
    assert "tensorflow" not in sys.modules


def test_the_data_dir_is_taken_from_the_environment(tmp_path, monkeypatch):
    prepare(Pictures, tmp_path, shape=(4, 4, 4))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert sets.load("pictures").images.shape == (18, 4, 4, 3)


def test_a_set_without_a_test_split_is_held_out_of(tmp_path):
    prepare(Pictures, tmp_path, shape=(4, 4, 1), labelled=False)
    train = sets.load("pictures", data_dir=str(tmp_path))
    test = sets.load("pictures", "test", data_dir=str(tmp_path))
    values = np.concatenate([train.images, test.images])[:, 0, 0, 0]
    assert (len(train.images), len(test.images)) == (18, 2)
    assert sorted(values.tolist()) == list(range(0, 200, 10))
    assert train.class_names == ()
    assert not train.labels.any()


def test_pictures_of_only_0_and_1_are_black_and_white(tmp_path):
    prepare(Pictures, tmp_path, shape=(4, 4, 1), step=1, levels=2)
    loaded = sets.load("pictures", data_dir=str(tmp_path))
    assert np.unique(loaded.images).tolist() == [0, 255]


def test_validation_stands_in_for_a_missing_test_split(tmp_path):
    prepare(Pictures, tmp_path, shape=(4, 4, 1), splits=("train", "validation"))
    assert len(sets.load("pictures", data_dir=str(tmp_path)).images) == 20
    assert len(sets.load("pictures", "test", data_dir=str(tmp_path)).images) == 20


def test_sets_of_mixed_sizes_ask_for_an_image_size(tmp_path):
    prepare(Pictures, tmp_path)
    with pytest.raises(ValueError, match="pass --image-size"):
        sets.load("pictures", data_dir=str(tmp_path))
    loaded = sets.load("pictures", data_dir=str(tmp_path), image_size=5, channels=1)
    assert loaded.images.shape == (18, 5, 5, 1)


def test_a_set_in_tfrecord_format_says_who_can_read_it(tmp_path):
    builder = prepare(Pictures, tmp_path, shape=(4, 4, 1))
    path = builder.data_path / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"tfrecord format, which only TensorFlow reads"):
        sets.load("pictures", data_dir=str(tmp_path))


def test_a_damaged_record_file_is_an_error_that_names_the_set(tmp_path):
    builder = prepare(Pictures, tmp_path, shape=(4, 4, 1))
    (path,) = builder.data_path.glob("*.array_record*")
    content = bytearray(path.read_bytes())
    written = np.flatnonzero(content)  # the file is padded with zeros
    for i in written[len(written) // 2 :][:20]:
        content[i] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pictures/1\.0\.0"):
        sets.load("pictures", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cifar10", (32, 32, 3)), ("svhn_cropped", (32, 32, 3)), ("mnist", (28, 28, 1))],
)
def test_stock_sets_read_in_their_documented_shapes(name, shape, tmp_path):
    class Records(list):  # the stock fake has no working __getitems__
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    fake = Records({"image": np.full(shape, i, np.uint8), "label": i} for i in range(9))
    with tfds.testing.mock_data(as_data_source_fn=lambda self, split, **_: fake):
        builder = tfds.builder(name, data_dir=tmp_path)
        opened = tfds_io.open_builder(builder, "train", image_size=None, channels=None)
        loaded = source.read_all(opened)
    assert loaded.images.shape == (9, *shape)
    assert len(loaded.class_names) == 10
    assert loaded.labels.tolist() == list(range(9))


class Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set without images."""

    name = "numbers"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"number": tfds.features.Scalar(np.int32)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": iter([(0, {"number": 1})])}

    def _generate_examples(self):
        pass


def test_sets_without_images_are_refused(tmp_path):
    Numbers(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(ValueError, match=r"numbers has no 8-bit images; .*\['number'\]"):
        sets.load("numbers", data_dir=str(tmp_path))


def test_damaged_metadata_is_an_error_that_names_the_folder(tmp_path):
    builder = prepare(Pictures, tmp_path, shape=(4, 4, 1))
    (builder.data_path / "features.json").write_text("{")
    with pytest.raises(ValueError, match=r"pictures/1\.0\.0 is not a prepared TFDS set"):
        sets.load("pictures", data_dir=str(tmp_path))


FEATURES = "tensorflow_datasets.core.features."


def unsafe_features(folder, tmp_path):
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(text.replace(FEATURES, "this."))


def linked_record(folder, tmp_path):
    (path,) = folder.glob("*.array_record*")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")


def pipe_record(folder, tmp_path):
    (path,) = folder.glob("*.array_record*")
    path.unlink()
    os.mkfifo(path)


def missing_record(folder, tmp_path):
    (path,) = folder.glob("*.array_record*")
    path.unlink()


def endless_features(folder, tmp_path):
    (folder / "features.json").write_bytes(b"[" * 2**25)


def numbers_for_names(folder, tmp_path):
    (folder / "dataset_info.json").write_text('{"name": 7, "splits": 3}')


@pytest.mark.parametrize(
    "damage",
    [
        unsafe_features, linked_record, pipe_record, missing_record, endless_features,
        numbers_for_names,
    ],
)  # fmt: skip
def test_prepared_folders_from_elsewhere_are_read_within_bounds(tmp_path, damage):
    builder = prepare(Pictures, tmp_path, shape=(4, 4, 1))
    damage(pathlib.Path(builder.data_path), tmp_path)
    with pytest.raises(ValueError, match=r"pictures/1\.0\.0") as caught:
        sets.load("pictures", data_dir=str(tmp_path))
    assert len(str(caught.value)) < 5000


def test_pictures_in_records_are_of_safe_formats_only(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # Pillow would start Ghostscript
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    with pytest.raises(ValueError, match="not a picture in a format that is read"):
        tfds_io._decode(eps, (4, 4, 1))


def test_the_newest_version_is_taken_unless_one_is_named(tmp_path):
    for version, shape in (("9.0.0", (9, 9, 1)), ("10.0.0", (10, 10, 1))):
        prepare(Pictures, tmp_path, shape=shape, VERSION=tfds.core.Version(version))
    assert sets.open_source("pictures", data_dir=str(tmp_path)).image_shape == (10, 10, 1)
    assert sets.open_source("pictures:9.0.0", data_dir=str(tmp_path)).image_shape == (9, 9, 1)


def test_several_configurations_must_be_told_apart(tmp_path):
    for config in ("big", "small"):
        prepare(Pictures, tmp_path / config, shape=(4, 4, 1))
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / config / "pictures").rename(tmp_path / "pictures" / config)
    with pytest.raises(ValueError, match=r"use one of \['pictures/big', 'pictures/small'\]"):
        sets.open_source("pictures", data_dir=str(tmp_path))
    assert sets.open_source("pictures/big", data_dir=str(tmp_path)).num_examples == 18


def test_a_prepared_set_streams_the_examples_that_it_loads(tmp_path):
    prepare(Pictures, tmp_path)
    options = {"data_dir": str(tmp_path), "image_size": 5}
    loaded = sets.load("pictures", **options)
    opened = sets.open_source("pictures", **options)
    batch = next(stream.shuffled_batches(opened, batch_size=18, seed=0))
    ours = as_multiset(batch["image"], batch["label"])
    assert ours == as_multiset(loaded.images, loaded.labels)


# names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "mnits",
            r"unknown data set 'mnits', and no such path. Did you mean 'mnist'\? Understood",
        ),
        ("digit", r"Did you mean 'digits'"),
        ("zzzzzz", r"unknown data set 'zzzzzz', and no such path. Understood"),
        ("no such set!", r"unknown data set"),
        ("huggingface:mnist", r"unknown data set"),
        ("mnist:9.9.9", r"mnist:9\.9\.9 is not prepared under"),
        ("emnist/letters", r"emnist/letters is not prepared under"),
        ("coco", r"coco is not prepared under .* file_format='array_record'"),
    ],
)
def test_names_that_lead_nowhere_are_explained(name, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        sets.load(name, data_dir=str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"\.\[data\].*Did you mean 'digits'\?.*\.npz"):
        sets.load("digitz")


# download and preparation, from a server on this machine


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Serves the files of a folder on 127.0.0.1; yields the folder and its URL."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def expect_checksums(monkeypatch, folder, url: str) -> None:
    """Makes TFDS expect the files of a folder under a URL, in place of its stored checksums."""
    infos = {
        url + path.name: checksums.UrlInfo(
            size=path.stat().st_size,
            checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
            filename=path.name,
        )
        for path in folder.iterdir()
    }
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: infos)


def serve_mnist(monkeypatch, folder, url: str, stock: type = mnist.MNIST):
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 30)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 10)
    monkeypatch.setattr(stock, "URL", url)
    images = RNG.integers(0, 256, (40, 28, 28), np.uint8)
    labels = RNG.integers(0, 10, 40).astype(np.uint8)
    for name, part in (("train", slice(0, 30)), ("t10k", slice(30, 40))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            packed = gzip.compress(header + array.tobytes())
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(packed)
    expect_checksums(monkeypatch, folder, url)
    return images, labels


def as_multiset(images: np.ndarray, labels: np.ndarray) -> list:
    return sorted(
        (int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "stock"), [("mnist", mnist.MNIST), ("fashion_mnist", mnist.FashionMNIST)]
)
def test_mnist_is_downloaded_and_prepared(name, stock, host, monkeypatch, tmp_path):
    images, labels = serve_mnist(monkeypatch, *host, stock)
    root = tmp_path / "tfds"

    train = sets.load(name, data_dir=str(root))
    monkeypatch.setattr(tfds_prepare, "prepare", None)  # now it is there
    test = sets.load(name, "test", data_dir=str(root))

    ours = as_multiset(train.images[..., 0], train.labels)
    assert ours == as_multiset(images[:30], labels[:30])  # TFDS shuffles as it writes
    assert as_multiset(test.images[..., 0], test.labels) == as_multiset(images[30:], labels[30:])
    assert len(train.class_names) == 10
    assert [path.name for path in root.iterdir()] == [name]  # no download is left behind
    assert tfds.data_source(name, split="test", data_dir=root, download=False)[0]["image"].any()
    assert "tensorflow" not in sys.modules


def test_cifar10_is_downloaded_and_prepared(host, monkeypatch, tmp_path):
    folder, url = host
    images = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = RNG.integers(0, 10, 12).astype(np.uint8)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        add("../outside.txt", b"must not be unpacked")
        add("cifar-10-batches-bin/batches.meta.txt", b"".join(b"kind%d\n" % i for i in range(10)))
        for i, name in enumerate(names):  # a label, then the red, green and blue planes
            parts = [
                bytes([labels[k]]) + images[k].transpose(2, 0, 1).tobytes()
                for k in (2 * i, 2 * i + 1)
            ]
            add(f"cifar-10-batches-bin/{name}", b"".join(parts))
    expect_checksums(monkeypatch, folder, url)
    info = cifar.Cifar10._cifar_info
    monkeypatch.setattr(
        cifar.Cifar10,
        "_cifar_info",
        property(lambda self: info.fget(self)._replace(url=url + "cifar-10-binary.tar.gz")),
    )

    train = sets.load("cifar10", data_dir=str(tmp_path / "tfds"))
    test = sets.load("cifar10", "test", data_dir=str(tmp_path / "tfds"))

    assert as_multiset(train.images, train.labels) == as_multiset(images[:10], labels[:10])
    assert as_multiset(test.images, test.labels) == as_multiset(images[10:], labels[10:])
    assert train.class_names == tuple(f"kind{i}" for i in range(10))
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_download_with_a_wrong_checksum_leaves_nothing_behind(host, monkeypatch, tmp_path):
    folder, url = host
    serve_mnist(monkeypatch, folder, url)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"(?s)mnist cannot be prepared: .*wrong checksum.*npz"):
        sets.load("mnist", data_dir=str(tmp_path / "tfds"))
    assert not any((tmp_path / "tfds").iterdir())


def test_a_download_that_is_not_idx_leaves_nothing_behind(host, monkeypatch, tmp_path):
    folder, url = host
    serve_mnist(monkeypatch, folder, url)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>log in first</html>")
    expect_checksums(monkeypatch, folder, url)
    with pytest.raises(ValueError, match=r"mnist cannot be prepared: .*not an IDX file"):
        sets.load("mnist", data_dir=str(tmp_path / "tfds"))
    assert not any((tmp_path / "tfds").iterdir())


def test_a_missing_file_on_the_host_is_reported(host, monkeypatch, tmp_path):
    monkeypatch.setattr(mnist.MNIST, "URL", host[1])
    with pytest.raises(ValueError, match=r"cannot be reached \(HTTP Error 404"):
        sets.load("mnist", data_dir=str(tmp_path / "tfds"))


def test_offline_fails_at_once_with_three_ways_out(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(mnist.MNIST, "URL", f"http://127.0.0.1:{port}/")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"Three ways need no download: copy .*IDX files.*\.npz"):
        sets.load("mnist", data_dir=str(tmp_path / "tfds"))
    assert time.monotonic() - start < 5
    assert not (tmp_path / "tfds").exists()


def test_a_host_that_never_answers_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds_prepare, "_PROBE_SECONDS", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and says nothing
        monkeypatch.setattr(mnist.MNIST, "URL", f"http://127.0.0.1:{mute.getsockname()[1]}/")
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"cannot be reached \((timed out|no answer)"):
            sets.load("mnist", data_dir=str(tmp_path / "tfds"))
        assert time.monotonic() - start < 3


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds_prepare, "_PROBE_SECONDS", 0.3)
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(20))
    start = time.monotonic()
    with pytest.raises(ValueError, match="no answer in"):
        sets.load("mnist", data_dir=str(tmp_path / "tfds"))
    assert time.monotonic() - start < 3
    released.set()
