"""The shift kernels in NumPy alone: part of `numpy_kernels`, which says what for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mulfree_cupy.launch import numpy_kernels


def shift(x, shifts, out, stride):
    out[...] = 0
    for shown, seen in _shifted(shifts, x.shape[2:], stride):
        out[shown] = x[seen]


def shift_backward(grad, shifts, grad_x, stride):
    grad_x[...] = 0
    for shown, seen in _shifted(shifts, grad_x.shape[2:], stride):
        grad_x[seen] = grad[shown]


def _shifted(shifts: np.ndarray, size: tuple, stride: tuple) -> Iterator[tuple]:
    """(channel, where in the answer it shows its image, and what it shows there)."""
    for c, offsets in enumerate(shifts.tolist()):
        (rows, seen_rows), (columns, seen_columns) = map(_shown, offsets, size, stride)
        yield (slice(None), c, rows, columns), (slice(None), c, seen_rows, seen_columns)


def _shown(offset: int, size: int, step: int) -> tuple[slice, slice]:
    """The pixels p of an axis with 0 <= p * step + offset < size, and those places."""
    first = max(0, -(offset // step))
    end = min(-(-size // step), -((offset - size) // step))
    if first >= end:
        return slice(0), slice(0)
    return slice(first, end), slice(first * step + offset, (end - 1) * step + offset + 1, step)


def shift_conv(x, w, shifts, bias, out, stride):
    _shifted_forward(numpy_kernels.conv, x, w, shifts, bias, out, stride)


def shift_adder_conv(x, w, shifts, bias, out, stride):
    _shifted_forward(numpy_kernels.adder_conv, x, w, shifts, bias, out, stride)


_POINT = (1, 1), (0, 0), (1, 1), 1  # stride, padding, dilation, groups of a 1x1 convolution


def _shifted_forward(kernel, x, w, shifts, bias, out, stride):
    for images, moved in _moved_images(x, shifts, out.shape, stride):
        kernel(moved, w[:, :, None, None], bias, out[images], *_POINT)


def _moved_images(x, shifts, out_shape, stride) -> Iterator[tuple[slice, np.ndarray]]:
    """Some images at a time, shifted."""
    for images in numpy_kernels._chunks(x.shape[0], 4 * x[:1].nbytes):
        part = x[images]
        moved = np.empty((*part.shape[:2], *out_shape[2:]), x.dtype)
        shift(part, shifts, moved, stride)
        yield images, moved


def shift_conv_grad_x(grad, w, shifts, grad_x, stride):
    for images in numpy_kernels._chunks(grad.shape[0], 4 * grad_x[:1].nbytes):
        part = grad[images]
        moved = np.empty((len(part), w.shape[1], *part.shape[2:]), grad.dtype)
        numpy_kernels.conv_grad_x(part, w[:, :, None, None], moved, *_POINT)
        shift_backward(moved, shifts, grad_x[images], stride)


def shift_adder_conv_grad_x(grad, x, w, shifts, grad_x, stride):
    for images, moved in _moved_images(x, shifts, grad.shape, stride):
        grad_moved = np.empty_like(moved)
        numpy_kernels.adder_conv_grad_x(grad[images], moved, w[:, :, None, None], grad_moved, *_POINT)
        shift_backward(grad_moved, shifts, grad_x[images], stride)


def shift_conv_grad_w(grad, x, shifts, grad_w, stride):
    grad_w[...] = 0
    for images, moved in _moved_images(x, shifts, grad.shape, stride):
        part = np.empty((*grad_w.shape, 1, 1), grad_w.dtype)
        numpy_kernels.conv_grad_w(grad[images], moved, part, *_POINT)
        grad_w += part[:, :, 0, 0]


def shift_adder_conv_grad_w(grad, x, w, shifts, grad_w, stride):
    grad_w[...] = 0
    for images, moved in _moved_images(x, shifts, grad.shape, stride):
        part = np.empty((*grad_w.shape, 1, 1), grad_w.dtype)
        numpy_kernels.adder_conv_grad_w(grad[images], moved, w[:, :, None, None], part, *_POINT)
        grad_w += part[:, :, 0, 0]
