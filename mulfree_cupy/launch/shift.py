"""Launchers of cuda/shift: the ladder of shifts, and the shift inside the 1x1 convolution after it.

``shifts`` is a NumPy array (C, 2), int32, of (dh, dw), clamped to the image size: beyond that all
is zero. Its device copy is cached. Arrays are C-contiguous, checked and not empty, ``stride`` is a
pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mulfree_cupy.arrays import address
from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import adder, convolution, limits
from mulfree_cupy.launch.arguments import BITS, MOVED_AS, PAIR, convolution_struct, int32, struct
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.implicit import add_parts, in_parts, room_for_parts
from mulfree_cupy.launch.select import SHIFT_SIDE, Call, choose, modulo_mapping
from mulfree_cupy.launch.tiling import (
    Tile,
    chunks,
    shift_grad_w_parts,
    shift_grad_w_tile,
    small_conv_tile,
    vector,
)

_PLANES = np.dtype(  # as in cuda/shift/table.cuh
    [("total", np.int32), ("first", np.int32), ("channels", np.int32)]
    + [(name, *PAIR) for name in ("size", "out", "stride")]
    + [(f"by_{name}", np.uint64) for name in ("channels", "plane", "width")]
    + [("by_stride", np.uint64, 2)],
    align=True,
)
_THREADS = 256  # per block of rung 3, 16 bytes each
_LEAST_PART = 512  # pixels per part of the weight gradient
_ELEMENTS = {"float16": ("__half", "float"), "float32": ("float",) * 2, "float64": ("double",) * 2}


@on_device_of_arrays
def shift(device, x, shifts, out, stride, kernel: str | None = None, most_blocks=None) -> None:
    """Write x[n, c, h*stride + dh[c], w*stride + dw[c]] into out, 0 outside of x.

    `most_blocks` bounds the grid of rungs 1 and 2; 128 in the published kernels.
    """
    kernel = _chosen("shift", kernel, x, shifts, x, stride)
    if kernel == "3_table":
        _by_table("shift", device, x, shifts, out, stride)
    else:
        _by_tiles("shift", device, kernel, x, shifts, out, stride, 1, most_blocks)


@on_device_of_arrays
def shift_backward(
    device, grad, shifts, grad_x, stride, kernel: str | None = None, most_blocks=None
) -> None:
    """Write the adjoint of `shift`, applied to grad, into grad_x."""
    kernel = _chosen("shift_backward", kernel, grad, shifts, grad_x, stride)
    arguments = "shift_backward", device, grad, shifts, grad_x, stride
    if kernel != "3_table":
        _by_tiles(*arguments[:2], kernel, *arguments[2:], -1, most_blocks)
    elif stride == (1, 1):
        _by_table("shift_backward", device, grad, -shifts, grad_x, stride)
    else:
        _by_table(*arguments, backward=True)


def _chosen(function: str, kernel: str | None, source, shifts, image, stride) -> str:
    call = Call(function, source.dtype, shifts=shifts, size=image.shape[2:], stride=stride)
    return choose(call, kernel)


def _planes(function: str, x, y) -> Iterator[tuple]:
    """Planes whose indices fit 32 bits: the channel of the first, and x and y viewed as bits."""
    if x.itemsize not in BITS:
        sizes = ", ".join(map(str, BITS))
        raise TypeError(f"{function}: x must have elements of {sizes} bytes, got {x.dtype}")
    batch, channels = x.shape[:2]
    largest = max(x[0, 0].size, y[0, 0].size)
    limits.check_sizes(function, limits.INT32, {"C + H*W": channels + largest})
    x, y = (a.view(BITS[a.itemsize]).reshape(batch * channels, -1) for a in (x, y))
    at_once = (limits.INT32 - channels) // largest
    at_once = at_once // 16 * 16 or at_once  # keeps every part aligned like the first
    for planes in chunks(batch * channels, at_once):
        yield planes.start % channels, x[planes], y[planes]


def _by_table(function: str, device, x, shifts, y, stride, backward: bool = False) -> None:
    channels, (out_h, out_w) = x.shape[1], y.shape[2:]
    each = 16 // x.itemsize
    divisors = *(_divisor(d) for d in (channels, out_h * out_w, out_w)), [*map(_divisor, stride)]
    table = device.constant(shifts)
    for first, x_planes, y_planes in _planes(function, x, y):
        total = len(y_planes) * out_h * out_w
        x_aligned, y_aligned = (address(planes) % 16 == 0 for planes in (x_planes, y_planes))
        sizes = x.shape[2:], y.shape[2:], stride
        planes = struct(_PLANES, total, first, channels, *sizes, *divisors)
        defines = {"T": MOVED_AS[x.itemsize]}
        if stride == (1, 1) and x_aligned and y_aligned and total % each == 0:
            name = "3_table"
        else:
            name = "strided"
            defines |= {"STORE": each if y_aligned else 1} | ({"BACKWARD": 1} if backward else {})
        device.launch(
            f"shift/{name}.cu",
            f"shift_{name.removeprefix('3_')}",
            defines,
            (-(-total // (_THREADS * each)),),
            (_THREADS,),
            (x_planes, y_planes, table, planes),
        )


def _divisor(d: int) -> np.uint64:
    """Multiplier and shift with which table.cuh divides n < 2**31: exact, by Granlund's theorem.

    With 2**(l-1) < d <= 2**l and m = ceil(2**(31+l) / d), m fits 32 bits and m*d exceeds 2**(31+l)
    by less than d, so that n*m / 2**(31+l) exceeds n/d by less than 1/d.
    """
    shift = 31 + (d - 1).bit_length()
    return np.uint64(-(-(1 << shift) // d) | shift << 32)


def _by_tiles(function, device, kernel, x, shifts, y, stride, direction, most_blocks) -> None:
    channels, height, width = x.shape[1:]
    kernel_size, dilation = modulo_mapping(shifts, (height, width))
    inner = SHIFT_SIDE - 2 * dilation * (kernel_size // 2)
    more = int32(kernel_size, dilation) if kernel == "2_tiled_generic" else ()
    for first, x_planes, y_planes in _planes(function, x, y):
        tiles = len(x_planes) * -(-height // inner) * -(-width // inner)
        sizes = int32(len(x_planes), first, channels, height, width, direction)
        device.launch(
            f"shift/{kernel}.cu",
            f"shift_{kernel[2:]}",
            {"T": MOVED_AS[x.itemsize]},
            (min(tiles, most_blocks or tiles),),
            (SHIFT_SIDE**2,),
            (x_planes, y_planes, *sizes, *more),
        )


@on_device_of_arrays
def shift_conv(device, x, w, shifts, bias, out, stride, kernel: str | None = None) -> None:
    """Write bias[k] + sum_c w[k, c] * (x shifted)[c] into out, for w (K, C).

    The rungs of `shift` store the shifted tensor, in parts of bounded size, before the product.
    """
    kernel = _chosen("shift_conv", kernel, x, shifts, x, stride)
    if kernel == "4_fused_conv":
        _fused("shift_conv", device, kernel, x, w, shifts, bias, out, stride)
    else:
        for images in _moved_at_once(x, out):
            moved, pointwise, g = _moved(device, x[images], w, shifts, out, stride, kernel)
            convolution.conv(device, moved, pointwise, bias, out[images], g)


@on_device_of_arrays
def shift_adder_conv(device, x, w, shifts, bias, out, stride, kernel: str | None = None) -> None:
    """Write bias[k] - sum_c abs(w[k, c] - (x shifted)[c]) into out; kernels as `shift_conv`."""
    kernel = _chosen("shift_adder_conv", kernel, x, shifts, x, stride)
    if kernel == "4_fused_conv":
        _fused("shift_adder_conv", device, "fused_adder_conv", x, w, shifts, bias, out, stride)
    else:
        for images in _moved_at_once(x, out):
            moved, pointwise, g = _moved(device, x[images], w, shifts, out, stride, kernel)
            adder.adder_conv(device, moved, pointwise, bias, out[images], g)


def _moved_at_once(x, out) -> list[slice]:
    """Slices of images whose shifted copies fit the workspace."""
    moved = x.itemsize * math.prod((x.shape[1], *out.shape[2:]))
    return list(chunks(len(x), max(1, limits.WORKSPACE // (2 * moved))))


def _moved(device, x, w, shifts, out, stride, kernel=None) -> tuple:
    """Shift the images; returns them with w and the geometry of the 1x1 convolution."""
    moved = device.xp.empty((*x.shape[:2], *out.shape[2:]), x.dtype)
    shift(device, x, shifts, moved, stride, kernel)
    g = ConvGeometry(*moved.shape[:2], moved.shape[2:], len(w), (1, 1))
    return moved, w[..., None, None], g


def _fused(function, device, kernel, x, w, shifts, bias, out, stride) -> None:
    filters, plane = len(w), out.shape[2] * out.shape[3]
    table = device.constant(shifts)
    for images in chunks(len(x), _images_at_once(function, x, out, w)):
        x_part, y = x[images], out[images]
        tile = small_conv_tile(max(4, x.itemsize), filters, len(y) * plane, 1)
        defines = _defines(x, tile, w)
        defines["Y_VECTOR"] = min(vector(y, plane), max(1, 16 // max(4, x.itemsize)))
        device.launch(
            f"shift/{kernel}.cu",
            function,
            defines,
            (tile.blocks(filters, len(y) * plane),),
            (tile.threads,),
            (x_part, w, table, bias, y, _pointwise(x_part, y, stride)),
        )


def _images_at_once(function: str, x, y, w) -> int:
    """Number of images whose offsets, shifts included, fit 32 bits."""
    (channels, height, width), filters = x.shape[1:], len(w)
    x_size, y_size = (channels + 2) * height * width, filters * y.shape[2] * y.shape[3]
    sizes = {
        f"(C + 2)*H*W of x, of shape {x.shape},": x_size,
        f"K*OH*OW of the output, of shape {y.shape},": y_size,
        f"the elements of w, of shape {w.shape},": w.size,
    }
    limits.check_sizes(function, limits.INT32, sizes)
    limits.check_sizes(function, limits.LONGEST, {"H": height, "W": width})
    return limits.INT32 // max(x_size, y_size)


def _defines(x, tile: Tile, w=None) -> dict[str, object]:
    element, sum_type = _ELEMENTS[x.dtype.name]
    defines = {"T": element, "SUM": sum_type, **tile.defines()}
    return defines if w is None else defines | {"W_VECTOR": vector(w, w.shape[1])}


def _pointwise(x, y, stride) -> np.void:
    """The kernel argument for the 1x1 convolution after the shift."""
    g = ConvGeometry(*x.shape[:2], x.shape[2:], y.shape[1], (1, 1), stride)
    return convolution_struct(g, len(x))


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")  # NaN and Inf propagate without warnings
def shift_conv_backward(device, grad, x, w, shifts, grad_x, grad_w, stride) -> None:
    """Write the gradients of sum(shift_conv(x, w) * grad) by x and w into grad_x and grad_w."""
    transposed = device.xp.ascontiguousarray(w.T)
    if stride != (1, 1):
        grad_x[...] = 0
    images = list(chunks(len(x), _images_at_once("shift_conv_backward", x, grad, w)))
    for chunk in images:
        _fused_grad_x(device, grad[chunk], transposed, shifts, grad_x[chunk], stride)
    if grad_w.itemsize >= 4:
        _fused_grad_w(device, grad, x, shifts, grad_w, stride, images)
    else:
        total = device.xp.empty(w.shape, np.float32)
        _fused_grad_w(device, grad, x, shifts, total, stride, images)
        grad_w[...] = total


def _fused_grad_x(device, grad, transposed, shifts, grad_x, stride) -> None:
    channels, pixels = len(transposed), grad[:, 0].size
    tile = small_conv_tile(max(4, grad.itemsize), channels, pixels, 1)
    device.launch(
        "shift/fused_grad_x.cu",
        "shift_conv_grad_x",
        _defines(grad, tile, transposed),
        (tile.blocks(channels, pixels),),
        (tile.threads,),
        (grad, transposed, device.constant(shifts), grad_x, _pointwise(grad_x, grad, stride)),
    )


def _fused_grad_w(device, grad, x, shifts, grad_w, stride, images: list[slice]) -> None:
    """Write the gradient (K, C) in the accumulator's type."""
    filters, channels = grad_w.shape
    tile = shift_grad_w_tile(filters, channels)
    tiles, plane = tile.blocks(filters, channels), grad[0, 0].size
    table, most = device.constant(shifts), shift_grad_w_parts(tiles)
    for chunk, part, sums in in_parts(device, grad_w, images, plane, _LEAST_PART, most):
        shape = _pointwise(x[chunk], grad[chunk], stride)
        device.launch(
            "shift/fused_grad_w.cu",
            "shift_conv_grad_w",
            _defines(x, tile),
            (tiles, len(sums)),
            (tile.threads,),
            (grad[chunk], x[chunk], table, sums, shape, np.int32(part)),
        )


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")
def shift_adder_conv_backward(device, grad, x, w, shifts, grad_x, grad_w, stride) -> None:
    """Write AdderNet's gradients of the 1x1 adder convolution after the shift.

    Computed by adder's kernels, between a shift and its adjoint, for some images at a time.
    """
    images = _moved_at_once(x, grad)
    parts = room_for_parts(device, grad_w, len(images))
    for chunk, part in zip(images, parts, strict=True):
        moved, pointwise, g = _moved(device, x[chunk], w, shifts, grad, stride)
        grad_moved = device.xp.empty_like(moved)
        adder.adder_conv_grad_x(device, grad[chunk], moved, pointwise, grad_moved, g)
        shift_backward(device, grad_moved, shifts, grad_x[chunk], stride)
        adder.adder_conv_grad_w(device, grad[chunk], moved, pointwise, part[..., None, None], g)
    add_parts(device, parts, grad_w)
