"""A loader's batches computed on the device, from a device copy of the data set's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mulfree_cupy import launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.data.loader import Loader
from mulfree_cupy.launch import batch
from mulfree_cupy.launch.batch import Progress


class Feed:
    """The batches of a loader, bit-identical, computed on a GPU with one launch each.

    The order of an epoch and the moves of its images are drawn on the host and copied to the device
    when the epoch starts. The device then keeps its own counters: `take` and `tally` are the same
    launches in every step, so they can be captured in a CUDA graph, without synchronisation.

    Parameters
    ----------
    loader : Loader
        Its `augment`, if any, must draw moves, as `RandomCrop` and `RandomFlip` do. Of several
        ranks each has a feed of its part of the batches.
    xp : module
        CuPy, or NumPy inside `mulfree_cupy.emulated_cuda`.

    Raises
    ------
    TypeError
        If the images are not uint8.

    Examples
    --------
    >>> import numpy as np
    >>> import mulfree_cupy as mf
    >>> from mulfree_cupy import data
    >>> train, _ = data.load("digits")
    >>> mean, std = data.statistics(train)
    >>> loader = data.Loader(train, 500, shuffle=True, mean=mean, std=std, seed=0)
    >>> with mf.emulated_cuda():
    ...     feed = data.Feed(loader, np)
    ...     feed.start(0)
    ...     images, labels = feed.take(500)
    >>> theirs, _ = next(iter(loader))
    >>> np.array_equal(images, theirs)
    True
    """

    def __init__(self, loader: Loader, xp: Any):
        if loader.dataset.images.dtype != np.uint8:
            raise TypeError(
                f"Feed: a GPU takes images of uint8, and those of {loader.dataset.name} are "
                f"{loader.dataset.images.dtype}"
            )
        self.loader = loader
        self.images = xp.asarray(loader.dataset.images)
        self.labels = xp.asarray(loader.dataset.labels.astype(np.int32))
        self.mean, self.std = (
            xp.asarray(np.ascontiguousarray(a)).reshape(-1) for a in (loader.mean, loader.std)
        )
        self.counts = [loader.count(number) for number in range(len(loader))]
        self.plan = xp.empty((sum(self.counts), 4), np.int32)
        self.progress = xp.zeros(len(Progress._fields))
        self._xp = xp

    def start(self, epoch: int, progress: Progress | None = None) -> None:
        """Begin an epoch, or resume it after some progress."""
        self.plan[...] = self._xp.asarray(self.loader.plan(epoch))
        self.progress[...] = self._xp.asarray(np.array(progress or Progress()))

    def take(self, count: int) -> tuple[Array, Array]:
        """The first `count` images (count, C, H, W) and labels of the next batch."""
        if count > self.counts[0]:
            raise ValueError(
                f"Feed.take: count must be at most the batch size {self.counts[0]}, got {count}"
            )
        shape = count, *self.images.shape[1:]
        images = self._xp.empty(shape, self.loader.dtype)
        labels = self._xp.empty(count, np.int32)
        batch.take(
            launch.device_for(images), self.images, self.labels, self.plan, self.mean, self.std,
            self.progress, images, labels, self.counts[0],
        )  # fmt: skip
        return images, labels

    def tally(self, loss: Array, right: Array, count: int) -> None:
        """Accumulate a batch's mean loss and number of correct predictions, and advance to the next
        batch."""
        batch.tally(launch.device_for(loss), loss, right, self.progress, count)

    def first_images(self, epoch: int, count: int) -> Iterator[Array]:
        """The images of an epoch's first `count` batches, or of all."""
        self.start(epoch)
        nothing = [self._xp.zeros((), dtype) for dtype in (self.loader.dtype, np.int64)]
        for size in self.counts[:count]:
            yield self.take(size)[0]
            self.tally(*nothing, size)

    def read(self) -> Reading:
        """Start an asynchronous copy of the progress at this point of the stream."""
        return Reading(self.progress)


class Reading:
    """An asynchronous copy of the progress to the host, complete when `wait` returns."""

    def __init__(self, progress: Array):
        if isinstance(progress, np.ndarray):
            self._event, self._host = None, progress.copy()
            return
        import cupy
        import cupyx

        self._host = cupyx.empty_pinned(progress.shape, progress.dtype)
        progress.get(out=self._host, blocking=False)
        self._event = cupy.cuda.get_current_stream().record()

    def wait(self) -> Progress:
        """The progress at the time of `read`; waits for the device to get there."""
        if self._event is not None:
            self._event.synchronize()
        return Progress(*self._host.tolist())
