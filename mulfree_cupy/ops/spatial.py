"""1-D, 2-D and 3-D convolutions, all by the 2-D kernels.

A 1-D convolution is that of images of one row, without a copy. A 3-D convolution is that of one
image per output depth, whose channels are the input planes of the depth taps. These are copied, a
part of the volume at a time: kd copies of x, few compared with its K*kh*kw uses by the 2-D kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mulfree_cupy import arrays, launch
from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import limits
from mulfree_cupy.launch.tiling import chunks

_CACHED = 4 << 20  # bytes of a part of a volume on a CPU, small enough to stay in a cache


def forward(
    compute: Callable[[Array, Array, Array, ConvGeometry], None],
    g: ConvGeometry,
    x: Array,
    w: Array,
    out: Array,
) -> None:
    """Fill out by ``compute(x, w, out, geometry)``, a 2-D convolution."""
    if len(g.size) == 2:
        compute(x, w, out, g)
    elif len(g.size) == 1:
        compute(as_rows(x), as_rows(w), as_rows(out), rows(g))
    else:
        for part in _parts(g, x.itemsize, _room(x)):
            y = arrays.empty_beside(out, part.geometry.out_shape, out.dtype)
            compute(part.columns(x), as_filters(w), y, part.geometry)
            part.of_outputs(out)[...] = part.by_depth(y)


def backward(
    compute: Callable[[Array, Array, Array, Array, Array, ConvGeometry], None],
    g: ConvGeometry,
    grad: Array,
    x: Array,
    w: Array,
    grad_x: Array,
    grad_w: Array,
) -> None:
    """Fill grad_x and grad_w by ``compute(grad, x, w, grad_x, grad_w, geometry)``, in 2-D."""
    if len(g.size) == 2:
        compute(grad, x, w, grad_x, grad_w, g)
    elif len(g.size) == 1:
        compute(*map(as_rows, (grad, x, w, grad_x, grad_w)), rows(g))
    else:
        grad_x[...], grad_w[...] = 0, 0
        for part in _parts(g, x.itemsize, _room(x)):
            flow = arrays.contiguous(part.of_outputs(grad).swapaxes(1, 2))
            columns, filters = part.columns(x), as_filters(w)
            grad_columns = arrays.empty_beside(x, columns.shape, x.dtype)
            grad_filters = arrays.empty_beside(x, filters.shape, x.dtype)
            arguments = flow.reshape(part.geometry.out_shape), columns, filters
            compute(*arguments, grad_columns, grad_filters, part.geometry)
            part.add(grad_columns, grad_x)
            grad_w += grad_filters.reshape(w.shape)


def rows(g: ConvGeometry) -> ConvGeometry:
    """The 2-D geometry of a 1-D convolution."""
    return ConvGeometry(
        *(g.batch, g.channels, (1, *g.size), g.filters, (1, *g.kernel), (1, *g.stride)),
        *(((0, 0), *g.padding), (1, *g.dilation), g.groups),
    )


def as_rows(array: Array) -> Array:
    """A view (N, C, 1, L)."""
    return array[:, :, None]


def as_filters(w: Array) -> Array:
    """A view (K, C, kh, kw) of C-contiguous weights of any rank; depth taps become channels."""
    window = (1, 1, *w.shape[2:])[-2:]
    return w.reshape(len(w), math.prod(w.shape[1:]) // math.prod(window), *window)


def by_channel(vector: Array, axes: int) -> Array:
    """One number per channel, to broadcast against arrays of so many spatial axes."""
    return vector.reshape(-1, *(1,) * axes)


@dataclass(frozen=True)
class _Part:
    """Some output depths of some images, as images of a 2-D convolution."""

    whole: ConvGeometry
    images: slice
    depths: slice

    @property
    def count(self) -> int:
        return self.depths.stop - self.depths.start

    @property
    def geometry(self) -> ConvGeometry:
        g = self.whole
        return ConvGeometry(
            *((self.images.stop - self.images.start) * self.count, g.channels * g.kernel[0]),
            *(g.size[1:], g.filters, g.kernel[1:], g.stride[1:], g.padding[1:], g.dilation[1:]),
            g.groups,
        )

    def columns(self, x: Array) -> Array:
        """The input planes of each output depth, zero in the padding: (images, C*kd, H, W)."""
        g = self.whole
        images = self.images.stop - self.images.start
        shape = images, self.count, g.channels, g.kernel[0], *g.size[1:]
        with arrays.device_of(x):
            make = namespace(x).zeros if any(g.padding[0]) else namespace(x).empty
            columns = make(shape, x.dtype)
        for tap, outputs, planes in self._seen():
            columns[:, outputs, :, tap] = x[self.images, :, planes].swapaxes(1, 2)
        return columns.reshape(self.geometry.x_shape)

    def add(self, columns: Array, x: Array) -> None:
        """Accumulate columns into the planes of x: the adjoint of `columns`."""
        g = self.whole
        columns = columns.reshape(-1, self.count, g.channels, g.kernel[0], *g.size[1:])
        for tap, outputs, planes in self._seen():
            x[self.images, :, planes] += columns[:, outputs, :, tap].swapaxes(1, 2)

    def _seen(self) -> Iterator[tuple[int, slice, slice]]:
        """For each depth tap, the output depths with a plane of x at it, and these planes."""
        (size, *_), (stride, *_), (dilation, *_) = (getattr(self.whole, n) for n in _AXIS)
        for tap in range(self.whole.kernel[0]):
            first = tap * dilation - self.whole.before[0]  # the plane of output 0
            start = max(self.depths.start, -(first // stride))
            stop = min(self.depths.stop, (size - 1 - first) // stride + 1)
            if start < stop:
                planes = slice(start * stride + first, (stop - 1) * stride + first + 1, stride)
                yield tap, slice(start - self.depths.start, stop - self.depths.start), planes

    def of_outputs(self, out: Array) -> Array:
        """View (images, K, depths, OH, OW) of the whole output."""
        return out[self.images, :, self.depths]

    def by_depth(self, y: Array) -> Array:
        """The 2-D output in the shape of `of_outputs`."""
        return y.reshape(-1, self.count, *y.shape[1:]).swapaxes(1, 2)


_AXIS = "size", "stride", "dilation"


def _room(x: Array) -> int:
    """Bytes for the input planes and the outputs of a part."""
    return _CACHED if launch.device_for(x) is None else limits.WORKSPACE


def _parts(g: ConvGeometry, itemsize: int, room: int) -> Iterator[_Part]:
    """Parts that fit `room`, or of one output depth; several images if these are small."""
    depth, *plane = g.out_size
    planes = g.channels * g.kernel[0] * g.size[1] * g.size[2] + g.filters * plane[0] * plane[1]
    at_once = max(1, room // (planes * itemsize))
    for images in chunks(g.batch, max(1, at_once // depth)):
        for depths in chunks(depth, at_once):
            yield _Part(g, images, depths)
