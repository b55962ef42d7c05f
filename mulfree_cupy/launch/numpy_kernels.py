"""The CPU kernels in pure NumPy, for installations without a C++ compiler.

Same names, arguments and results as the compiled module; sums run tap by tap over slices of the
padded image, without storing an im2col matrix. Operands are put in C order first: NumPy adds in
memory order, so other layouts would round differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from mulfree_cupy.geometry import Sides, output_size, windows
from mulfree_cupy.launch.numpy_winograd import (  # noqa: F401
    winograd_blocks,
    winograd_conv,
    winograd_conv_grad_u,
    winograd_conv_grad_x,
    winograd_costs,
    winograd_dense,
    winograd_sparse,
)

_WORKSPACE = 64 << 20  # bytes; limit for a chunk of the batch


compiler = "none"


def features() -> str:
    return "numpy"


def get_num_threads() -> int:
    return 1


def set_num_threads(n: int) -> None:
    """Nothing to set: these kernels run in the caller's thread."""


def _padded(x: np.ndarray, padding: Sides) -> np.ndarray:
    return np.pad(np.ascontiguousarray(x), ((0, 0), (0, 0), *padding))


def _taps(
    padded: np.ndarray, kernel: tuple, stride: tuple, dilation: tuple, out_size: tuple
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(i, j, the view of the padded image that tap (i, j) sees), shape (N, C, OH, OW)."""
    for i, j, seen in windows(kernel, stride, dilation, out_size):
        yield i, j, padded[(..., *seen)]


def _chunks(batch: int, bytes_an_image: int) -> Iterator[slice]:
    step = max(1, _WORKSPACE // max(1, bytes_an_image))
    for start in range(0, batch, step):
        yield slice(start, start + step)


def _group_slices(groups: int, channels: int, filters: int) -> Iterator[tuple[slice, slice]]:
    c, k = channels // groups, filters // groups
    for group in range(groups):
        yield slice(group * c, (group + 1) * c), slice(group * k, (group + 1) * k)


def im2col(x, cols, kernel, stride, padding, dilation):
    out_size = _sizes(x, kernel, stride, padding, dilation)
    target = cols.reshape(*x.shape[:2], *kernel, *out_size)
    for images in _chunks(x.shape[0], 2 * x[:1].nbytes):
        padded = _padded(x[images], padding)
        for i, j, seen in _taps(padded, kernel, stride, dilation, out_size):
            target[images, :, i, j] = seen


def col2im(cols, x, kernel, stride, padding, dilation):
    out_size = _sizes(x, kernel, stride, padding, dilation)
    source = cols.reshape(*x.shape[:2], *kernel, *out_size)
    for images in _chunks(x.shape[0], 2 * x[:1].nbytes):
        padded = np.zeros_like(_padded(x[images], padding))
        for i, j, seen in _taps(padded, kernel, stride, dilation, out_size):
            seen += source[images, :, i, j]
        x[images] = _cropped(padded, padding)


def conv(x, w, bias, out, stride, padding, dilation, groups):
    def add_tap(seen, weights, target):
        target += np.einsum("nchw,kc->nkhw", seen, weights)

    _forward(add_tap, x, w, bias, out, stride, padding, dilation, groups)


def adder_conv(x, w, bias, out, stride, padding, dilation, groups):
    def add_tap(seen, weights, target):
        for channel in range(seen.shape[1]):
            target -= np.abs(
                seen[:, channel, None].astype(out.dtype, copy=False)
                - weights[None, :, channel, None, None].astype(out.dtype, copy=False)
            )

    _forward(add_tap, x, w, bias, out, stride, padding, dilation, groups)


def pairwise_l1(a, b, out):
    for rows in _chunks(len(b), 2 * b[:1].size * out.itemsize):
        points = b[rows].astype(out.dtype)
        for row, distances in zip(a.astype(out.dtype), out, strict=True):
            distances[rows] = np.abs(points - row).sum(axis=1, dtype=out.dtype)


def nearest_l1(queries, points, distances, places):
    row = np.empty((1, len(points)), distances.dtype)
    for query, (nearest, which) in enumerate(zip(distances, places, strict=True)):
        pairwise_l1(queries[query : query + 1], points, row)
        which[...] = np.argsort(row[0], kind="stable")[: len(which)]
        nearest[...] = row[0, which]


def match_template_l1(image, template, out):
    adder_conv(image[None], template[None], None, out[None, None], *_POINT)
    np.negative(out, out=out)


def _low_bit_adder_conv(bits, x, w, bias, out, stride, padding, dilation, groups):
    most = np.uint8(2**bits - 1)
    adder_conv(
        *(np.minimum(x, most), np.minimum(w, most)), bias, out, stride, padding, dilation, groups
    )


adder_conv_1bit, adder_conv_2bit, adder_conv_3bit, adder_conv_4bit = (
    partial(_low_bit_adder_conv, bits) for bits in (1, 2, 3, 4)
)


def binary_conv(x, w, scale, out, stride, padding, dilation, groups):
    x, w = (np.where(a >= 0, 1, -1).astype(out.dtype) for a in (x, w))
    conv(x, w, None, out, stride, padding, dilation, groups)
    if scale is not None:
        out *= scale[:, None, None]


def _forward(add_tap, x, w, bias, out, stride, padding, dilation, groups):
    out[...] = 0 if bias is None else bias[None, :, None, None]
    for images in _chunks(x.shape[0], 2 * (x[:1].nbytes + out[:1].nbytes)):
        padded = _padded(x[images], padding)
        for c, k in _group_slices(groups, x.shape[1], w.shape[0]):
            for i, j, seen in _taps(padded[:, c], w.shape[2:], stride, dilation, out.shape[2:]):
                add_tap(seen, w[k, :, i, j], out[images, k])


def conv_grad_x(grad, w, grad_x, stride, padding, dilation, groups):
    def add_tap(_, weights, g, target):
        target += np.einsum("nkhw,kc->nchw", g, weights)

    _grad_x(add_tap, grad, grad_x, w, grad_x, stride, padding, dilation, groups)


def adder_conv_grad_x(grad, x, w, grad_x, stride, padding, dilation, groups):
    def add_tap(seen, weights, g, target):
        for k in range(weights.shape[0]):
            slope = np.clip(weights[k, :, None, None] - seen, -1, 1)
            target += slope * g[:, k, None]

    _grad_x(add_tap, grad, x, w, grad_x, stride, padding, dilation, groups)


def _grad_x(add_tap, grad, x, w, grad_x, stride, padding, dilation, groups):
    grad = np.ascontiguousarray(grad)
    for images in _chunks(x.shape[0], 4 * (x[:1].nbytes + grad[:1].nbytes)):
        padded = _padded(x[images], padding)
        total = np.zeros_like(padded)
        for c, k in _group_slices(groups, x.shape[1], w.shape[0]):
            window = (w.shape[2:], stride, dilation, grad.shape[2:])
            both = zip(_taps(padded[:, c], *window), _taps(total[:, c], *window), strict=True)
            for (i, j, seen), (_, _, target) in both:
                add_tap(seen, w[k, :, i, j], grad[images, k], target)
        grad_x[images] = _cropped(total, padding)


def conv_grad_w(grad, x, grad_w, stride, padding, dilation, groups):
    grad, grad_w[...] = np.ascontiguousarray(grad), 0
    for images in _chunks(x.shape[0], 2 * (x[:1].nbytes + grad[:1].nbytes)):
        padded = _padded(x[images], padding)
        for c, k in _group_slices(groups, x.shape[1], grad.shape[1]):
            g = grad[images, k]
            for i, j, seen in _taps(
                padded[:, c], grad_w.shape[2:], stride, dilation, grad.shape[2:]
            ):
                # Not by BLAS, which may skip a zero times NaN.
                grad_w[k, :, i, j] += np.einsum("nkhw,nchw->kc", g, seen)


def adder_conv_grad_w(grad, x, w, grad_w, stride, padding, dilation, groups):
    grad, grad_w[...] = np.ascontiguousarray(grad), 0
    for images in _chunks(x.shape[0], 4 * (x[:1].nbytes + grad[:1].nbytes)):
        padded = _padded(x[images], padding)
        for c, k in _group_slices(groups, x.shape[1], w.shape[0]):
            for i, j, seen in _taps(padded[:, c], w.shape[2:], stride, dilation, grad.shape[2:]):
                for filter in range(k.start, k.stop):
                    difference = seen - w[filter, :, i, j][:, None, None]
                    grad_w[filter, :, i, j] += np.einsum(
                        "nchw,nhw->c", difference, grad[images, filter]
                    )


# View elements as unsigned integers of their size, or complex for 16 bytes: a shift copies bits.
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


def shift(x, shifts, out, stride):
    x, out = (a.view(_BITS[a.itemsize]) for a in (x, out))
    out[...] = 0
    for shown, seen in _shifted(shifts, x.shape[2:], stride):
        out[shown] = x[seen]


def shift_backward(grad, shifts, grad_x, stride):
    grad, grad_x = (a.view(_BITS[a.itemsize]) for a in (grad, grad_x))
    grad_x[...] = 0
    for shown, seen in _shifted(shifts, grad_x.shape[2:], stride):
        grad_x[seen] = grad[shown]


def _shifted(shifts: np.ndarray, size: tuple, stride: tuple) -> Iterator[tuple]:
    """(channel, index of the output region inside the image, index of its source)."""
    for c, offsets in enumerate(shifts.tolist()):
        (rows, seen_rows), (columns, seen_columns) = map(_shown, offsets, size, stride)
        yield (slice(None), c, rows, columns), (slice(None), c, seen_rows, seen_columns)


def _shown(offset: int, size: int, step: int) -> tuple[slice, slice]:
    """Slices of the pixels p with 0 <= p * step + offset < size, and of their sources."""
    first = max(0, -(offset // step))
    end = min(-(-size // step), -((offset - size) // step))
    if first >= end:
        return slice(0), slice(0)
    return slice(first, end), slice(first * step + offset, (end - 1) * step + offset + 1, step)


def shift_conv(x, w, shifts, bias, out, stride):
    _shifted_forward(conv, x, w, shifts, bias, out, stride)


def shift_adder_conv(x, w, shifts, bias, out, stride):
    _shifted_forward(adder_conv, x, w, shifts, bias, out, stride)


# Stride, padding, dilation and groups of a 1x1 convolution.
_POINT = (1, 1), ((0, 0), (0, 0)), (1, 1), 1


def _shifted_forward(kernel, x, w, shifts, bias, out, stride):
    for images, moved in _moved_images(x, shifts, out.shape, stride):
        kernel(moved, w[:, :, None, None], bias, out[images], *_POINT)


def _moved_images(x, shifts, out_shape, stride) -> Iterator[tuple[slice, np.ndarray]]:
    """Some images at a time, shifted."""
    for images in _chunks(x.shape[0], 4 * x[:1].nbytes):
        part = x[images]
        moved = np.empty((*part.shape[:2], *out_shape[2:]), x.dtype)
        shift(part, shifts, moved, stride)
        yield images, moved


def shift_conv_grad_x(grad, w, shifts, grad_x, stride):
    for images in _chunks(grad.shape[0], 4 * grad_x[:1].nbytes):
        part = grad[images]
        moved = np.empty((len(part), w.shape[1], *part.shape[2:]), grad.dtype)
        conv_grad_x(part, w[:, :, None, None], moved, *_POINT)
        shift_backward(moved, shifts, grad_x[images], stride)


def shift_adder_conv_grad_x(grad, x, w, shifts, grad_x, stride):
    for images, moved in _moved_images(x, shifts, grad.shape, stride):
        grad_moved = np.empty_like(moved)
        adder_conv_grad_x(grad[images], moved, w[:, :, None, None], grad_moved, *_POINT)
        shift_backward(grad_moved, shifts, grad_x[images], stride)


def shift_conv_grad_w(grad, x, shifts, grad_w, stride):
    grad_w[...] = 0
    for images, moved in _moved_images(x, shifts, grad.shape, stride):
        part = np.empty((*grad_w.shape, 1, 1), grad_w.dtype)
        conv_grad_w(grad[images], moved, part, *_POINT)
        grad_w += part[:, :, 0, 0]


def shift_adder_conv_grad_w(grad, x, w, shifts, grad_w, stride):
    grad_w[...] = 0
    for images, moved in _moved_images(x, shifts, grad.shape, stride):
        part = np.empty((*grad_w.shape, 1, 1), grad_w.dtype)
        adder_conv_grad_w(grad[images], moved, w[:, :, None, None], part, *_POINT)
        grad_w += part[:, :, 0, 0]


def _sizes(x, kernel, stride, padding, dilation) -> tuple[int, int]:
    return tuple(map(output_size, x.shape[2:], kernel, stride, padding, dilation))


def _cropped(padded: np.ndarray, padding: Sides) -> np.ndarray:
    (top, bottom), (left, right) = padding
    height, width = padded.shape[2:]
    return padded[:, :, top : height - bottom, left : width - right]
