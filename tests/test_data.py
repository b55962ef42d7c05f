"""The data room: every format from tiny files made here, broken ones, batches, augmentation."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mulfree_cupy as mf
from mulfree_cupy import data
from mulfree_cupy.data import archives, folders

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MULFREE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_images(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


# Files in every format. Each maker returns {name: bytes}, and `pack` puts them somewhere.


def picture(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def class_folders(prefix="", per_class=5, size=(6, 4), classes=("cat", "dog", "emu"), seed=0):
    images = random_images(len(classes) * per_class, *size, 3, seed=seed)
    names = [f"{prefix}{c}/{i:02}.png" for c in classes for i in range(per_class)]
    return {name: picture(pixels) for name, pixels in zip(names, images, strict=True)}


def cifar(version, per_batch=2, seed=0):
    rng = np.random.default_rng(seed)
    label_classes, names = {
        10: ((10,), [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]),
        100: ((20, 100), ["train.bin", "test.bin"]),
    }[version]
    files = {}
    for name in names:
        count = 5 * per_batch if name == "train.bin" else per_batch
        labels = [rng.integers(0, classes, (count, 1), np.uint8) for classes in label_classes]
        pixels = rng.integers(0, 256, (count, 3072), np.uint8)
        files[f"cifar-binary/{name}"] = np.hstack([*labels, pixels]).tobytes()
    return files


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def mnist(train=7, test=3):
    files = {}
    for name, count in (("train", train), ("t10k", test)):
        files[f"{name}-images-idx3-ubyte"] = idx(random_images(count, 5, 4))
        files[f"{name}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8))
    return files


def pack(files, path):
    """Write the files, in reversed order, into a folder or the archive that the name asks for."""
    entries = list(files.items())[::-1]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries:
                archive.writestr(name, content)
    elif ".tar" in path.suffixes:
        kind = path.suffix[1:] if path.suffix != ".tar" else ""
        with tarfile.open(path, f"w:{kind}") as archive:
            for name, content in entries:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in entries:
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return path


FORMS = ["folder", "a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"]


def assert_same(part, other):
    np.testing.assert_array_equal(part.images, other.images)
    np.testing.assert_array_equal(part.labels, other.labels)
    assert (part.classes, part.name) == (other.classes, other.name)


def refused(path, message, error=ValueError, **options):
    with pytest.raises(error, match=message) as caught:
        data.load(path, **options)
    assert str(path) in str(caught.value)


# Every format, read right.


def test_digits_are_scikit_learns_split_by_class():
    train, test = data.load("digits")
    assert train.images.dtype == np.uint8 and train.images.max() == 16
    assert len(train) + len(test) == 1797 and train.classes == tuple("0123456789")
    datasets = pytest.importorskip("sklearn.datasets")
    everything = datasets.load_digits()
    third = np.flatnonzero(everything.target == 3)
    np.testing.assert_array_equal(
        test.images[test.labels == 3][:, 0], everything.images[third[4::5]]
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("version", [10, 100])
def test_cifar(tmp_path, version, form):
    files = cifar(version)
    train, test = data.load(pack(files, tmp_path / form))
    assert train.images.shape == (10, 3, 32, 32) and test.images.shape == (2, 3, 32, 32)
    assert train.name == f"CIFAR-{version}" and len(train.classes) == version
    labels = 1 if version == 10 else 2
    size = labels + 3072
    record = files["cifar-binary/data_batch_2.bin" if version == 10 else "cifar-binary/train.bin"]
    offset = 0 if version == 10 else 2 * size
    record = record[offset : offset + size]
    assert train.labels[2] == record[labels - 1]
    # red, green, blue planes, each row by row
    assert train.images[2, 1, 3, 7] == record[labels + 1024 + 3 * 32 + 7]


def test_cifar_class_names_are_read_where_they_are(tmp_path):
    names = [f"class{i}" for i in range(10)]
    files = cifar(10) | {"cifar-binary/batches.meta.txt": "\n".join(names).encode() + b"\n\n"}
    assert data.load(pack(files, tmp_path / "named"))[0].classes == tuple(names)
    files["cifar-binary/batches.meta.txt"] = b"one two"
    refused(pack(files, tmp_path / "two"), "batches.meta.txt names 2 classes, expected 10")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, form, suffix):
    files = mnist()
    if suffix:
        files = {name + suffix: gzip.compress(content) for name, content in files.items()}
    train, test = data.load(pack(files, tmp_path / form))
    np.testing.assert_array_equal(train.images[:, 0], random_images(7, 5, 4))
    np.testing.assert_array_equal(train.labels, np.arange(7))
    assert len(test) == 3 and train.classes == tuple("0123456")


def test_idx_names_of_other_collections_and_a_plain_file_beside_its_gz(tmp_path):
    files = {f"emnist-letters-{name}": content for name, content in mnist().items()}
    files = {name.replace("t10k", "test"): content for name, content in files.items()}
    first = next(iter(files))
    files[first + ".gz"] = b"not read"
    assert len(data.load(pack(files, tmp_path / "emnist"))[0]) == 7


@pytest.mark.parametrize("count", [1, 3, 7, 30])
def test_a_sample_is_of_all_classes(tmp_path, count):
    """Of class folders too, whose images lie in the order of their classes."""
    train, _ = data.load(pack(class_folders(), tmp_path / "a"))
    sample = data.sample(train, count)
    assert len(sample) == min(count, len(train)) and sample.classes == train.classes
    assert len(set(sample.labels)) == min(count, len(train.classes))
    for image, label in zip(sample.images, sample.labels, strict=True):
        assert any((image == other).all() for other in train.images[train.labels == label])
    assert len(np.unique(sample.images.reshape(len(sample), -1), axis=0)) == len(sample)


FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist


@pytest.mark.skipif(not FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_has_names(tmp_path):
    train, test = data.load(FASHION)
    assert (len(train), len(test), train.images.shape[1:]) == (60_000, 10_000, (1, 28, 28))
    assert train.classes == test.classes
    named = {name: train.images[train.labels == i] for i, name in enumerate(train.classes)}
    assert {len(images) for images in named.values()} == {6000}
    top = {name: images[:, 0, :4].mean() for name, images in named.items()}
    assert max(top[name] for name in ("Sandal", "Sneaker")) < min(top["Coat"], top["Trouser"])
    filled = {name: (images > 0).mean() for name, images in named.items()}
    assert max(filled, key=filled.get) in ("Pullover", "Coat")
    # Another collection of such files has numbers.
    fewer = {file.name: gzip.decompress(file.read_bytes()) for file in FASHION.glob("*.gz")}
    labels = bytearray(fewer["train-labels-idx1-ubyte.gz"])
    labels[-1] = (labels[-1] + 1) % 10
    files = {name.removesuffix(".gz"): content for name, content in fewer.items()}
    files["train-labels-idx1-ubyte"] = bytes(labels)
    assert data.load(pack(files, tmp_path / "other"))[0].classes == tuple("0123456789")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("root", ["", "./", "photos/"])
def test_undivided_class_folders_are_split(tmp_path, form, root):
    if form == "a.zip" and root == "./":
        pytest.skip("zip names have no such prefix")
    files = class_folders(root)
    train, test = data.load(pack(files, tmp_path / form))
    assert train.classes == ("cat", "dog", "emu")
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and test.labels.tolist() == [
        0,
        1,
        2,
    ]
    expected = random_images(15, 6, 4, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(test.images, expected[4::5])
    np.testing.assert_array_equal(train.images[5], expected[6])
    assert train.images.flags.c_contiguous


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("held_out", ["test", "val"])
def test_class_folders_in_two_parts(tmp_path, form, held_out):
    files = class_folders("x/train/", 3) | class_folders(f"x/{held_out}/", 1, seed=1)
    train, test = data.load(pack(files, tmp_path / form))
    assert (len(train), len(test)) == (9, 3)
    np.testing.assert_array_equal(
        test.images, random_images(3, 6, 4, 3, seed=1).transpose(0, 3, 1, 2)
    )


def test_of_three_parts_the_test_part_is_the_test(tmp_path):
    parts = ("train", 3), ("val", 2), ("test", 1)
    for seed, (part, count) in enumerate(parts):
        pack(class_folders(f"{part}/", count, seed=seed), tmp_path)
    train, test = data.load(tmp_path)
    assert (len(train), len(test)) == (9, 3)
    np.testing.assert_array_equal(
        test.images, random_images(3, 6, 4, 3, seed=2).transpose(0, 3, 1, 2)
    )


@pytest.mark.parametrize("suffix", [".tar.xz", ".zip"])
@pytest.mark.parametrize("prefix", [("train/", "test/"), ("", "")])
def test_an_archive_for_each_part(tmp_path, suffix, prefix):
    pack(class_folders(prefix[0], 3), tmp_path / f"train{suffix}")
    pack(class_folders(prefix[1], 2, seed=1), tmp_path / f"test{suffix}")
    train, test = data.load(tmp_path)
    assert (len(train), len(test)) == (9, 6) and train.name == tmp_path.name


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("make", [class_folders, mnist, lambda: cifar(10)])
def test_a_folder_that_holds_nothing_but_an_archive_stands_for_it(tmp_path, make, form):
    folder = tmp_path / "download"
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"")
    path = pack(make(), folder / form)
    for part, same in zip(data.load(folder), data.load(path, cache=False), strict=True):
        assert_same(part, same)


def test_archives_among_other_files_are_named(tmp_path):
    pack(class_folders(), tmp_path / "b.zip")
    (tmp_path / "README").write_text("")
    refused(tmp_path, "no images .* among 2 files; pass one of the archives in it, such as b.zip")
    pack(cifar(10), tmp_path / "a.tar.gz")
    refused(tmp_path, "among 3 files; pass one of the archives in it, such as a.tar.gz")
    pack({"inner/b.zip": b""}, tmp_path / "c.zip")
    refused(tmp_path / "c.zip", "such as inner/b.zip")


def test_what_is_no_image_is_left_out(tmp_path):
    junk = {"cat/notes.txt": b"", "cat/.hidden.png": b"", "__MACOSX/cat/00.png": b"", "README": b""}
    pack(class_folders() | junk, tmp_path / "a.zip")
    assert len(data.load(tmp_path / "a.zip")[0]) == 12


LOSSLESS = {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "TIFF": "TIFF", "ppm": "PPM", "pnm": "PPM"}
LOSSY = {"jpg": "JPEG", "jpe": "JPEG", "JFIF": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}


@pytest.mark.parametrize("suffix", [*LOSSLESS, *LOSSY])
def test_formats_of_images(tmp_path, suffix):
    form = (LOSSLESS | LOSSY)[suffix]
    images = random_images(5, 6, 4, 3)
    files = {f"emu/{i}.{suffix}": picture(image, form) for i, image in enumerate(images)}
    train, _ = data.load(pack(class_folders(classes=("cat",)) | files, tmp_path / "pets"))
    assert train.classes == ("cat", "emu")
    if suffix in LOSSLESS:
        np.testing.assert_array_equal(train.images[4:], images[:4].transpose(0, 3, 1, 2))


def test_of_an_animation_the_first_picture_is_read(tmp_path):
    first, second = map(Image.fromarray, random_images(2, 6, 4))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    path = pack(class_folders() | {"cat/00.gif": buffer.getvalue()}, tmp_path / "pets")
    np.testing.assert_array_equal(data.load(path)[0].images[0], [np.asarray(first)] * 3)


# What EXIF's eight orientations make of the stored rows and columns.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
    99: lambda a: a,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_images_are_turned_upright(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(form, {})
    # blocks of gray, which JPEG keeps
    stored = random_images(1, 2, 3)[0].repeat(16, axis=0).repeat(16, axis=1)
    shown = ORIENTATIONS[orientation](stored)
    files = class_folders(size=shown.shape) | {"cat/00.png": picture(stored, form, **options)}
    for name in ("pets", "pets.zip"):
        image = data.load(pack(files, tmp_path / name))[0].images[0]
        np.testing.assert_allclose(image, [shown] * 3, atol=3 if form == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:.*(EXIF|Truncated)")
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0\xff\xff\0\0",
    ],
)
def test_damaged_exif_does_no_harm(tmp_path, form, exif):
    image = picture(random_images(1, 6, 4, 3)[0], form, exif=exif)
    path = pack(class_folders() | {"cat/00.png": image}, tmp_path / "pets")
    assert data.load(path)[0].images.shape == (12, 3, 6, 4)


@pytest.mark.parametrize(
    "mode, channels", [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_modes_of_images(tmp_path, mode, channels):
    for name, pixels in zip(class_folders(), random_images(15, 6, 4, 3), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    assert data.load(tmp_path)[0].images.shape == (12, channels, 6, 4)


@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("mode", ["LA", "P", "P with transparency", "PA"])
def test_gray_with_alpha_or_a_palette_is_gray(tmp_path, mode, form):
    if (mode == "LA" and form == "GIF") or (mode == "PA" and form != "TIFF"):
        pytest.skip("the format has no such mode")
    gray = random_images(1, 6, 4)[0]
    image = Image.fromarray(gray).convert(mode[:2].strip())
    if mode == "P with transparency":
        image.info["transparency"] = 0 if form == "GIF" else bytes([0, 128, 255])
    buffer = io.BytesIO()
    image.save(buffer, form)
    files = {f"{name}/{i}.png": buffer.getvalue() for name in ("cat", "dog") for i in range(5)}
    train, _ = data.load(pack(files, tmp_path / "pets"))
    np.testing.assert_array_equal(train.images, np.broadcast_to(gray, (8, 1, 6, 4)))


@pytest.mark.parametrize("name", ["cat/00.png", "cat/04.png"])
def test_colour_is_decided_once_for_both_parts_and_the_odd_image_named(tmp_path, name):
    """One image of each class is coloured in the training part, or in the test part."""
    gray, coloured = random_images(1, 6, 4)[0], random_images(1, 6, 4, 3)[0]
    files = {f"{c}/{i:02}.png": picture(gray) for c in ("cat", "dog") for i in range(10)}
    path = pack(files | {name: picture(coloured)}, tmp_path / "pets")
    with pytest.warns(RuntimeWarning, match=f"1 of 20 images are in colour, .*pets: {name};"):
        train, test = data.load(path)
    odd, part = (train, test) if name == "cat/00.png" else (test, train)
    assert part.images.shape[1:] == (3, 6, 4)
    np.testing.assert_array_equal(odd.images[0], coloured.transpose(2, 0, 1))
    np.testing.assert_array_equal(odd.images[1], [gray] * 3)


def test_a_gray_image_among_coloured_ones_is_coloured(tmp_path):
    files = class_folders()
    gray = random_images(1, 6, 4)[0]
    files["cat/00.png"] = picture(gray)
    train, _ = data.load(pack(files, tmp_path / "mixed"))
    np.testing.assert_array_equal(train.images[0], [gray] * 3)


def test_resizing(tmp_path):
    files = class_folders(size=(6, 4))
    files["dog/00.png"] = picture(random_images(1, 9, 9, 3)[0])
    path = pack(files, tmp_path / "sizes")
    refused(path, r"dog/00.png is 9x9, but .*cat/00.png is 6x4; pass image_size")
    assert data.load(path, image_size=(8, 5))[0].images.shape == (12, 3, 8, 5)
    assert data.load(path, image_size=7)[1].images.shape == (3, 3, 7, 7)


def test_large_images_are_decoded_by_several_threads_to_the_same_pixels(tmp_path):
    files = class_folders(per_class=50, size=(65, 70))
    train, _ = data.load(pack(files, tmp_path / "large"))
    expected = random_images(150, 65, 70, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(train.images, expected[np.arange(150) % 5 != 4])


# Everything that can be wrong with a path or a file.


def test_a_missing_path_is_no_download(tmp_path):
    refused(tmp_path / "none", "does not exist; .* never downloaded", FileNotFoundError)


def test_a_user_who_is_not_there():
    refused("~nobody-of-this-name/pets", "does not exist", FileNotFoundError)


def test_empty_and_unknown(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no CIFAR binary files, no idx files and no images .* 0 files")
    (tmp_path / "empty.zip").write_bytes(b"")
    refused(tmp_path / "empty.zip", "the file is empty")
    (tmp_path / "text.tar").write_text("not a tar")
    refused(tmp_path / "text.tar", "neither a zip nor a tar; .* pass the folder")
    for name in ("labels.gz", "labels.xz", "labels.bz2"):
        opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}[Path(name).suffix]
        with opener(tmp_path / name, "wb") as file:
            file.write(bytes(range(256)))
        refused(tmp_path / name, "unreadable archive: .*; for single files pass the folder")
    refused(pack({}, tmp_path / "none.zip"), "no images")
    refused(pack({}, tmp_path / "none.tar.gz"), "no images")


def test_pickled_cifar_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = pickle.dumps(Bomb())
    ten = {f"py/data_batch_{i}": bomb for i in range(1, 6)} | {"py/test_batch": bomb}
    refused(pack(ten, tmp_path / "ten.tar.gz"), "pickled.*cifar-10-binary.tar.gz")
    hundred = {"py/train": bomb, "py/test": bomb, "py/meta": bomb}
    refused(pack(hundred, tmp_path / "hundred"), "pickled.*cifar-100-binary.tar.gz")
    (tmp_path / "alone").mkdir()
    archive = pack(ten, tmp_path / "alone" / "cifar-10-python.tar.gz")
    refused(tmp_path / "alone", f"{archive}: .*pickled.*cifar-10-binary.tar.gz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: b[:-1], "data_batch_3.bin has 6145 bytes, expected whole records of 3073 bytes"),
        (lambda b: b + b"\0", "data_batch_3.bin has 6147 bytes"),
        (lambda b: b"", "data_batch_3.bin has 0 bytes"),
        (lambda b: b[:3073], "expected 5 training records for a test record, got .*data_batch_3"),
        (lambda b: b[:3073] * 10001, "30733073 bytes, .* 30730000 bytes in the official file"),
        (
            lambda b: b[:3073] + b"\x0a" + b[3074:],
            "data_batch_3.bin: label byte 0 of record 1 is 10, expected 0..9",
        ),
    ],
)
def test_broken_cifar_10(tmp_path, change, message):
    files = cifar(10)
    name = "cifar-binary/data_batch_3.bin"
    files[name] = change(files[name])
    refused(pack(files, tmp_path / "cifar"), message)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: b[:3074], "expected 5 training records .* train.bin 1, test.bin 2"),
        (lambda b: b"\x14" + b[1:], "train.bin: label byte 0 of record 0 is 20, expected 0..19"),
        (lambda b: b[:1] + b"\x64" + b[2:], "label byte 1 of record 0 is 100, expected 0..99"),
    ],
)
def test_broken_cifar_100(tmp_path, change, message):
    files = cifar(100)
    files["cifar-binary/train.bin"] = change(files["cifar-binary/train.bin"])
    refused(pack(files, tmp_path / "cifar"), message)


def test_missing_or_doubled_cifar_files(tmp_path):
    files = cifar(10)
    del files["cifar-binary/data_batch_4.bin"]
    refused(pack(files, tmp_path / "a"), "cifar-binary/data_batch_4.bin is miss", FileNotFoundError)
    files = cifar(10) | {"copy/test_batch.bin": b""}
    refused(pack(files, tmp_path / "b"), "CIFAR-10 files in both cifar-binary and copy")


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("train-images", lambda b: b[:-1], "has 155 bytes, expected 156 for 3 sizes .7, 5, 4."),
        ("train-images", lambda b: b + b"x", "has 157 bytes, expected 156"),
        ("train-images", lambda b: b[:9], "has 9 bytes"),
        ("train-images", lambda b: b"", "starts with the bytes , expected 00000803"),
        ("train-images", lambda b: b"\0\0\x0d\x03" + b[4:], "bytes 00000d03, expected 00000803"),
        ("train-labels", lambda b: b"\0\0\x08\x03" + b[4:], "00000803, expected 00000801"),
        ("train-images", lambda b: b[:4] + b"\xff" * 12, "has 16 bytes, expected 7922816"),
        ("train-images", lambda b: idx(random_images(0, 5, 4)), "none of them zero"),
        ("train-images", lambda b: idx(random_images(7, 5, 5)), r"\(5, 5\) but test .* \(5, 4\)"),
        ("train-labels", lambda b: idx(np.zeros(6, np.uint8)), "7 train images but 6 labels"),
        ("t10k-labels", lambda b: idx(np.full(3, 7, np.uint8)), "test label 7 is none of .* 0..6"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_broken_idx(tmp_path, name, change, message, suffix):
    files = mnist()
    for full in [full for full in files if full.startswith(name)]:
        files[full] = change(files[full])
    if suffix:
        files = {full + suffix: gzip.compress(content) for full, content in files.items()}
    refused(pack(files, tmp_path / "mnist"), message)


def test_missing_doubled_or_damaged_idx(tmp_path, monkeypatch):
    files = mnist()
    labels = files.pop("t10k-labels-idx1-ubyte")
    refused(pack(files, tmp_path / "a"), "no idx file of test labels", FileNotFoundError)
    doubled = files | {"t10k-labels-idx1-ubyte": labels, "t10k-labels.idx1-ubyte": labels}
    refused(pack(doubled, tmp_path / "b"), "test labels, t10k-labels-.* and t10k-labels[.]idx")
    for number, packed in enumerate((gzip.compress(labels)[:-9], b"no gzip", b"")):
        files["t10k-labels-idx1-ubyte.gz"] = packed
        refused(pack(files, tmp_path / f"c{number}"), "t10k-labels-idx1-ubyte.gz")
    monkeypatch.setattr("mulfree_cupy.data.idx.unpacked_limit", lambda packed: 10)
    files["t10k-labels-idx1-ubyte.gz"] = gzip.compress(labels)
    refused(pack(files, tmp_path / "d"), "more than 10 bytes unpacked")


@pytest.mark.parametrize("form", FORMS[1:])
def test_an_archive_cut_off_anywhere_is_refused(tmp_path, form):
    path = pack(class_folders(), tmp_path / form)
    whole = path.read_bytes()
    # The last fifth of a plain tar is padding.
    cuts = [len(whole) * part // 20 for part in range(1, 16)]
    if form == "a.tar":
        with tarfile.open(path) as archive:
            cuts += [member.offset for member in archive if member.offset]  # between two members
    else:
        cuts.append(len(whole) - 1)
    for cut in cuts:
        path.write_bytes(whole[:cut])
        refused(path, ".")


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_damaged_archive_is_refused_or_read_but_never_crashes(tmp_path, form):
    path = pack(class_folders(), tmp_path / form)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            data.load(path, cache=False)
        except ValueError as error:
            assert str(path) in str(error)


def test_a_zip_with_a_name_that_is_empty_is_refused_or_read(tmp_path):
    """Python 3.11's zipfile stumbles over it."""
    path = pack(class_folders() | {"_0.txt": b""}, tmp_path / "a.zip")
    path.write_bytes(path.read_bytes().replace(b"_0.txt", b"\x000.txt"))
    try:
        assert len(data.load(path)[0]) == 12
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("target", [".", "..", "../../other"])
def test_a_link_to_a_folder_that_it_lies_in(tmp_path, target):
    root = pack(class_folders(), tmp_path / "pictures")
    other = tmp_path / "other"
    other.mkdir()
    (other / "back").symlink_to(root)
    (root / "cat" / "round").symlink_to(target)
    refused(root, "is a link to a folder that it lies in")


