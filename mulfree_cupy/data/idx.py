"""MNIST-style idx files: a big-endian header (two zeros, dtype, ndim, sizes), then the bytes.

The files have no class names: these are the label numbers, except for known data sets.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from mulfree_cupy.data.archives import Files, unpacked_limit
from mulfree_cupy.data.dataset import Dataset

_NAME = re.compile(r"(?:.+-)?(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(?:\.gz)?")
_UINT8 = 8
_PARTS = {"train": "train", "t10k": "test", "test": "test"}
_NDIM = {"images": 3, "labels": 1}

# Recognised by the SHA-256 of the training labels: Fashion-MNIST.
_CLASSES = {
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
}


def recognises(files: Files, path: Path) -> bool:
    """Whether there is a file named like MNIST's."""
    return any(_NAME.fullmatch(PurePosixPath(name).name) for name in files)


def load(files: Files, path: Path) -> tuple[Dataset, Dataset]:
    """The training and the test part."""
    arrays: dict[tuple[str, str], np.ndarray] = {}
    names: dict[tuple[str, str], str] = {}
    for name in sorted(files):
        match = _NAME.fullmatch(PurePosixPath(name).name)
        if match is None:
            continue
        plain = name.removesuffix(".gz")
        if plain != name and plain in files:
            continue
        key = _PARTS[match[1]], match[2]
        if key in names:
            raise ValueError(
                f"{path}: more than one idx file of {key[0]} {key[1]}, {names[key]} and {name}"
            )
        names[key] = name
        arrays[key] = _parse(files[name](), name, _NDIM[match[2]], f"{path}: {name}")
    for part in ("train", "test"):
        for kind in _NDIM:
            if (part, kind) not in arrays:
                raise FileNotFoundError(f"{path}: no idx file of {part} {kind}")

    count = int(arrays["train", "labels"].max()) + 1
    known = hashlib.sha256(arrays["train", "labels"].tobytes()).hexdigest()
    classes = _CLASSES.get(known, tuple(map(str, range(count))))

    def dataset(part: str) -> Dataset:
        images, labels = arrays[part, "images"], arrays[part, "labels"]
        if len(images) != len(labels):
            raise ValueError(f"{path}: {len(images)} {part} images but {len(labels)} labels")
        if labels.max() >= count:
            raise ValueError(
                f"{path}: {part} label {labels.max()} is none of the training labels 0..{count - 1}"
            )
        return Dataset(images[:, np.newaxis], labels.astype(np.int64), classes, path.name)

    train, test = dataset("train"), dataset("test")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{path}: training images of {train.images.shape[2:]} but test images of "
            f"{test.images.shape[2:]}"
        )
    return train, test


def _parse(data: bytes, name: str, ndim: int, where: str) -> np.ndarray:
    if name.endswith(".gz"):
        data = _unpack(data, where)
    start = 4 + 4 * ndim
    if data[:4] != bytes((0, 0, _UINT8, ndim)):
        raise ValueError(
            f"{where} starts with the bytes {data[:4].hex()}, expected 000008{ndim:02x}, "
            f"an idx file of uint8 with {ndim} dimension{'s' * (ndim > 1)}"
        )
    sizes = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    expected = start + math.prod(sizes)
    if len(data) != expected or expected == start:
        raise ValueError(
            f"{where} has {len(data)} bytes, expected {expected} for {ndim} sizes {sizes}, "
            "none of them zero"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes)


def _unpack(packed: bytes, where: str) -> bytes:
    limit = unpacked_limit(len(packed))
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: damaged or truncated gzip file: {error}") from error
    if len(data) > limit:
        raise ValueError(f"{where}: more than {limit} bytes unpacked")
    return data
