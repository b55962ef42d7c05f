"""Structs passed to kernels by value that hold arrays: tables of pointers.

Such a struct is a NumPy structured scalar or 0-d array whose fields of dtype ``object`` hold
arrays, or None for a null pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

POINTER = np.dtype(object)  # as wide as a pointer


def holds_arrays(value: Any) -> bool:
    """Whether this is a struct with arrays among its fields."""
    return isinstance(value, (np.generic, np.ndarray)) and bool(
        value.dtype.names and value.dtype.hasobject
    )


def pointers(struct: np.ndarray) -> Iterator[tuple[str, int, Any]]:
    """(name, offset in bytes, array or None) of each pointer, ``("x[1]", 8, array)``."""
    for name, (dtype, offset, *_) in struct.dtype.fields.items():
        if dtype.base == POINTER:
            for i, array in enumerate(np.ravel(struct[name])):
                yield f"{name}[{i}]" if dtype.shape else name, offset + i * POINTER.itemsize, array


def with_addresses(struct: np.ndarray, address: Callable[[Any], int]) -> np.ndarray:
    """The struct as C sees it, each array replaced by its address."""
    names, fields = struct.dtype.names, struct.dtype.fields
    plain = np.zeros(
        (),
        {
            "names": names,
            "formats": [_plain(fields[name][0]) for name in names],
            "offsets": [fields[name][1] for name in names],
            "itemsize": struct.dtype.itemsize,
        },
    )
    for name in names:
        held = struct[name]
        if fields[name][0].base == POINTER:
            held = np.reshape(
                [0 if a is None else address(a) for a in np.ravel(held)], np.shape(held)
            )
        plain[name] = held
    return plain


def _plain(dtype: np.dtype) -> np.dtype:
    return np.dtype((np.uint64, dtype.shape)) if dtype.base == POINTER else dtype