@pytest.mark.parametrize(
    "name", ["/etc/cat/0.png", "../cat/0.png", "a/../../cat/0.png", "a\\0.png"]
)
@pytest.mark.parametrize("form", ["a.zip", "a.tar.gz"])
def test_names_that_lead_out_of_an_archive(tmp_path, name, form):
    path = pack(class_folders() | {name: b""}, tmp_path / form)
    refused(path, "is no relative name inside the archive")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("cat/0.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refused(tmp_path / "a.tar", "'cat/0.png' is a link, device or sparse file")


def test_a_name_twice_in_an_archive(tmp_path):
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(tmp_path / "a.zip", "w") as z,
    ):
        z.writestr("cat/0.png", b"")
        z.writestr("cat/0.png", b"")
    refused(tmp_path / "a.zip", "'cat/0.png' occurs twice")


@pytest.mark.parametrize("form", FORMS[1:])
def test_an_archive_that_unpacks_to_too_much(tmp_path, form, monkeypatch):
    path = pack({"cat/0.png": bytes(100_000)}, tmp_path / form)
    monkeypatch.setattr(archives, "unpacked_limit", lambda packed: 50_000)
    refused(path, "bytes unpacked")


def test_the_limit_of_unpacked_bytes():
    assert archives.unpacked_limit(100) == 256 << 20
    assert archives.unpacked_limit(15_473_096) > 10 * 77_240_320  # the CIFAR-10 JPEGs in a tar.xz


