"""Labelled images in memory, their statistics, and the split of undivided data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


class OtherData(ValueError):
    """A network is for other images or classes than a data set's."""


class OtherSize(OtherData):
    """Only the size of the images differs.

    Attributes
    ----------
    size : int or None
        Side of the square images that the network takes; None if it takes any.
    """

    def __init__(self, message: str, size: int | None = None):
        super().__init__(message)
        self.size = size


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images of one size.

    Parameters
    ----------
    images : ndarray of uint8 or float32, shape (N, C, H, W)
        In C order. What is read from files is uint8, and a GPU trains on that alone.
    labels : ndarray of int64, shape (N,)
        Indices into `classes`.
    classes : tuple of str
        The names of the classes.
    name : str
        The data set's name in reports.

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If a shape does not fit, it is empty, a number is not finite, or a label has no class.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.data import Dataset
    >>> Dataset(np.zeros((2, 3, 4, 4), np.uint8), np.array([0, 1]), ("cat", "dog"), "pets")
    Dataset('pets', 2 images of 3x4x4, 2 classes)
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        for field, dtypes, ndim in (("images", ("uint8", "float32"), 4), ("labels", ("int64",), 1)):
            array = getattr(self, field)
            if not isinstance(array, np.ndarray) or array.dtype.name not in dtypes:
                given = getattr(array, "dtype", type(array).__name__)
                raise TypeError(
                    f"Dataset: {field} must be an array of {' or '.join(dtypes)}, got {given}"
                )
            if array.ndim != ndim or array.size == 0:
                raise ValueError(
                    f"Dataset: {field} must be a {ndim}-D array and not empty, "
                    f"got shape {array.shape}"
                )
        if not self.images.flags.c_contiguous:
            raise ValueError("Dataset: images must be in C order; use np.ascontiguousarray")
        if self.images.dtype != np.uint8 and not np.isfinite(self.images).all():
            raise ValueError(f"Dataset: images must be finite, which not all are in {self.name}")
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"Dataset: {len(self.images)} images but {len(self.labels)} labels in {self.name}"
            )
        low, high = self.labels.min(), self.labels.max()
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"Dataset: labels must be 0..{len(self.classes) - 1} for {len(self.classes)} "
                f"classes, got {low}..{high} in {self.name}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        return f"Dataset({self.name!r}, {len(self)} images of {size}, {len(self.classes)} classes)"


def check_type(dataset: Dataset) -> None:
    """Raise a TypeError unless it is a `Dataset`."""
    if not isinstance(dataset, Dataset):
        raise TypeError(
            "images and labels must be passed as data.Dataset(images, labels, classes, name), got "
            f"{type(dataset).__name__}"
        )


def check_same(
    source: str | os.PathLike, image: tuple[int, ...], classes: Sequence[str], dataset: Dataset
) -> None:
    """Raise `OtherData` unless a data set has images and classes like those of a file's network."""
    check_type(dataset)
    found, same = dataset.images.shape[1:], tuple(classes) == tuple(dataset.classes)
    if (image, len(classes)) != (found, len(dataset.classes)):
        message = (
            f"{source} was trained on images of {_sizes(image, classes)}, {dataset.name} has "
            f"{_sizes(found, dataset.classes)}"
        )
        channels, height, width = image
        if same and channels == found[0] and height == width:
            raise OtherSize(message, height)
        raise OtherData(message)
    if not same:
        raise OtherData(f"{source} was trained on other classes than those of {dataset.name}")


def _sizes(image: tuple[int, ...], classes: Sequence[str]) -> str:
    return f"{' x '.join(map(str, image))} in {len(classes)} classes"


def statistics(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all images, in units of a pixel value.

    Of uint8 images both come from exact integer sums: ``std**2 = sum(x**2) / n - mean**2``. A
    channel in which all pixels are equal has a deviation of 1, so that normalising makes it zero.

    Parameters
    ----------
    dataset : Dataset
        The training part, as a rule.

    Returns
    -------
    mean, std : ndarray of float64, shape (C,)

    Examples
    --------
    >>> from mulfree_cupy import data
    >>> mean, std = data.statistics(data.load("digits")[0])
    >>> print(mean.round(2), std.round(2))
    [4.88] [6.02]
    """
    images = dataset.images
    if images.dtype == np.uint8:
        count = images[:, 0].size
        mean = images.sum(axis=(0, 2, 3), dtype=np.int64) / count
        squares = np.einsum("nchw,nchw->c", images, images, dtype=np.int64) / count
        std = np.sqrt(np.maximum(squares - mean**2, 0))
    else:
        wide = images.astype(np.float64)
        mean, std = wide.mean(axis=(0, 2, 3)), wide.std(axis=(0, 2, 3))
    constant = images.min(axis=(0, 2, 3)) == images.max(axis=(0, 2, 3))
    return mean, np.where(constant, 1, std)


def sample(dataset: Dataset, count: int) -> Dataset:
    """A number of images, or all if there are fewer, evenly spaced.

    Images from class folders are ordered by class, so the first few would be of one class.

    Parameters
    ----------
    dataset : Dataset
    count : int

    Returns
    -------
    Dataset

    Examples
    --------
    >>> from mulfree_cupy import data
    >>> data.sample(data.load("digits")[0], 3)
    Dataset('digits', 3 images of 1x8x8, 10 classes)
    """
    last = len(dataset) - 1
    chosen = np.linspace(0, last, min(count, len(dataset))).round().astype(np.intp)
    return replace(dataset, images=dataset.images[chosen], labels=dataset.labels[chosen])


def digest(*datasets: Dataset) -> str:
    """Fingerprint of data sets: a SHA-256 of their images and labels, in order.

    Parameters
    ----------
    *datasets : Dataset

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for dataset in datasets:
        total.update(repr(dataset.images.shape).encode())
        total.update(dataset.images)
        total.update(np.ascontiguousarray(dataset.labels, "<i8"))
    return total.hexdigest()


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split image indices into training and test: every fifth of a class is for testing.

    Parameters
    ----------
    labels : ndarray of int, shape (N,)

    Returns
    -------
    train, test : ndarray of int, in ascending order

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy import data
    >>> data.split(np.array([0, 0, 1, 0, 0, 0, 1]))
    (array([0, 1, 2, 3, 4, 6]), array([5]))
    """
    by_class = np.argsort(labels, kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    place = np.empty(len(labels), np.int64)
    place[by_class] = np.concatenate([np.arange(count) for count in counts])
    return np.flatnonzero(place % 5 != 4), np.flatnonzero(place % 5 == 4)
