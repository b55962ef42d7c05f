"""What the ranks of a data-parallel training add up.

Each rank has its own copy of the network and its part of every batch. Sums over the ranks are in
the order of the ranks, so that they are the same bits on all of them and in every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mulfree_cupy.arrays import Array, device_of, namespace

_GATHERED = 2**16  # bytes; larger arrays are added up in parts, one part by each rank
_BUCKET = 2**25  # bytes of gradients that are sent together


class Communicator:
    """One of several ranks.

    Subclasses define `gather` and `exchange`, as `train.MPI` and `train.NCCL` do. Any object with
    `rank`, `size` and `sum` can take its place.

    Attributes
    ----------
    rank : int
        From 0.
    size : int
        Number of ranks.
    """

    rank: int
    size: int

    def gather(self, array: Array) -> Array:
        """The arrays of all ranks, stacked in the order of the ranks: (size, \\*shape)."""
        raise NotImplementedError

    def exchange(self, parts: Array) -> Array:
        """This rank's part of the arrays (size, ...) of all ranks, in the order of the ranks."""
        raise NotImplementedError

    def sum(self, array: Array) -> None:
        """Replace a C-contiguous array by its sum over all ranks, the same bits on each."""
        with device_of(array):
            flat = array.reshape(-1)
            if flat.nbytes <= _GATHERED:
                flat[...] = _in_order(self.gather(flat))
                return
            parts = namespace(flat).zeros((self.size, -(-flat.size // self.size)), flat.dtype)
            parts.reshape(-1)[: flat.size] = flat
            total = self.gather(_in_order(self.exchange(parts)))
            flat[...] = total.reshape(-1)[: flat.size]


class _Alone(Communicator):
    """The one rank of an ordinary run."""

    rank, size = 0, 1

    def sum(self, array: Array) -> None:
        pass


ALONE = _Alone()


def _in_order(arrays: Array) -> Array:
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total


def part_of(count: int, communicator: Communicator) -> slice:
    """This rank's part of so many rows; the parts differ by one row at most."""
    rank, size = communicator.rank, communicator.size
    return slice(count * rank // size, count * (rank + 1) // size)


def totals(communicator: Communicator, *numbers: float, xp: Any = np) -> list[float]:
    """Sums of numbers over all ranks, which exchange them as arrays of `xp`; synchronises."""
    if communicator.size == 1:
        return list(numbers)
    array = xp.array(numbers, np.float64)
    communicator.sum(array)
    return array.tolist()


def sum_gradients(communicator: Communicator, parameters: Iterable[Any]) -> None:
    """Replace the gradients of parameters by their sums over all ranks, in a few large arrays."""
    if communicator.size == 1:
        return
    for bucket in _buckets([p for p in parameters if p.grad is not None]):
        gradients = [parameter.grad for parameter in bucket]
        with device_of(*gradients):
            flat = namespace(gradients[0]).concatenate([g.reshape(-1) for g in gradients])
            communicator.sum(flat)
        end = 0
        for parameter in bucket:
            start, end = end, end + parameter.grad.size
            parameter.grad = flat[start:end].reshape(parameter.grad.shape)


def _buckets(parameters: list[Any]) -> Iterator[list[Any]]:
    """Lists of parameters with gradients of one dtype and no more than `_BUCKET` bytes, or one."""
    bucket, held = [], 0
    for parameter in sorted(parameters, key=lambda p: p.grad.dtype.str):  # stable
        gradient = parameter.grad
        full = held + gradient.nbytes > _BUCKET
        if bucket and (full or gradient.dtype != bucket[0].grad.dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += gradient.nbytes
    if bucket:
        yield bucket
