"""Launchers of cuda/adder: the ladder of L1-distance kernels, and AdderNet's gradients.

Rungs 1 to 4 multiply matrices, so a convolution goes through im2col, a bounded part at a time.
Rung 5, and for uint8 rung 6, gather the windows themselves: they are what the public functions use.
"""

from __future__ import annotations

import math

import numpy as np

from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch.convolution import (
    GRID_LIMIT,
    INT32,
    WORKSPACE,
    by_group,
    c_type,
    check_geometry,
    check_sizes,
    chunks,
    columns,
    int32,
    on_device_of_arrays,
    padded_image,
    parts,
    plane_launch,
    weight_gradient,
)
from mulfree_cupy.launch.tiles import LONGEST, address, blocks, conv_tile, vector

_TILE = {"1_naive": 16, "2_shared_tile": 16, "3_register_tile": 64}
_MATMUL_KERNELS = (*_TILE, "4_vectorised_loads")
_FLOAT_KERNELS = (*_MATMUL_KERNELS, "5_implicit_conv")
ADDER_KERNELS = (*_FLOAT_KERNELS, "6_uint8")


@on_device_of_arrays
def adder_matmul(device, a, b, out, kernel: str | None = None) -> None:
    """Write -sum_l abs(a[m, l] - b[l, p]) into out, for a (M, L) and b (L, P)."""
    kernel = _checked("adder_matmul", kernel, b, "4_vectorised_loads")
    (m, length), p = a.shape, b.shape[1]
    check_sizes("adder_matmul", INT32, {"M": m, "L": length, "P": p})
    if kernel in _MATMUL_KERNELS:
        _batched_matmul(device, kernel, a[None], b[None], out[None])
    else:
        _implicit_conv(
            "adder_matmul", device, kernel,
            b.reshape(1, length, 1, p), a.reshape(m, length, 1, 1), None, out.reshape(1, m, 1, p),
            ConvGeometry(1, length, 1, p, m, (1, 1)),
        )  # fmt: skip


