"""CIFAR-10 and CIFAR-100 in the binary version: records of label bytes and a planar 3x32x32 image.

A CIFAR-10 record is one label byte and 3072 pixels; a CIFAR-100 record has a coarse label before
the fine one, which is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from mulfree_cupy.data.archives import Files
from mulfree_cupy.data.dataset import Dataset

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """The files of a version, the records in each, and the number of classes of each label byte."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    records: dict[str, int]
    label_classes: tuple[int, ...]
    class_names: str

    @property
    def files(self) -> tuple[str, ...]:
        return self.train + self.test


_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR10 = _Version(
    "CIFAR-10",
    _BATCHES,
    ("test_batch.bin",),
    dict.fromkeys((*_BATCHES, "test_batch.bin"), 10_000),
    (10,),
    "batches.meta.txt",
)
_CIFAR100 = _Version(
    "CIFAR-100",
    ("train.bin",),
    ("test.bin",),
    {"train.bin": 50_000, "test.bin": 10_000},
    (20, 100),
    "fine_label_names.txt",
)
_PICKLES = (
    {PurePosixPath(name).stem for name in _CIFAR10.files},
    {"train", "test", "meta"},
)


def recognises(files: Files, path: Path) -> bool:
    """Whether these are CIFAR's files.

    Raises
    ------
    ValueError
        If they are CIFAR's "python version", which is pickled.
    """
    if _version(files) is not None:
        return True
    names = {PurePosixPath(name).name for name in files}
    if any(pickles <= names for pickles in _PICKLES):
        raise ValueError(
            f"{path}: this is CIFAR's 'python version', which is pickled, and unpickling runs "
            "whatever code is in the file; get the 'binary version' (cifar-10-binary.tar.gz or "
            "cifar-100-binary.tar.gz) from the same page"
        )
    return False


def load(files: Files, path: Path) -> tuple[Dataset, Dataset]:
    """The training and the test part."""
    version = _version(files)
    names = [PurePosixPath(name) for name in files]
    folder, *others = sorted({name.parent for name in names if name.name in version.files})
    if others:
        raise ValueError(f"{path}: {version.name} files in both {folder} and {others[0]}")

    records = {}
    for name in version.files:
        member = str(folder / name)
        if member not in files:
            raise FileNotFoundError(f"{path}: {version.name} file {member} is missing")
        records[name] = _records(files[member](), version, name, f"{path}: {member}")
    train, test = (
        np.concatenate([records[name] for name in names]) for names in (version.train, version.test)
    )
    # Detects truncation between two records: the batches have one size.
    if len(train) != 5 * len(test):
        counts = ", ".join(f"{name} {len(records[name])}" for name in version.files)
        raise ValueError(f"{path}: expected 5 training records for a test record, got {counts}")

    classes = _class_names(files, version, folder, path)
    labels = len(version.label_classes)

    def dataset(part: np.ndarray) -> Dataset:
        images = np.ascontiguousarray(part[:, labels:]).reshape(-1, *_SHAPE)
        return Dataset(images, part[:, labels - 1].astype(np.int64), classes, version.name)

    return dataset(train), dataset(test)


def _version(files: Files) -> _Version | None:
    names = {PurePosixPath(name).name for name in files}
    return next((v for v in (_CIFAR10, _CIFAR100) if names & set(v.files)), None)


def _records(data: bytes, version: _Version, name: str, where: str) -> np.ndarray:
    size = len(version.label_classes) + _PIXELS
    most = version.records[name]
    count, rest = divmod(len(data), size)
    if rest or not 0 < count <= most:
        raise ValueError(
            f"{where} has {len(data)} bytes, expected whole records of {size} bytes, "
            f"and {most * size} bytes in the official file"
        )
    records = np.frombuffer(data, np.uint8).reshape(count, size)
    for byte, classes in enumerate(version.label_classes):
        wrong = np.flatnonzero(records[:, byte] >= classes)
        if len(wrong):
            raise ValueError(
                f"{where}: label byte {byte} of record {wrong[0]} is {records[wrong[0], byte]}, "
                f"expected 0..{classes - 1}"
            )
    return records


def _class_names(files: Files, version: _Version, folder: PurePosixPath, path: Path) -> tuple:
    count = version.label_classes[-1]
    member = str(folder / version.class_names)
    if member not in files:
        return tuple(map(str, range(count)))
    names = tuple(files[member]().decode("utf-8", "replace").split())
    if len(names) != count:
        raise ValueError(f"{path}: {member} names {len(names)} classes, expected {count}")
    return names
