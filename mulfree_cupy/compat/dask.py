"""The operations on Dask arrays, block by block: more images than memory holds, or larger ones.

Weights and options are arrays in memory; each block's answer is computed by the function of the
same name. Batches are divided as they come, and so are the planes of `adder_conv` and `conv`, whose
blocks overlap by the extent of a window. For the other operations planes are merged into one block
first, as channels are for all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

import mulfree_cupy as mf
from mulfree_cupy import geometry
from mulfree_cupy.compat.deferred import answer_form, operation

__all__ = [
    "adder_conv",
    "binary_conv",
    "conv",
    "shift",
    "shift_adder_conv",
    "shift_conv",
    "winograd_conv",
]

_GEOMETRY = "stride", "padding", "dilation", "groups"
# Those whose padding equals zeros around the image, which `binary_conv` would take the sign of.
_WINDOWED = mf.adder_conv, mf.conv


def _in_blocks(function: Callable, arguments: Mapping[str, Any]) -> Any:
    """The answer of `function` as a Dask array."""
    import dask
    import dask.array as da

    options = dict(arguments)
    x = da.asarray(options.pop("x"))
    if isinstance(x._meta, np.ma.MaskedArray):
        raise TypeError(
            f"{function.__name__}: x is a masked array; pass da.ma.getdata(x) or "
            "da.ma.filled(x, value)"
        )
    for name, option in options.items():
        if dask.is_dask_collection(option):
            raise TypeError(
                f"{function.__name__}: {name} is lazy, and only x may be; pass its .compute()"
            )
    images, *sizes = x.shape
    if any(map(math.isnan, sizes)):
        raise ValueError(
            f"{function.__name__}: only the number of images in x may be unknown, got shape "
            f"{x.shape}; call its .compute_chunk_sizes()"
        )
    unknown = math.isnan(images)
    form = SimpleNamespace(shape=(1 if unknown else images, *sizes), dtype=x.dtype)
    shape, dtype = answer_form(function, {"x": form}, options)
    x = x.rechunk({1: -1})
    in_pieces = any(len(blocks) > 1 for blocks in x.chunks[2:])
    if in_pieces and function in _WINDOWED and not unknown:  # `overlap` needs all sizes
        w = options["w"]
        w_shape = w.shape if hasattr(w, "shape") else np.shape(w)
        described = {name: options.pop(name) for name in _GEOMETRY if name in options}
        g = geometry.convolution(function.__name__, form.shape, w_shape, **described)
        options |= dict(stride=g.stride, dilation=g.dilation, groups=g.groups)
        x, axes = _overlapping(x, g)
        planes = [axis.answers for axis in axes]
    else:
        x, axes = x.rechunk(dict.fromkeys(range(2, x.ndim), -1)), ()
        planes = [(size,) for size in shape[2:]]
    return da.map_blocks(
        _block,
        x,
        function=function,
        axes=axes,
        options=options,
        chunks=(x.chunks[0], (shape[1],), *planes),
        dtype=dtype,
        meta=np.empty((0,) * len(shape), dtype),
        token=function.__name__,  # the tasks' name in Dask's displays
    )


def _block(x, *, function, axes, options, block_id=None):
    if axes:
        parts = [axis.part(number) for axis, number in zip(axes, block_id[2:], strict=True)]
        x = x[(..., *(rows for rows, _ in parts))]
        sides = [sides for _, sides in parts]
        if any(map(any, sides)):
            x = np.pad(x, ((0, 0), (0, 0), *sides))
    return function(x, **options)


@dataclass(frozen=True)
class _Axis:
    """How the windows along one axis of an image are divided among its blocks.

    A block answers for the windows that start, not counting padding, in its own rows.
    """

    blocks: tuple[int, ...]  # rows of each
    count: int  # of windows
    kernel: int
    stride: int
    padding: int  # before the image
    dilation: int

    @property
    def span(self) -> int:
        """Distance between the first and the last row of a window."""
        return self.dilation * (self.kernel - 1)

    @property
    def depth(self) -> tuple[int, int]:
        """Rows that a block needs of the blocks before and after it."""
        return self.padding, max(self.span - self.padding, 0)

    @property
    def least(self) -> int:
        """Rows with which a block's windows reach only its neighbours, and it has a window."""
        return max(self.depth) + self.stride

    @property
    def starts(self) -> list[int]:
        return [0, *itertools.accumulate(self.blocks)]

    @property
    def windows(self) -> list[int]:
        """The first window of each block, and the number of windows."""
        return [*(-(-start // self.stride) for start in self.starts[:-1]), self.count]

    @property
    def answers(self) -> tuple[int, ...]:
        return tuple(last - first for first, last in itertools.pairwise(self.windows))

    def part(self, block: int) -> tuple[slice, tuple[int, int]]:
        """The rows of an overlapping block that its windows cover, and the padding beside them."""
        begin, size = max(self.starts[block] - self.depth[0], 0), self.starts[-1]
        first, last = self.windows[block : block + 2]
        start = first * self.stride - self.padding
        stop = (last - 1) * self.stride - self.padding + self.span + 1
        rows = slice(max(start, 0) - begin, min(stop, size) - begin)
        return rows, (max(-start, 0), max(stop - size, 0))


def _overlapping(x: Any, g: geometry.ConvGeometry) -> tuple[Any, list[_Axis]]:
    """The blocks with the neighbouring rows that their windows cover."""
    from dask.array.overlap import ensure_minimum_chunksize, overlap

    axes, depth = [], {0: 0, 1: 0}
    windows = zip(g.out_size, g.kernel, g.stride, g.before, g.dilation, strict=True)
    for i, described in enumerate(windows, 2):
        axis = _Axis(x.chunks[i], *described)
        if axis.least > sum(axis.blocks):
            x = x.rechunk({i: -1})
        elif len(axis.blocks) > 1:
            x = x.rechunk({i: ensure_minimum_chunksize(axis.least, axis.blocks)})
        axes.append(_Axis(x.chunks[i], *described))
        depth[i] = axes[-1].depth if len(x.chunks[i]) > 1 else 0
    return overlap(x, depth, "none", allow_rechunk=False), axes


def _operation(function: Callable) -> Callable:
    return operation(function, "Dask", _in_blocks)


adder_conv = _operation(mf.adder_conv)
binary_conv = _operation(mf.binary_conv)
conv = _operation(mf.conv)
shift = _operation(mf.shift)
shift_adder_conv = _operation(mf.shift_adder_conv)
shift_conv = _operation(mf.shift_conv)
winograd_conv = _operation(mf.winograd_conv)