def test_an_encrypted_zip(tmp_path):
    path = pack(class_folders(), tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(magic)
        while start >= 0:
            content[start + flags] |= 1
            start = content.find(magic, start + 1)
    path.write_bytes(content)
    refused(path, "encrypted")


@pytest.mark.parametrize(
    "content", [b"", b"not an image", picture(random_images(1, 6, 4, 3)[0])[:-30]]
)
def test_unreadable_images(tmp_path, content):
    files = class_folders() | {"dog/02.png": content}
    refused(pack(files, tmp_path / "pets"), "dog/02.png: no readable image")
    refused(pack(files, tmp_path / "pets.zip"), "dog/02.png: no readable image")


def test_an_image_of_another_format_or_depth(tmp_path):
    icon = picture(random_images(1, 6, 4, 3)[0], "ICO")
    refused(pack(class_folders() | {"dog/02.png": icon}, tmp_path / "a"), "no readable image")
    deep = picture(random_images(1, 6, 4)[0].astype(np.uint16))
    refused(pack(class_folders() | {"dog/02.png": deep}, tmp_path / "b"), "8 bits a channel")


def test_decompression_bombs(tmp_path, monkeypatch):
    path = pack(class_folders(), tmp_path / "pets")
    monkeypatch.setattr(folders, "_MOST_PIXELS", 23)
    refused(path, "4x6 pixels are too many, expected at most 23 in all")
    monkeypatch.undo()
    monkeypatch.setattr(folders, "_MOST_BYTES", 15 * 3 * 24 - 1)
    refused(path, "15 images of 6x4 .* pass a smaller image_size")


def test_a_png_that_claims_a_huge_size(tmp_path):
    content = bytearray(picture(random_images(1, 6, 4, 3)[0]))
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    refused(pack(class_folders() | {"cat/00.png": bytes(content)}, tmp_path / "pets"), "cat/00.png")


def test_images_in_the_wrong_place(tmp_path):
    image = picture(random_images(1, 6, 4, 3)[0])
    refused(
        pack({"0.png": image}, tmp_path / "a"), "0.png is in no class folder, such as cat/0.png"
    )
    files = class_folders() | {"more/of/cat/0.png": image}
    refused(pack(files, tmp_path / "b"), r"class folders lie in 2 folders \('.', 'more/of'\)")
    files = class_folders("train/") | class_folders("extra/")
    refused(pack(files, tmp_path / "c"), "expected one, or train and test")


@pytest.mark.parametrize("form", ["folder", "a.zip"])
@pytest.mark.parametrize("name", ["emu/0.heic", "cat/0.AVIF", "cat/0.psd"])
def test_a_picture_that_is_not_read_is_named(tmp_path, name, form):
    files = class_folders(classes=("cat", "dog")) | {name: b""}
    refused(pack(files, tmp_path / form), rf"{name} is a picture that is not read; .*\.bmp, \.gif")


@pytest.mark.parametrize("root", ["", "photos/", "photos/train/"])
@pytest.mark.parametrize("form", FORMS)
def test_a_class_folder_without_an_image(tmp_path, form, root):
    files = class_folders(root) | {f"{root}fox/{i}": b"GIF89a" for i in range(5)}
    path = pack(files, tmp_path / form)
    refused(path, f": {root}fox lies among class folders and holds no image")


@pytest.mark.parametrize("part", ["", "train/", "test/"])
def test_an_empty_class_folder(tmp_path, part):
    files = class_folders("train/") | class_folders("test/") if part else class_folders()
    folder = pack(files, tmp_path / "pets")
    (folder / part / "fox" / "deep").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z, tarfile.open(tmp_path / "a.tar", "w") as t:
        t.add(folder, "pets")
        for file in sorted(folder.rglob("*")):
            z.write(file, file.relative_to(folder))
    for path in (folder, tmp_path / "a.zip", tmp_path / "a.tar"):
        refused(path, f"{part}fox lies among class folders and holds no image")


def test_folders_that_are_no_classes_may_lie_elsewhere(tmp_path):
    files = class_folders("x/train/") | class_folders("x/test/")
    files |= {"x/notes/0.txt": b"", "x/train/cat/notes/0.txt": b"", "x/train/.git/0.txt": b""}
    assert data.load(pack(files, tmp_path / "pets"))[0].classes == ("cat", "dog", "emu")


def test_a_link_to_nothing(tmp_path):
    path = pack(class_folders(), tmp_path / "pets")
    (path / "cat" / ".#lock").symlink_to("nowhere")
    (path / "cat" / "99.png").symlink_to(path / "cat" / "00.png")
    assert len(data.load(path)[0]) == 13
    (path / "emu" / "99.png").symlink_to("nowhere")
    refused(path, "emu/99.png is a link to nowhere, which does not exist", FileNotFoundError)


def test_hidden_folders_are_not_entered(tmp_path, monkeypatch):
    path = pack(class_folders(), tmp_path / "pets")
    (path / ".Trashes").mkdir()
    (path / ".Trashes" / "up").symlink_to("..")
    assert len(data.load(path)[0]) == 12


@pytest.mark.parametrize("classes", [("кот", "собака"), ("猫", "犬 𓃠")])
@pytest.mark.parametrize("form", FORMS)
def test_names_that_are_not_ascii(tmp_path, form, classes):
    path = pack(class_folders("Ünï/", classes=classes), tmp_path / form)
    assert data.load(path)[0].classes == tuple(sorted(classes))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_cannot_be_printed(tmp_path):
    path = pack(class_folders() | {os.fsdecode(b"\xff/0.png"): b""}, tmp_path / "pets")
    refused(path, "is no UTF-8")


def test_parts_that_do_not_fit_each_other(tmp_path):
    files = class_folders("train/") | class_folders("test/", classes=("cat", "eel"))
    refused(pack(files, tmp_path / "a"), "test/eel/00.png: no training image is of class 'eel'")
    files = class_folders("train/") | class_folders("test/", size=(5, 5))
    refused(pack(files, tmp_path / "b"), "test/cat/00.png is 5x5, but .*train/cat/00.png is 6x4")
    refused(pack(class_folders(per_class=4), tmp_path / "c"), "12 images in 3 classes are too few")


@pytest.mark.parametrize("root", ["", "train/"])
def test_one_class_is_none(tmp_path, root):
    """All pictures in one folder: every answer would be right."""
    files = class_folders(root, classes=("all",))
    files |= {name.replace("train", "test"): image for name, image in files.items()}
    refused(pack(files, tmp_path / "pets"), "all training images lie in one class folder, all;")


def test_an_archive_without_its_other_half(tmp_path):
    pack(class_folders(), tmp_path / "train.tar.xz")
    refused(tmp_path, "no archive of test images, such as test.tar.xz", FileNotFoundError)
    pack(class_folders(), tmp_path / "test.zip")
    pack(class_folders(), tmp_path / "test.tar")
    refused(tmp_path, "expected one archive of test images")


@pytest.mark.parametrize(
    "size, error, message",
    [
        (0, ValueError, "at least 1, got 0"),
        (-1, ValueError, "at least 1, got -1"),
        ((3, 0), ValueError, r"at least 1, got \(3, 0\)"),
        (4097, ValueError, "at most 4096, got 4097"),
        ((3, 100_000), ValueError, r"at most 4096, got \(3, 100000\)"),
        (1.5, TypeError, "an int or a pair of ints, got 1.5"),
        ((3,), TypeError, "an int or a pair of ints"),
        ((1, 2, 3), TypeError, "an int or a pair of ints"),
    ],
)
def test_wrong_image_sizes(tmp_path, size, error, message):
    path = pack(class_folders(), tmp_path / "pets")
    with pytest.raises(error, match=f"load: image_size must be {message}"):
        data.load(path, image_size=size)


@pytest.mark.parametrize("size", [1, np.int64(1), (np.uint8(1), 1), [1, 1]])
def test_image_sizes_are_any_ints(tmp_path, size):
    path = pack(class_folders(), tmp_path / "pets.zip")
    assert data.load(path, image_size=size)[0].images.shape == (12, 3, 1, 1)


def test_only_class_folders_are_resized(tmp_path):
    with pytest.raises(ValueError, match="image_size is for images in class folders"):
        data.load("digits", image_size=16)
    refused(pack(mnist(), tmp_path / "mnist"), "image_size is for", image_size=16)


# The cache.


def test_an_archive_is_read_once(tmp_path, cache_folder, monkeypatch):
    path = pack(class_folders(), tmp_path / "pets.zip")
    first = data.load(path)
    assert [file.suffix for file in cache_folder.iterdir()] == [".npz"]
    with monkeypatch.context() as patch:
        patch.setattr(archives, "read", None)
        for part, again in zip(first, data.load(path), strict=True):
            assert_same(part, again)
    resized = data.load(path, image_size=3)[0]
    assert resized.images.shape[2:] == (3, 3) and len(list(cache_folder.iterdir())) == 2


def test_a_changed_archive_replaces_its_entry(tmp_path, cache_folder):
    path = pack(class_folders(), tmp_path / "pets.tar.gz")
    data.load(path)
    pack(class_folders(per_class=10), path)
    assert len(data.load(path)[0]) == 24
    os.utime(path, ns=(0, 0))
    assert len(data.load(path)[0]) == 24 and len(list(cache_folder.iterdir())) == 1


def test_another_archive_of_the_same_size_and_date_is_noticed(tmp_path):
    def labels(first):
        return np.array([first, 1, 2, 3, 4, 5, 6], np.uint8)

    old, new = (
        pack(mnist() | {"train-labels-idx1-ubyte": idx(labels(first))}, tmp_path / f"{first}.tar")
        for first in (0, 1)
    )
    for path in (old, new):
        os.utime(path, ns=(0, 0))
    assert old.stat().st_size == new.stat().st_size and data.load(old)[0].labels[0] == 0
    time.sleep(0.05)  # more than the steps of a file system's clock
    new.replace(old)
    assert data.load(old)[0].labels[0] == 1


def test_a_damaged_entry_is_rebuilt(tmp_path, cache_folder):
    path = pack(class_folders(), tmp_path / "pets.zip")
    first = data.load(path)
    (entry,) = cache_folder.iterdir()
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(first[0].images.tobytes()) + 100] ^= 1
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}]), allow_pickle=True)
    for broken in (b"", b"nonsense", whole[:-50], whole[:500], bytes(flipped), pickled.getvalue()):
        entry.write_bytes(broken)
        assert_same(data.load(path)[0], first[0])
        assert len(entry.read_bytes()) == len(whole)


