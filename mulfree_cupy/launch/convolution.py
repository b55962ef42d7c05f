"""Launchers of cuda/convolution: im2col, col2im, and the ladder of the ordinary convolution.

The same code serves CuPy and the emulator: `device` has the array module and the launch function.
Arrays are C-contiguous, checked and not empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mulfree_cupy.arrays import address
from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import implicit, limits
from mulfree_cupy.launch.arguments import BITS, MOVED_AS, c_type, convolution_struct, int64
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.select import Call, choose
from mulfree_cupy.launch.tiling import chunks, plane_launch


def parts(g: ConvGeometry, itemsize: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of images, or of one image's pixels, whose im2col matrix and outputs fit the
    workspace.

    Pixels are a multiple of 32, or the whole image.
    """
    _, rows, pixels = g.cols_shape
    at_once = max(1, limits.WORKSPACE // ((rows + g.filters) * itemsize * 32)) * 32
    return itertools.product(chunks(g.batch, max(1, at_once // pixels)), chunks(pixels, at_once))


@on_device_of_arrays
def im2col(device, x, cols, geometry: ConvGeometry) -> None:
    """Fill cols (N, C*kh*kw, OH*OW) with the windows of x (N, C, H, W)."""
    limits.check_geometry("im2col", geometry)
    _, rows, pixels = geometry.cols_shape
    _im2col(device, x, cols, geometry, slice(0, pixels), pixels, rows * pixels)


def _im2col(device, x, cols, g: ConvGeometry, pixels: slice, row_stride, image_stride) -> None:
    images, bits, count = len(x), BITS[x.itemsize], pixels.stop - pixels.start
    whole = count % 4 == row_stride % 4 == image_stride % 4 == 0
    in_fours = x.itemsize <= 4 and whole and address(cols) % (4 * x.itemsize) == 0
    device.launch(
        "convolution/im2col.cu",
        "im2col",
        {"T": MOVED_AS[x.itemsize], "STORE": 4 if in_fours else 1},
        *plane_launch(-(-count // 4), g.channels, images),
        (
            x.view(bits),
            cols.view(bits),
            convolution_struct(replace(g, groups=1), images),
            *int64(pixels.start, count, row_stride, image_stride),
        ),
    )


@on_device_of_arrays
def col2im(device, cols, x, geometry: ConvGeometry) -> None:
    """Overwrite x (N, C, H, W) with the sums of its entries in cols (N, C*kh*kw, OH*OW)."""
    g = geometry
    limits.check_geometry("col2im", g)
    device.launch(
        "convolution/col2im.cu",
        "col2im",
        {"T": c_type(x)},
        *plane_launch(g.height * g.width, g.channels, len(x)),
        (cols, x, convolution_struct(replace(g, groups=1), len(x))),
    )


def columns(device, x, g: ConvGeometry, pixels: slice):
    """Matrices (n, groups, C/groups*kh*kw, pixels) whose columns are windows of some images."""
    rows, count = g.cols_shape[1], pixels.stop - pixels.start
    if _is_product(g):
        return x.reshape(len(x), g.groups, g.taps, -1)[..., pixels]
    cols = device.xp.empty((len(x), g.groups, g.taps, count), x.dtype)
    _im2col(device, x, cols, g, pixels, count, rows * count)
    return cols


def by_group(outputs, g: ConvGeometry):
    """An array (N, K, OH, OW) as (N, groups, K/groups, OH*OW)."""
    return outputs.reshape(g.batch, g.groups, g.filters // g.groups, g.cols_shape[2])


def _is_product(geometry: ConvGeometry) -> bool:
    """A 1x1 kernel with stride 1 and no padding: x itself is the matrix."""
    g = geometry
    return g.kernel == g.stride == (1, 1) and g.padded_size == g.size


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")  # NaN and Inf propagate without warnings
def conv(device, x, w, bias, out, geometry: ConvGeometry, kernel: str | None = None) -> None:
    """Write the cross-correlation of x with w, plus the bias, into out."""
    kernel = choose(Call("conv", x.dtype, geometry), kernel)
    if kernel == "1_im2col":
        _conv_by_im2col(device, x, w, bias, out, geometry)
        return
    launch = implicit.depthwise_launch if kernel == "depthwise" else implicit.conv_launch
    at_once = implicit.images_at_once("conv", geometry, geometry.channels)
    for images in chunks(geometry.batch, at_once):
        launch(
            *(device, f"convolution/{kernel}", "conv", {"T": c_type(x)}),
            *(x[images], w, (bias,), out[images], geometry),
        )


def _conv_by_im2col(device, x, w, bias, out, g: ConvGeometry) -> None:
    """Im2col and matrix products, part by part."""
    limits.check_geometry("conv", g)
    filters, answer = w.reshape(g.groups, g.filters // g.groups, g.taps), by_group(out, g)
    for images, pixels in parts(g, x.itemsize):
        cols = columns(device, x[images], g, pixels)
        device.xp.matmul(filters, cols, out=answer[images, ..., pixels])
    if bias is not None:
        out += bias.reshape(-1, 1, 1)


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")
def conv_backward(device, grad, x, w, grad_x, grad_w, geometry: ConvGeometry) -> None:
    """Write the gradients of sum(conv(x, w) * grad) by x and w into grad_x and grad_w."""
    implicit.grad_x_launches(
        *("conv_backward", device, "convolution/grad_x", "conv_grad_x"),
        *((grad,), w, grad_x, geometry),
    )
    implicit.grad_w_launches(
        *("conv_backward", device, "convolution/grad_w", "conv_grad_w"),
        *(grad, x, w, grad_w, geometry),
    )
