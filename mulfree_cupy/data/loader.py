"""Batches of a data set, prepared ahead by one background thread."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from mulfree_cupy import geometry
from mulfree_cupy.communicator import ALONE, Communicator, part_of
from mulfree_cupy.data.augment import Augment, Moves, drawn, moved
from mulfree_cupy.data.dataset import Dataset


class Loader:
    """Iterate over a data set in normalised batches, ``(augment(image) - mean) / std``.

    The order and the augmentation of an epoch depend on ``(seed, epoch)`` alone, so a run resumed
    with ``loader.epoch = e`` gets bit-identical batches. Each batch's augmentation depends on
    ``(seed, epoch, batch)``: to resume inside an epoch, skip batches with
    ``itertools.islice(loader, seen, None)``.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int
        The last batch may be smaller.
    shuffle : bool
        A new order each epoch, or the data set's.
    augment : callable, optional
        Takes images (N, C, H, W) and a `numpy.random.Generator` and returns such images, as
        `RandomCrop` and `RandomFlip` do.
    mean, std : float or sequence of C floats
        In units of a pixel value, as `statistics` returns them.
    seed : int
        At least 0.
    dtype : {float32, float64}
        Of the images.
    prefetch : int, default 2
        Batches prepared ahead, at least 1.
    communicator : Communicator
        Each of its ranks gets its part of every batch. With several, `augment`, if any, must draw
        moves, as `RandomCrop` and `RandomFlip` do.

    Attributes
    ----------
    epoch : int
        The epoch of the next loop; initially 0, incremented after each complete loop.

    Raises
    ------
    TypeError
        If an integer or `dtype` has the wrong type.
    ValueError
        If an integer is too small, `mean` or `std` does not fit the channels, or a `std` is not
        positive.

    Notes
    -----
    Exceptions of `augment` are raised in the loop. The thread ends with the loop, however it ends.
    The streams of `numpy.random.Generator` may change between NumPy versions.

    Examples
    --------
    >>> from mulfree_cupy import data
    >>> train, test = data.load("digits")
    >>> mean, std = data.statistics(train)
    >>> loader = data.Loader(train, 500, shuffle=True, mean=mean, std=std, seed=0)
    >>> for images, labels in loader:
    ...     print(images.shape, images.dtype, labels.shape)
    (500, 1, 8, 8) float32 (500,)
    (500, 1, 8, 8) float32 (500,)
    (442, 1, 8, 8) float32 (442,)
    >>> len(loader), loader.epoch
    (3, 1)
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool,
        augment: Augment | None = None,
        mean: float | np.ndarray,
        std: float | np.ndarray,
        seed: int,
        dtype: np.dtype | type = np.float32,
        prefetch: int = 2,
        communicator: Communicator = ALONE,
    ) -> None:
        self.dataset = dataset
        self.batch_size = geometry.integer("Loader", "batch_size", batch_size)
        self.shuffle = shuffle
        self.augment = augment
        self.seed = geometry.integer("Loader", "seed", seed, 0)
        self.prefetch = geometry.integer("Loader", "prefetch", prefetch)
        self.communicator = communicator
        self.epoch = 0
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"Loader: dtype must be float32 or float64, got {self.dtype}")
        self.mean = self._channels("mean", mean)
        self.std = self._channels("std", std)
        if not (self.std > 0).all():
            raise ValueError(f"Loader: std must be positive, got {std}")

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.dataset) // self.batch_size)

    def total(self, number: int) -> int:
        """The number of images in a batch, of all ranks."""
        return min(self.batch_size, len(self.dataset) - number * self.batch_size)

    def part(self, number: int) -> slice:
        """This rank's rows of a batch."""
        return part_of(self.total(number), self.communicator)

    def count(self, number: int) -> int:
        """The number of images in this rank's part of a batch."""
        part = self.part(number)
        return part.stop - part.start

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        epoch = geometry.integer("Loader", "epoch", self.epoch, 0)
        yield from self._batches(epoch)
        self.epoch = epoch + 1

    def first_images(self, epoch: int, count: int) -> Iterator[np.ndarray]:
        """The images of an epoch's first `count` batches, or of all."""
        with contextlib.closing(self._batches(epoch)) as batches:
            for images, _ in islice(batches, count):
                yield images

    def _batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = self._order(epoch)
        pool = ThreadPoolExecutor(1, thread_name_prefix="mulfree-loader")
        batches = (pool.submit(self._batch, order, epoch, number) for number in range(len(self)))
        try:
            ahead = deque(islice(batches, self.prefetch))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(islice(batches, 1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def plan(self, epoch: int) -> np.ndarray:
        """The order and moves of this rank's part of an epoch, for preparing it elsewhere.

        Parameters
        ----------
        epoch : int

        Returns
        -------
        ndarray of int32, shape (number of images, 4)
            Rows ``(image, dy, dx, flip)``, as in `Moves`.

        Raises
        ------
        TypeError
            If `augment` draws no moves.
        ValueError
            If it crops an image twice.
        """
        order = self._order(geometry.integer("Loader.plan", "epoch", epoch, 0))
        parts = []
        for number in range(len(self)):
            moves = self._moves(epoch, number)
            parts.append(np.stack([self._chosen(order, number), *moves], axis=1))
        return np.concatenate(parts, dtype=np.int32)

    def _order(self, epoch: int) -> np.ndarray:
        order = np.arange(len(self.dataset))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch, 0)).shuffle(order)
        return order

    def _rng(self, epoch: int, number: int) -> np.random.Generator:
        """The random generator of a batch's augmentation; stream 0 of the epoch is for the
        order."""
        return np.random.default_rng((self.seed, epoch, number + 1))

    def _chosen(self, order: np.ndarray, number: int) -> np.ndarray:
        start = number * self.batch_size
        return order[start : start + self.total(number)][self.part(number)]

    def _moves(self, epoch: int, number: int) -> Moves:
        """Those of this rank's part, drawn for the batch of all ranks."""
        part = self.part(number)
        moves = drawn(self.augment, self._rng(epoch, number), self.total(number))
        return Moves(*(move[part] for move in moves))

    def _batch(self, order: np.ndarray, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self._chosen(order, number)
        images = self.dataset.images[chosen]
        if self.augment is not None and self.communicator.size == 1:
            images = self.augment(images, self._rng(epoch, number))
        elif self.augment is not None:
            images = moved(images, self._moves(epoch, number))
        normalised = images.astype(self.dtype)
        normalised -= self.mean
        normalised /= self.std
        return normalised, self.dataset.labels[chosen]

    def _channels(self, name: str, value: float | np.ndarray) -> np.ndarray:
        channels = self.dataset.images.shape[1]
        array = np.asarray(value, self.dtype)
        if array.shape not in ((), (channels,)) or not np.isfinite(array).all():
            raise ValueError(
                f"Loader: {name} must be a finite number or one for each of {channels} channels, "
                f"got {value}"
            )
        return np.broadcast_to(array, channels)[:, np.newaxis, np.newaxis]
