"""Kernel arguments in C: names of element types, scalars, and structs.

A struct is passed by value, as a NumPy structured scalar or 0-d array. Fields of dtype ``object``
are pointers: they hold arrays, or None for a null pointer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mulfree_cupy.geometry import ConvGeometry

BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}
MOVED_AS = {
    1: "unsigned char",
    2: "unsigned short",
    4: "unsigned int",
    8: "unsigned long long",
    16: "ulonglong2",
}
POINTER = np.dtype(object)  # of the size of a pointer
PAIR = (np.int32, 2)  # this struct and the next are declared in cuda/geometry.cuh
_PAIRS = "size", "kernel", "stride", "pad", "dilation", "out", "step"
CONVOLUTION = np.dtype(
    [(name, np.int32) for name in ("images", "groups", "channels", "filters")]
    + [(name, *PAIR) for name in _PAIRS]
)
_C_NAMES = {"float32": "float", "float64": "double"}


def c_type(array) -> str:
    """The C++ name of a floating-point array's element."""
    return _C_NAMES[array.dtype.name]


def int32(*values: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(v) for v in values)


def int64(*values: int) -> tuple[np.int64, ...]:
    return tuple(np.int64(v) for v in values)


@functools.lru_cache(1024)
def convolution_struct(g: ConvGeometry, images: int, channels: int | None = None) -> np.void:
    """The `Conv` struct of a convolution of some images.

    Parameters
    ----------
    channels : int, optional
        Number per group, in words where several are packed into one.
    """
    step = (s // math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True))
    if channels is None:
        channels = g.channels // g.groups
    return struct(
        CONVOLUTION,
        images, g.groups, channels, g.filters // g.groups,
        g.size, g.kernel, g.stride, g.before, g.dilation,
        g.out_size, tuple(step),
    )  # fmt: skip


def struct(dtype: np.dtype, *fields: Any) -> np.void:
    return np.array(fields, dtype)[()]


def is_struct(value: Any) -> bool:
    return isinstance(value, (np.generic, np.ndarray)) and value.dtype.names is not None


def pointers(struct: np.ndarray) -> Iterator[tuple[str, int, Any]]:
    """(name, offset in bytes, array or None) of each pointer, ``("x[1]", 8, array)``."""
    for name, (dtype, offset, *_) in struct.dtype.fields.items():
        if dtype.base == POINTER:
            for i, array in enumerate(np.ravel(struct[name])):
                yield f"{name}[{i}]" if dtype.shape else name, offset + i * POINTER.itemsize, array


def with_addresses(struct: np.ndarray, address: Callable[[Any], int]) -> np.ndarray:
    """The struct's bytes in C, each array replaced by its address."""
    if not struct.dtype.hasobject:
        return np.asarray(struct)
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
