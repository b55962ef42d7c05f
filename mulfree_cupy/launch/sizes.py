"""What every launcher shares: limits, C types and numbers, the checks and chunks that keep to them.

Arrays are C-contiguous, checked and not empty.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np

from mulfree_cupy.geometry import ConvGeometry

WORKSPACE = 64 * 2**20  # bytes of what is stored between two launches
GRID_LIMIT = 65535  # blocks along y and z
INT32 = 2**31 - 2**16  # and room for what a last tile or step of the grid has beyond the end
_C_NAMES = {"float32": "float", "float64": "double"}


def on_device_of_arrays(launcher: Callable) -> Callable:
    """The launcher, with its first array's GPU current: kernels and new arrays belong there."""

    @functools.wraps(launcher)
    def launch(device, first, *args, **options) -> None:
        with contextlib.nullcontext() if device.xp is np else first.device:
            launcher(device, first, *args, **options)

    return launch


def c_type(array) -> str:
    """The C++ name of a floating-point array's element."""
    return _C_NAMES[array.dtype.name]


def int32(*values: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(v) for v in values)


def int64(*values: int) -> tuple[np.int64, ...]:
    return tuple(np.int64(v) for v in values)


def check_sizes(function: str, limit: int, sizes: dict[str, int]) -> None:
    """Refuse what a kernel's integers of 32 bits cannot hold."""
    for name, size in sizes.items():
        if size > limit:
            raise ValueError(f"{function}: {name} must be at most {limit}, got {size}")


def check_geometry(function: str, g: ConvGeometry, longest: int | None = None) -> None:
    """Refuse sizes that overflow 32 bits, and a padded image of more rows or columns."""
    check_sizes(function, INT32, {"N": g.batch, "C*kh*kw": g.cols_shape[1], "K": g.filters})
    padded = {"H + 2*padding": padded_image(g)[0], "W + 2*padding": padded_image(g)[1]}
    check_sizes(function, INT32 if longest is None else longest, padded)


def padded_image(g: ConvGeometry) -> tuple[int, int]:
    """Its height and width."""
    return g.height + 2 * g.padding[0], g.width + 2 * g.padding[1]


def chunks(total: int, size: int) -> Iterator[slice]:
    """Ranges of at most `size` that make up the total."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
