"""Labelled images from local files, and batches of them for training.

`load` reads every supported format into a pair of `Dataset`; a `Loader` turns one of them into
shuffled, augmented, normalised batches. Nothing is downloaded, unpickled or extracted to disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from mulfree_cupy import geometry
from mulfree_cupy.data import archives, cifar, folders, idx
from mulfree_cupy.data.augment import Compose, RandomCrop, RandomFlip
from mulfree_cupy.data.cache import cached
from mulfree_cupy.data.dataset import (
    Dataset,
    OtherData,
    OtherSize,
    digest,
    sample,
    split,
    statistics,
)
from mulfree_cupy.data.digits import load_digits
from mulfree_cupy.data.feed import Feed
from mulfree_cupy.data.loader import Loader

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "Compose",
    "Dataset",
    "Feed",
    "Loader",
    "OtherData",
    "OtherSize",
    "RandomCrop",
    "RandomFlip",
    "digest",
    "load",
    "sample",
    "split",
    "statistics",
]

# The AdderNet papers' normalisation of CIFAR-10 and CIFAR-100, in units of a pixel value 0..255.
CIFAR_MEAN = tuple(255 * channel for channel in (0.4914, 0.4822, 0.4465))
CIFAR_STD = tuple(255 * channel for channel in (0.2023, 0.1994, 0.2010))

_MOST_SIDE = 4096

Size = tuple[int, int] | None


def load(
    spec: str | os.PathLike,
    *,
    image_size: int | tuple[int, int] | None = None,
    cache: bool = True,
) -> tuple[Dataset, Dataset]:
    """Load a data set and return its training and its test part.

    Parameters
    ----------
    spec : str or path
        ``"digits"``, the 8x8 digits that come with scikit-learn, or the path of one of these:

        - CIFAR-10 or CIFAR-100 in the binary version: a folder, zip or tar;
        - MNIST-style idx files, plain or ``.gz``: a folder, zip or tar;
        - images in class folders, ``cat/1.png``: a folder, zip or tar. Folders ``train/`` and
          ``test/`` (or ``val/``), or archives ``train.tar.xz`` and ``test.tar.xz`` in a folder, are
          the two parts; else every fifth image of a class is a test image.

        A tar may be compressed with gzip, xz or bzip2. A folder that contains only an archive is
        equivalent to it.
    image_size : int or (int, int), optional
        Height and width to which images in class folders are resized; by default all must have one
        size.
    cache : bool, default True
        Cache the contents of an archive as one uncompressed file in ``$MULFREE_CACHE_DIR``, else in
        ``$XDG_CACHE_HOME/mulfree_cupy`` or ``~/.cache/mulfree_cupy``.

    Returns
    -------
    train, test : Dataset
        Classes and images are in the order of their sorted names, whatever the archive's order.

    Raises
    ------
    FileNotFoundError
        If the path, or one of the files a format needs, does not exist.
    ValueError
        If a file is truncated, oversized, mislabelled, unreadable or of an unknown format.
    ImportError
        If scikit-learn (for the digits) or Pillow (for images) is not installed.

    Examples
    --------
    >>> from mulfree_cupy import data
    >>> train, test = data.load("digits")
    >>> train
    Dataset('digits', 1442 images of 1x8x8, 10 classes)
    >>> test.images.shape, test.labels[:5]
    ((355, 1, 8, 8), array([5, 0, 9, 8, 7]))
    """
    if spec == "digits":
        _refuse_size(image_size, "digits")
        return load_digits()
    size = _pair(image_size)
    path, sources = _located(spec)

    def read() -> tuple[Dataset, Dataset]:
        return _read(path, sources, size)

    if cache and all(source.is_file() for source in sources):
        return cached(sources, size, read)
    return read()


def is_resizable(spec: str | os.PathLike) -> bool:
    """Whether a data set is of images in class folders, which `load` resizes."""
    if spec == "digits":
        return False
    path, sources = _located(spec)
    return _reader([archives.read(source) for source in sources], path) is folders


def _located(spec: str | os.PathLike) -> tuple[Path, list[Path]]:
    """The path of a data set, and of what is read: itself, or the archives that it contains."""
    path = Path(os.path.expanduser(spec))
    if not path.exists():
        raise FileNotFoundError(
            f"load: {path} does not exist; data is read from a local path and never downloaded"
        )
    sources = _sources(path)
    return (sources[0] if len(sources) == 1 else path), sources


def _sources(path: Path) -> list[Path]:
    """The path itself, or the archive or archives that it contains."""
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.iterdir() if not archives.is_hidden(file.name))
    packed = [file for file in inside if archives.is_archive_name(file)]
    found = {
        part: [file for file in packed if file.name.startswith(f"{part}.")]
        for part in ("train", "test")
    }
    if not any(found.values()):
        return packed if len(packed) == len(inside) == 1 else [path]
    for part, files in found.items():
        if not files:
            raise FileNotFoundError(f"{path}: no archive of {part} images, such as {part}.tar.xz")
        if len(files) > 1:
            raise ValueError(f"{path}: expected one archive of {part} images, got {files}")
    return [found["train"][0], found["test"][0]]


def _read(path: Path, sources: list[Path], size: Size) -> tuple[Dataset, Dataset]:
    contents = [archives.read(source) for source in sources]
    reader = _reader(contents, path)
    if reader is folders:
        return folders.load(contents, sources, path, size)
    _refuse_size(size, path)
    return reader.load(contents[0], path)


def _reader(contents: list[archives.Files], path: Path) -> ModuleType:
    """The module for the format; a training and a test archive are of class folders."""
    if len(contents) > 1:
        return folders
    return next((r for r in (cifar, idx) if r.recognises(contents[0], path)), folders)


def _pair(image_size: int | tuple[int, int] | None) -> Size:
    if image_size is None:
        return None
    pair = geometry.pair("load", "image_size", image_size, 1)
    if max(pair) > _MOST_SIDE:
        raise ValueError(f"load: image_size must be at most {_MOST_SIDE}, got {image_size!r}")
    return pair


def _refuse_size(image_size: object, what: object) -> None:
    if image_size is not None:
        raise ValueError(f"load: image_size is for images in class folders, and {what} holds none")
