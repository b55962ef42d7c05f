"""Launchers of cuda/adder: the ladder of L1-distance kernels, and AdderNet's gradients.

Rungs 1 to 4 multiply matrices, so a convolution goes through im2col, in parts of bounded size. Rung
5, and for uint8 rung 6, are implicit convolutions and the default; a depthwise convolution has a
separate kernel. Rung 7, for float16, must be requested by name.
"""

from __future__ import annotations

import functools

import numpy as np

from mulfree_cupy.arrays import address
from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import implicit, limits
from mulfree_cupy.launch.arguments import BITS, MOVED_AS, c_type, int32
from mulfree_cupy.launch.convolution import by_group, columns, parts
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.select import Call, choose
from mulfree_cupy.launch.tiling import chunks, conv_tile, half_tile, plane_launch, vector

_TILE = {"1_naive": 16, "2_shared_tile": 16, "3_register_tile": 64}
_MATMUL_KERNELS = (*_TILE, "4_vectorised_loads")
_PACKED = "6_uint8", "7_half2"  # several channels per word


@on_device_of_arrays
def adder_matmul(device, a, b, out, kernel: str | None = None) -> None:
    """Write -sum_l abs(a[m, l] - b[l, p]) into out, for a (M, L) and b (L, P)."""
    kernel = choose(Call("adder_matmul", b.dtype), kernel)
    (m, length), p = a.shape, b.shape[1]
    limits.check_sizes("adder_matmul", limits.INT32, {"M": m, "L": length, "P": p})
    if kernel in _MATMUL_KERNELS:
        _batched_matmul(device, kernel, a[None], b[None], out[None])
    else:
        implicit_conv(
            "adder_matmul", device, kernel,
            b.reshape(1, length, 1, p), a.reshape(m, length, 1, 1), None, out.reshape(1, m, 1, p),
            ConvGeometry(1, length, (1, p), m, (1, 1)), kernel in _PACKED,
        )  # fmt: skip


@on_device_of_arrays
def adder_conv(device, x, w, bias, out, geometry: ConvGeometry, kernel: str | None = None) -> None:
    """Write bias[k] - sum of abs(x - w) over each window into out."""
    kernel = choose(Call("adder_conv", x.dtype, geometry), kernel)
    if kernel not in _MATMUL_KERNELS:
        packed = kernel in _PACKED
        implicit_conv("adder_conv", device, kernel, x, w, bias, out, geometry, packed)
        return
    g, xp = geometry, device.xp
    limits.check_geometry("adder_conv", g)
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


def _batched_matmul(device, kernel, a, b, out) -> None:
    """Rungs 1 to 4 on a (A, M, L), b (B, L, P), out (B, M, P), with a[z % A] for b[z]."""
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
    images = limits.GRID_LIMIT // a_batch * a_batch  # limits of grid z, then of grid y
    rows = a.shape[1] if a_batch * len(b) > 1 else limits.GRID_LIMIT * tile
    for z in range(0, len(b), images):
        for m in range(0, a.shape[1], rows):
            a_part, b_part = a[:, m : m + rows], b[z : z + images]
            out_part = out[z : z + images, m : m + rows]
            grid = (-(-p // tile), -(-a_part.shape[1] // tile), len(b_part))
            sizes = int32(a_part.shape[1], length, p, a_batch)
            args = (a_part, b_part, out_part, *sizes)
            device.launch(f"adder/{kernel}.cu", "adder_matmul", defines, grid, block, args)


def implicit_conv(
    function, device, kernel, x, w, bias, out, geometry: ConvGeometry, packed: bool
) -> None:
    """Rungs 5 to 7, depthwise and distance, with as many images per launch as 32-bit offsets allow.

    `packed`: several channels per word.
    """
    g, channels = geometry, geometry.channels // geometry.groups
    words = -(-channels * x.itemsize // 4) if packed else channels
    at_once = implicit.images_at_once(function, g, words * g.groups)
    defines = {} if packed else {"T": c_type(x)}
    launch = implicit.depthwise_launch
    if kernel != "depthwise":
        tile = half_tile if kernel == "7_half2" else conv_tile
        launch = functools.partial(implicit.conv_launch, choose_tile=tile)
    if packed:
        w = _packed(device, w, channels)
        image = 4 * words * g.groups * g.height * g.width
        at_once = min(at_once, max(1, limits.WORKSPACE // image))
    for images in chunks(g.batch, at_once):
        x_part = _packed(device, x[images], channels) if packed else x[images]
        arrays = x_part, w, (bias,), out[images]
        launch(device, f"adder/{kernel}", "adder_conv", defines, *arrays, g)


def _packed(device, x, channels: int):
    """Pack the channels of x (N, groups*channels, H, W) into words: (N*groups, words, H, W)."""
    images, plane = x.shape[0] * x.shape[1] // channels, x.shape[2] * x.shape[3]
    words = device.xp.empty((images, -(-channels * x.itemsize // 4), *x.shape[2:]), np.uint32)
    pixels = 4 if plane % 4 == 0 and address(x) % (4 * x.itemsize) == 0 else 1
    device.launch(
        "adder/pack_channels.cu",
        "pack_channels",
        {"T": MOVED_AS[x.itemsize], "PIXELS": pixels},
        *plane_launch(plane // pixels, words.shape[1], images),
        (x.view(BITS[x.itemsize]), words, *int32(images, channels), np.int64(plane)),
    )
    return words


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")  # NaN and Inf propagate without warnings
def adder_conv_backward(device, grad, x, w, grad_x, grad_w, geometry: ConvGeometry) -> None:
    """Write sum (x - w) grad into grad_w and sum clip(w - x, -1, 1) grad into grad_x."""
    adder_conv_grad_x(device, grad, x, w, grad_x, geometry)
    adder_conv_grad_w(device, grad, x, w, grad_w, geometry)


def adder_conv_grad_x(device, grad, x, w, grad_x, g: ConvGeometry) -> None:
    """Write sum clip(w - x, -1, 1) grad into grad_x."""
    implicit.grad_x_launches(
        *("adder_conv_backward", device, "adder/grad_x", "adder_grad_x"),
        *((grad, x), w, grad_x, g),
    )


def adder_conv_grad_w(device, grad, x, w, grad_w, g: ConvGeometry) -> None:
    """Write sum (x - w) grad into grad_w."""
    implicit.grad_w_launches(
        *("adder_conv_backward", device, "adder/grad_w", "adder_grad_w"),
        *(grad, x, w, grad_w, g),
    )


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")
def adder_conv_sign_backward(device, grad, x, w, grad_x, grad_w, geometry: ConvGeometry) -> None:
    """Write sum sign(x - w) grad into grad_w, and into grad_x as `adder_conv_backward`."""
    adder_conv_grad_x(device, grad, x, w, grad_x, geometry)
    implicit.grad_w_launches(
        *("adder_conv_sign_backward", device, "adder/sign_grad_w", "adder_sign_grad_w"),
        *(grad, x, w, grad_w, geometry),
    )
