"""Detection of arrays written to between the forward and the backward pass."""

from __future__ import annotations

import contextlib
import contextvars
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mulfree_cupy.arrays import Array, namespace

_detecting = contextvars.ContextVar("detecting", default=False)


@contextlib.contextmanager
def detect_changes() -> Iterator[None]:
    """Inside it, `backward` raises if a recorded array has changed since the forward pass.

    The tape keeps references, not copies, so a gradient is silently wrong if an input or the result
    of an operation is written to before it is used. For debugging, this finds out which: the
    forward and the backward pass each read every array once more, and synchronise with the GPU. All
    arrays of an operation are checked, even those that its rule does not use, but not its options,
    such as a mask, an index or a table of shifts. Replacing a tensor's `data` by another array is
    allowed.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.autograd import Tensor, detect_changes
    >>> values = np.array([1.0, 2.0])
    >>> x = Tensor(values, requires_grad=True)
    >>> with detect_changes():
    ...     y = (x * x).sum()
    >>> values[0] = 5
    >>> y.backward()
    Traceback (most recent call last):
        ...
    RuntimeError: backward: input 0 of 'multiply', of shape (2,), was written to after the forward \
pass; write to a copy, or call backward before
    """
    token = _detecting.set(True)
    try:
        yield
    finally:
        _detecting.reset(token)


class Fingerprint(NamedTuple):
    """An array and a copy of its values."""

    what: str
    array: Array
    checksum: int


def fingerprints(answer: Array, inputs: list[Array]) -> list[Fingerprint]:
    """Those of an operation's arrays; none outside of `detect_changes`."""
    if not _detecting.get():
        return []
    named = {"the answer": answer, **{f"input {i}": array for i, array in enumerate(inputs)}}
    return [Fingerprint(what, array, _checksum(array)) for what, array in named.items()]


def check(operation: str, taken: list[Fingerprint]) -> None:
    """Raise if an array has changed."""
    for what, array, checksum in taken:
        if _checksum(array) != checksum:
            raise RuntimeError(
                f"backward: {what} of {operation!r}, of shape {array.shape}, was written to after "
                "the forward pass; write to a copy, or call backward before"
            )


def _checksum(array: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(array if namespace(array) is np else array.get()))