@on_device_of_arrays
def adder_conv(device, x, w, bias, out, geometry: ConvGeometry, kernel: str | None = None) -> None:
    """Write bias[k] - sum of abs(x - w) over each window into out."""
    kernel = _checked("adder_conv", kernel, x, "5_implicit_conv")
    if kernel not in _MATMUL_KERNELS:
        _implicit_conv("adder_conv", device, kernel, x, w, bias, out, geometry)
        return
    g, xp = geometry, device.xp
    check_geometry("adder_conv", g)
    if g.groups > GRID_LIMIT:
        raise ValueError(
            f"adder_conv: kernel {kernel!r} takes at most {GRID_LIMIT} groups, got {g.groups}"
        )
    filters = w.reshape(g.groups, g.filters // g.groups, g.taps)
    for images, pixels in parts(g, x.itemsize):
        cols = xp.ascontiguousarray(columns(device, x[images], g, pixels))
        part = by_group(out, g)[images, ..., pixels]
        answer = part if part.flags.c_contiguous else xp.empty(part.shape, part.dtype)
        b, y = (matrices.reshape(-1, *matrices.shape[2:]) for matrices in (cols, answer))
        _batched_matmul(device, kernel, filters, b, y)
        if answer is not part:
            part[...] = answer
    if bias is not None:
        out += bias.reshape(-1, 1, 1)


def _checked(function: str, kernel: str | None, array, default: str) -> str:
    able = ("6_uint8",) if array.dtype == np.uint8 else _FLOAT_KERNELS
    if kernel is None:
        return default if default in able else able[0]
    if kernel not in ADDER_KERNELS:
        raise ValueError(
            f"{function}: kernel must be one of {', '.join(ADDER_KERNELS)}, got {kernel!r}"
        )
    if kernel not in able:
        raise ValueError(
            f"{function}: kernel {kernel!r} does not take {array.dtype}; {', '.join(able)} can"
        )
    return kernel


def _batched_matmul(device, kernel, a, b, out) -> None:
    """Rungs 1 to 4 on a (A, M, L), b (B, L, P), out (B, M, P); image z of b meets a[z % A]."""
    defines, tile, block = {"T": c_type(a)}, _TILE.get(kernel), (16, 16)
    if kernel == "4_vectorised_loads":
        tile, each = (128, 8) if a.itemsize == 4 and min(a.shape[1], b.shape[2]) > 64 else (64, 4)
        block = ((tile // each) ** 2,)
        defines |= {
            "TILE": tile,
            "EACH": each,
            "L_VECTOR": vector(a, a.shape[2]),
            "P_VECTOR": min(vector(b, b.shape[2]), vector(out, b.shape[2])),
        }
    a_batch, length, p = len(a), a.shape[2], b.shape[2]
    images = GRID_LIMIT // a_batch * a_batch  # a grid's third dimension; then its second
    rows = a.shape[1] if a_batch * len(b) > 1 else GRID_LIMIT * tile
    for z in range(0, len(b), images):
        for m in range(0, a.shape[1], rows):
            a_part, b_part = a[:, m : m + rows], b[z : z + images]
            out_part = out[z : z + images, m : m + rows]
            grid = (-(-p // tile), -(-a_part.shape[1] // tile), len(b_part))
            sizes = int32(a_part.shape[1], length, p, a_batch)
            args = (a_part, b_part, out_part, *sizes)
            device.launch(f"adder/{kernel}.cu", "adder_matmul", defines, grid, block, args)


def _implicit_conv(function, device, kernel, x, w, bias, out, geometry: ConvGeometry) -> None:
    """Rungs 5 and 6. Their offsets have 32 bits: a launch takes as many images as that allows."""
    g, channels = geometry, geometry.channels // geometry.groups
    words = -(-channels // 4) if kernel == "6_uint8" else channels
    at_once = _images_at_once(function, g, words * g.groups)
    if bias is None:
        bias = device.xp.zeros(g.filters, out.dtype)
    if kernel == "6_uint8":
        w = _packed(device, w, channels)
        at_once = min(at_once, max(1, WORKSPACE // (4 * words * g.groups * g.height * g.width)))
    for images in chunks(g.batch, at_once):
        x_part = _packed(device, x[images], channels) if kernel == "6_uint8" else x[images]
        _implicit_launch(device, kernel, x_part, w, bias, out[images], g)


def _images_at_once(function: str, g: ConvGeometry, channels: int) -> int:
    """Images whose offsets fit 32 bits, those of the padding around them too."""
    check_geometry(function, g, LONGEST)
    x_size, out_size = channels * math.prod(padded_image(g)), math.prod(g.out_shape[1:])
    sizes = {
        f"the elements of one padded image of x, of shape {g.x_shape},": x_size,
        f"the elements of one image of the output, of shape {g.out_shape},": out_size,
        f"the elements of w, of shape {g.w_shape},": math.prod(g.w_shape),
    }
    check_sizes(function, INT32, sizes)
    return INT32 // max(x_size, out_size)


def _packed(device, x, channels: int):
    """Four channels of x (N, groups*channels, H, W) uint8 in a word: (N*groups, ceil/4, H, W)."""
    images, plane = x.shape[0] * x.shape[1] // channels, x.shape[2] * x.shape[3]
    words = device.xp.empty((images, -(-channels // 4), *x.shape[2:]), np.uint32)
    pixels = 4 if plane % 4 == 0 and address(x) % 4 == 0 else 1
    device.launch(
        "adder/pack_channels.cu",
        "pack_channels",
        {"PIXELS": pixels},
        *plane_launch(plane // pixels, words.shape[1], images),
        (x, words, *int32(images, channels), np.int64(plane)),
    )
    return words


def _implicit_launch(device, kernel, x, w, bias, out, g: ConvGeometry) -> None:
    filters, length = g.filters // g.groups, w[0].size
    images, pixels = len(out), len(out) * g.out_height * g.out_width
    tile = conv_tile(x.itemsize, filters, pixels, g.groups)
    f, p, each_f, each_p = tile
    defines = {"T": c_type(x)} if kernel == "5_implicit_conv" else {}
    defines |= {
        "F": f,
        "P": p,
        "EACH_F": each_f,
        "EACH_P": each_p,
        "W_VECTOR": vector(w, length),
        "Y_VECTOR": vector(out, g.out_height * g.out_width),
    }
    sizes = int32(
        images, g.groups, w.shape[1], g.height, g.width, filters,
        *g.kernel, *g.stride, *g.padding, *g.dilation, g.out_height, g.out_width,
    )  # fmt: skip
    device.launch(
        f"adder/{kernel}.cu",
        "adder_conv",
        defines,
        (blocks(tile, filters, pixels, g.groups),),
        (f // each_f * (p // each_p),),
        (x, w, bias, out, *sizes),
    )


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")  # NaN and Inf go through in silence
def adder_conv_backward(device, grad, x, w, grad_x, grad_w, geometry: ConvGeometry) -> None:
    """Write sum (x - w) grad into grad_w and sum clip(w - x, -1, 1) grad into grad_x."""
    adder_conv_grad_x(device, grad, x, w, grad_x, geometry)
    adder_conv_grad_w(device, grad, x, w, grad_w, geometry)


def adder_conv_grad_w(device, grad, x, w, grad_w, g: ConvGeometry) -> None:
    """sum (x - w) g = sum (x - c) g - (w - c) sum g, the first a convolution's gradient.

    The two parts cancel where x and w share an offset; c, the mean of each channel, takes it out.
    """
    xp = device.xp
    mean = x.mean(axis=(0, 2, 3))
    centre = xp.where(xp.isfinite(mean), mean, xp.zeros_like(mean))
    taps = xp.repeat(centre, g.kernel[0] * g.kernel[1])  # one a row of im2col's matrix
    answer = weight_gradient(device, grad, x, g, centre=taps)
    answer -= (w.reshape(answer.shape) - taps.reshape(g.groups, 1, g.taps)) * grad.sum(
        axis=(0, 2, 3)
    ).reshape(g.groups, -1, 1)
    grad_w[...] = answer.reshape(grad_w.shape)


def adder_conv_grad_x(device, grad, x, w, grad_x, g: ConvGeometry) -> None:
    """A launch for every phase of the stride: pixels of one phase meet the same taps."""
    xp = device.xp
    largest_w = xp.max(xp.abs(w), keepdims=True)
    largest_g = xp.maximum(xp.max(grad, keepdims=True), -xp.min(grad, keepdims=True))
    for images in chunks(g.batch, _images_at_once("adder_conv_backward", g, g.channels)):
        arrays = grad[images], x[images], w, largest_w, largest_g, grad_x[images]
        for first_h in range(min(g.stride[0], g.height)):
            for first_w in range(min(g.stride[1], g.width)):
                rows, columns = _phase(g, 0, first_h), _phase(g, 1, first_w)
                if rows and columns:
                    _grad_x_launch(device, arrays, g, (first_h, first_w), rows, columns)
                else:
                    grad_x[images, :, first_h :: g.stride[0], first_w :: g.stride[1]] = 0


def _phase(g: ConvGeometry, axis: int, first: int) -> tuple[int, ...] | None:
    """The taps that reach pixels first, first + stride, ... of one axis, if there are any.

    Tap i reaches pixel h from output o where o*stride = h + padding - i*dilation. Returns the first
    such i, its step, their number, and o of the first pixel for the first tap and its step down.
    """
    stride, padding, dilation = g.stride[axis], g.padding[axis], g.dilation[axis]
    taps = [i for i in range(g.kernel[axis]) if (first + padding - i * dilation) % stride == 0]
    if not taps:
        return None
    step = taps[1] - taps[0] if len(taps) > 1 else stride
    o_first = (first + padding - taps[0] * dilation) // stride
    return taps[0], step, len(taps), o_first, step * dilation // stride


def _grad_x_launch(device, arrays, g: ConvGeometry, first, rows, columns) -> None:
    x = arrays[1]
    channels, filters = g.channels // g.groups, g.filters // g.groups
    phase_height = -(-(g.height - first[0]) // g.stride[0])
    phase_width = -(-(g.width - first[1]) // g.stride[1])
    tile = _grad_x_tile(x.itemsize, channels)
    c, p, each_c, each_p = tile
    sizes = int32(
        len(x), g.groups, channels, g.height, g.width, filters,
        *g.kernel, *g.stride, g.out_height, g.out_width, *first, *rows, *columns,
    )  # fmt: skip
    device.launch(
        "adder/grad_x.cu",
        "adder_grad_x",
        {"T": c_type(x), "C": c, "P": p, "EACH_C": each_c, "EACH_P": each_p},
        (blocks(tile, channels, len(x) * phase_height * phase_width, g.groups),),
        (c // each_c * (p // each_p),),
        (*arrays, *sizes),
    )


def _grad_x_tile(itemsize: int, channels: int) -> tuple[int, int, int, int]:
    """C, P, EACH_C, EACH_P, as `conv_tile`; EACH_P is one vector."""
    if channels == 1:
        return (1, 512, 1, 4) if itemsize == 4 else (1, 256, 1, 2)
    if channels <= 4:
        return (4, 512, 4, 4) if itemsize == 4 else (4, 256, 4, 2)
    if itemsize == 8:
        return 32, 32, 4, 2
    if channels <= 16:
        return 16, 128, 4, 4
    return (32, 128, 8, 4) if channels <= 32 else (64, 64, 8, 4)