def test_folders_and_the_wish_not_to_cache_leave_no_entry(tmp_path, cache_folder):
    data.load(pack(class_folders(), tmp_path / "pets"))
    data.load(pack(class_folders(), tmp_path / "pets.zip"), cache=False)
    assert not cache_folder.exists()


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, cache_folder):
    cache_folder.write_text("a file, not a folder")
    path = pack(class_folders(), tmp_path / "pets.zip")
    with pytest.warns(RuntimeWarning, match=r"cannot cache .*pets.zip.*MULFREE_CACHE_DIR"):
        assert len(data.load(path)[0]) == 12


def test_without_a_home_folder_nothing_is_cached(tmp_path, monkeypatch):
    """A user of a container whom /etc/passwd does not know."""

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    for variable in ("MULFREE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    path = pack(class_folders(), tmp_path / "pets.zip")
    with pytest.warns(RuntimeWarning, match="cannot cache .*pets.zip: Could not determine home"):
        assert len(data.load(path)[0]) == 12


def test_what_a_killed_process_left_is_removed(tmp_path, cache_folder):
    cache_folder.mkdir()
    left, being_written = cache_folder / "left.part", cache_folder / "being-written.part"
    for file in (left, being_written):
        file.write_bytes(b"half")
    os.utime(left, (0, 0))
    data.load(pack(class_folders(), tmp_path / "pets.zip"))
    assert being_written.exists() and not left.exists()


LIMITED = """
import resource, sys, warnings
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import mulfree_cupy as mf
from mulfree_cupy import data
warnings.simplefilter("error", ResourceWarning)
print(data.load(sys.argv[1])[0])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_a_cache_that_is_full_is_a_warning(tmp_path, cache_folder):
    path = pack(class_folders(size=(20, 20)), tmp_path / "pets.zip")
    command = [sys.executable, "-c", LIMITED, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert "12 images of 3x20x20" in answer.stdout and "cannot cache" in answer.stderr, answer
    assert list(cache_folder.iterdir()) == []


def test_several_processes_may_fill_the_cache_at_once(tmp_path, cache_folder):
    path = pack(class_folders(size=(20, 20)), tmp_path / "pets.zip")
    code = f"from mulfree_cupy import data; print(data.load({str(path)!r})[0])"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert [file.suffix for file in cache_folder.iterdir()] == [".npz"]


def test_an_unfinished_entry_is_removed(tmp_path, cache_folder, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.load(pack(class_folders(), tmp_path / "pets.zip"))
    assert list(cache_folder.iterdir()) == []


def test_the_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MULFREE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    data.load(pack(class_folders(), tmp_path / "pets.zip"))
    assert len(list((tmp_path / "xdg" / "mulfree_cupy").iterdir())) == 1


# Dataset, split, statistics.


@pytest.mark.parametrize(
    "images, labels, error, message",
    [
        (
            np.zeros((2, 1, 3, 3)),
            [0, 1],
            TypeError,
            "images must be an array of uint8 or float32, got float64",
        ),
        (np.zeros((2, 3, 3), np.uint8), [0, 1], ValueError, r"4-D array .* got shape \(2, 3, 3\)"),
        (np.zeros((0, 1, 3, 3), np.uint8), [], ValueError, "not empty"),
        (np.full((2, 1, 3, 3), np.nan, "f"), [0, 1], ValueError, "must be finite, .* in toy"),
        (np.zeros((2, 1, 3, 3), np.uint8), [0], ValueError, "2 images but 1 labels in toy"),
        (np.zeros((2, 1, 3, 3), np.uint8), [0, 2], ValueError, r"0..1 for 2 classes, got 0..2"),
        (np.zeros((2, 1, 3, 3), np.uint8), [-1, 0], ValueError, r"got -1..0"),
        (np.zeros((2, 1, 3, 4), np.uint8)[..., ::2], [0, 1], ValueError, "in C order"),
        ([[[[0]]]], [0], TypeError, "got list"),
    ],
)
def test_a_dataset_checks_itself(images, labels, error, message):
    with pytest.raises(error, match=message):
        data.Dataset(images, np.array(labels, np.int64), ("a", "b"), "toy")


def test_images_may_be_floats():
    images = np.random.default_rng(5).normal(1e4, 3, (40, 2, 5, 4)).astype("f")
    floats = data.Dataset(images, np.arange(40) % 2, ("a", "b"), "toy")
    mean, std = data.statistics(floats)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 2, 3), dtype=float))
    np.testing.assert_allclose(std, images.std(axis=(0, 2, 3), dtype=float))
    augment = data.Compose(data.RandomCrop(1), data.RandomFlip())
    options = dict(shuffle=True, augment=augment, mean=mean, std=std, seed=0)
    for batch, _ in data.Loader(floats, 20, **options):
        assert batch.dtype == np.float32 and batch.shape == (20, 2, 5, 4)
    assert data.digest(floats) != data.digest(replace(floats, images=images + 1))
    with mf.emulated_cuda(), pytest.raises(TypeError, match="Feed: .* uint8, .* toy are float32"):
        data.Feed(data.Loader(floats, 20, **options), np)


def test_every_fifth_of_a_class_is_for_testing():
    labels = np.random.default_rng(0).integers(0, 7, 200)
    train, test = data.split(labels)
    expected = np.concatenate([np.flatnonzero(labels == c)[4::5] for c in range(7)])
    np.testing.assert_array_equal(test, np.sort(expected))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(200))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_statistics_are_the_mean_and_standard_deviation(dtype):
    images = random_images(50, 3, 7, 5).astype(dtype)
    images[:, 2] = 200.1  # no float32: its mean is rounded
    dataset = data.Dataset(images, np.zeros(50, np.int64), ("a",), "toy")
    mean, std = data.statistics(dataset)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 2, 3), dtype=float), rtol=1e-13)
    expected = images.std(axis=(0, 2, 3), dtype=float)
    np.testing.assert_allclose(std, [*expected[:2], 1], rtol=1e-13)  # all pixels of the last equal


# Augmentation against a specification image by image.


@pytest.mark.parametrize("padding", [0, 1, 4, 9])
@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (5, 1, 4, 7), (1, 2, 1, 1)])
def test_random_crop(padding, shape):
    images = random_images(*shape)
    cropped = data.RandomCrop(padding)(images, np.random.default_rng(7))
    dy, dx = np.random.default_rng(7).integers(0, 2 * padding + 1, (2, len(images)))
    for n, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        window = padded[:, dy[n] : dy[n] + shape[2], dx[n] : dx[n] + shape[3]]
        np.testing.assert_array_equal(cropped[n], window)


@pytest.mark.parametrize("probability", [0, 0.5, 1])
def test_random_flip(probability):
    images = random_images(40, 3, 5, 6)
    before = images.copy()
    flipped = data.RandomFlip(probability)(images, np.random.default_rng(3))
    choice = np.random.default_rng(3).random(40) < probability
    for image, result, chosen in zip(images, flipped, choice, strict=True):
        np.testing.assert_array_equal(result, image[:, :, ::-1] if chosen else image)
    np.testing.assert_array_equal(images, before)


def test_every_crop_and_both_mirrors_occur():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 1, 3, 3)
    augment = data.Compose(data.RandomCrop(1), data.RandomFlip())
    results = augment(np.repeat(image, 2000, axis=0), np.random.default_rng(0))
    assert len(np.unique(results.reshape(2000, -1), axis=0)) == 18


@pytest.mark.parametrize("make", [lambda: data.RandomCrop(-1), lambda: data.RandomFlip(1.1)])
def test_augmentations_check_their_arguments(make):
    with pytest.raises(ValueError, match=r"must be .*1"):
        make()


# Loader.


@pytest.fixture
def numbered():
    """23 images, each of which shows its own number."""
    images = np.repeat(np.arange(23, dtype=np.uint8), 2 * 6 * 6).reshape(23, 2, 6, 6)
    return data.Dataset(images, np.arange(23), tuple(map(str, range(23))), "numbered")


def make_loader(dataset, batch_size=5, **options):
    settings = {"shuffle": True, "mean": 0, "std": 1, "seed": 0} | options
    return data.Loader(dataset, batch_size, **settings)


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("mulfree-loader")]


def test_an_epoch_shows_every_image_once_with_its_label(numbered):
    loader = make_loader(numbered)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 3] and len(loader) == 5
    for images, labels in batches:
        assert images.dtype == np.float32 and images.flags.c_contiguous
        np.testing.assert_array_equal(
            images, np.broadcast_to(labels[:, None, None, None], images.shape)
        )
    seen = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(np.sort(seen), np.arange(23))
    assert (seen != np.arange(23)).any()


def test_without_shuffling_the_order_is_the_data_sets(numbered):
    labels = [labels for _, labels in make_loader(numbered, shuffle=False)]
    np.testing.assert_array_equal(np.concatenate(labels), np.arange(23))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalisation(dtype):
    dataset = data.Dataset(random_images(4, 3, 5, 5), np.zeros(4, np.int64), ("a",), "toy")
    mean, std = np.array([125.3, 123.0, 113.9]), np.array([51.6, 50.8, 51.3])
    loader = make_loader(dataset, 4, shuffle=False, mean=mean, std=std, dtype=dtype)
    ((images, _),) = loader
    expected = (dataset.images - mean[:, None, None]) / std[:, None, None]
    assert images.dtype == dtype
    np.testing.assert_allclose(images, expected, atol=4 * np.finfo(dtype).eps)


def augmented(dataset, **options):
    augment = data.Compose(data.RandomCrop(2), data.RandomFlip())
    return make_loader(dataset, augment=augment, **options)


def assert_same_batches(left, right):
    for (images, labels), (images_too, labels_too) in zip(left, right, strict=True):
        np.testing.assert_array_equal(images, images_too)
        np.testing.assert_array_equal(labels, labels_too)


def test_a_resumed_run_sees_the_same_batches(numbered):
    loader = augmented(numbered)
    epochs = [list(loader) for _ in range(4)]
    assert loader.epoch == 4
    resumed = augmented(numbered, prefetch=4)
    resumed.epoch = 2
    assert_same_batches(epochs[2], resumed)
    assert_same_batches(epochs[3], resumed)
    resumed.epoch = 1
    assert_same_batches(epochs[1][3:], itertools.islice(resumed, 3, None))


def test_epochs_and_seeds_differ(numbered):
    def labels(**options):
        loader = make_loader(numbered, 23, **options)
        return [next(iter([labels.tolist() for _, labels in loader])) for _ in range(2)]

    first, second = labels(seed=0)
    assert first != second and [first, second] != labels(seed=1)


def test_batches_are_the_callers_own(numbered):
    loader = make_loader(numbered, shuffle=False)
    for images, labels in loader:
        images[...] = -1
        labels[...] = -1
    loader.epoch = 0
    assert_same_batches(list(loader), make_loader(numbered, shuffle=False))


def test_an_exception_of_the_augmentation_reaches_the_loop(numbered):
    def augment(images, rng):
        if 17 in images:
            raise ZeroDivisionError("image 17")
        return images

    seen = []
    with pytest.raises(ZeroDivisionError, match="image 17"):
        seen.extend(labels for _, labels in make_loader(numbered, shuffle=False, augment=augment))
    assert len(seen) == 3 and not loader_threads()


def test_no_thread_outlives_its_loop(numbered):
    loader = make_loader(numbered, 1)
    for _ in loader:
        assert len(loader_threads()) == 1
        break
    assert not loader_threads() and loader.epoch == 0
    with pytest.raises(KeyError):
        for _ in loader:
            raise KeyError
    assert not loader_threads()
    assert len(list(loader)) == 23 and loader.epoch == 1
    assert not loader_threads()


def test_no_more_batches_are_prepared_than_asked_for(numbered):
    prepared = []
    loader = make_loader(numbered, 1, prefetch=3, augment=lambda x, rng: prepared.append(0) or x)
    batches = iter(loader)
    next(batches)
    batches.close()
    assert len(prepared) <= 4


def test_two_loops_at_once(numbered):
    loader = make_loader(numbered)
    left, right = iter(loader), iter(loader)
    assert_same_batches(left, right)
    assert not loader_threads()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int, got 2.0"),
        ({"prefetch": 0}, ValueError, "prefetch must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": None}, TypeError, "seed must be an int, got None"),
        ({"dtype": np.float16}, TypeError, "float32 or float64, got float16"),
        ({"std": 0}, ValueError, "std must be positive"),
        ({"std": [1, 0]}, ValueError, "std must be positive"),
        ({"mean": [1, 2, 3]}, ValueError, "one for each of 2 channels"),
        ({"mean": np.nan}, ValueError, "finite"),
    ],
)
def test_a_loader_checks_its_arguments(numbered, options, error, message):
    with pytest.raises(error, match=f"Loader: .*{message}"):
        make_loader(numbered, **options)


# Imports, and the real thing.


def test_import_loads_neither_scikit_learn_nor_pillow():
    code = "import sys, mulfree_cupy.data; print({'sklearn', 'PIL', 'tqdm'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "set()", answer


@pytest.mark.parametrize("module, spec", [("sklearn", "digits"), ("PIL", "pets")])
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, module, spec):
    pack(class_folders(), tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'mulfree_cupy\[train\]'"):
        data.load(spec)


def test_without_tqdm_there_is_no_bar(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(data.load(pack(class_folders(), tmp_path / "pets.zip"))[0]) == 12


@pytest.mark.skipif("MULFREE_CIFAR10" not in os.environ, reason="MULFREE_CIFAR10 is not set")
def test_cifar_10_as_it_is():
    train, test = data.load(Path(os.environ["MULFREE_CIFAR10"]), cache=False)
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    np.testing.assert_allclose(data.statistics(train)[0], data.CIFAR_MEAN, atol=1)
