"""Launchers of the implicit products, which the ordinary and the adder convolution share.

A kernel is given as its file below ``cuda/`` without the ending, and its entry. All of them gather
the windows themselves, with offsets of 32 bits: a launch takes as many images as that allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mulfree_cupy.arrays import Array
from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import sizes
from mulfree_cupy.launch.sizes import GRID_LIMIT, WORKSPACE, c_type, chunks, int32
from mulfree_cupy.launch.tiles import FULL, LONGEST, blocks, conv_tile, vector

_MULTIPROCESSORS = 132  # of an H100, for the gradient of w to fill
_LEAST_PART = 128  # pixels that a part of it sums, or all there are
_DEPTH = 8  # of its tile
_REDUCED = 32  # outputs of a block of add_parts
_DEPTHWISE_ROWS = 8  # the most outputs a thread of depthwise.cu
_DEPTHWISE_THREADS = 128


def images_at_once(function: str, g: ConvGeometry, channels: int) -> int:
    """Images whose offsets fit 32 bits, those of the padding around them too."""
    sizes.check_geometry(function, g, LONGEST)
    x_size, out_size = channels * math.prod(sizes.padded_image(g)), math.prod(g.out_shape[1:])
    limited = {
        f"the elements of one padded image of x, of shape {g.x_shape},": x_size,
        f"the elements of one image of the output, of shape {g.out_shape},": out_size,
        f"the elements of w, of shape {g.w_shape},": math.prod(g.w_shape),
    }
    sizes.check_sizes(function, sizes.INT32, limited)
    return sizes.INT32 // max(x_size, out_size)


def conv_launch(
    device, kernel, entry, defines, x, w, bias, out, g: ConvGeometry, choose_tile=None
) -> None:
    """A sum over each window of x, added to the bias or taken off it."""
    filters, length = g.filters // g.groups, w[0].size
    images, pixels = len(out), len(out) * g.out_height * g.out_width
    *tile, depth = (choose_tile or _conv_tile)(x.itemsize, filters, pixels, g.groups)
    f, p, each_f, each_p = tile
    defines = {
        **defines,
        "F": f,
        "P": p,
        "EACH_F": each_f,
        "EACH_P": each_p,
        "DEPTH": depth,
        "W_VECTOR": vector(w, length),
        "Y_VECTOR": vector(out, g.out_height * g.out_width),
    }
    if g.kernel[0] > 16 or g.kernel[1] > 15:  # more than gather.cuh has bits for
        defines["LARGE_WINDOW"] = 1
    device.launch(
        f"{kernel}.cu",
        entry,
        defines,
        (blocks(tile, filters, pixels, g.groups),),
        (f // each_f * (p // each_p),),
        (x, w, bias, out, *_sizes(images, w.shape[1], g), *int32(g.out_height, g.out_width)),
    )


def is_depthwise(g: ConvGeometry) -> bool:
    """Is it one for `depthwise_launch`?

    A channel a group, too few filters a channel to fill a tile of `conv_launch`, and a window that
    can be written out as code.
    """
    small = max(g.kernel) <= 7 and max(*g.stride, *g.dilation) <= 4
    return g.channels == g.groups and g.filters <= 4 * g.groups and small


def depthwise_launch(device, kernel, entry, defines, x, w, bias, out, g: ConvGeometry) -> None:
    """`conv_launch` for a convolution that `is_depthwise`: all that shapes the loops is a macro."""
    strips = -(-g.out_height // _DEPTHWISE_ROWS)
    planes = len(out) * g.filters
    defines = {
        **defines,
        "ROWS": -(-g.out_height // strips),
        "MULTIPLIER": g.filters // g.groups,
    }
    for name in ("kernel", "stride", "dilation"):
        for end, size in zip("HW", getattr(g, name), strict=True):
            defines[f"{name.upper()}_{end}"] = size
    device.launch(
        f"{kernel}.cu",
        entry,
        defines,
        (-(-planes * strips * g.out_width // _DEPTHWISE_THREADS),),
        (_DEPTHWISE_THREADS,),
        (
            *(x, w, bias, out, np.uint32(planes), np.uint32(g.filters)),
            *int32(g.height, g.width, *g.padding, g.out_height, g.out_width),
        ),
    )


def _conv_tile(itemsize: int, filters: int, pixels: int, groups: int) -> tuple[int, ...]:
    """F, P, EACH_F, EACH_P, DEPTH: 16 x 8 outputs a thread where that leaves enough blocks."""
    if itemsize == 4 and 4 < filters <= 16:
        return 16, 256, 16, 8, 4
    if itemsize == 4 and filters > 32:
        tile = (64, 256, 16, 8) if (filters - 1) % 128 < 64 else (128, 128, 16, 8)
        if blocks(tile, filters, pixels, groups) >= FULL:
            return *tile, 8
    return *conv_tile(itemsize, filters, pixels, groups), 8


def half_tile(itemsize: int, filters: int, pixels: int, groups: int) -> tuple[int, ...]:
    """The same for 7_half2, with 8 x 8 at most: a thread has two sums for an output."""
    return *conv_tile(itemsize, filters, pixels, groups), 8 if filters <= 4 else 16


def grad_x_launches(function, device, kernel, entry, arrays, w, grad_x, g: ConvGeometry) -> None:
    """A launch for all phases of the stride; `arrays` begin with grad, their images go with x's."""
    channels = g.channels // g.groups
    tile = _grad_x_tile(grad_x.itemsize, channels)
    c, p, each_c, each_p = tile
    rows, columns = (-(-size // step) for size, step in zip(g.x_shape[2:], g.stride, strict=True))
    phases = min(g.stride[0], g.height) * min(g.stride[1], g.width)
    steps = (s // math.gcd(s, d) for s, d in zip(g.stride, g.dilation, strict=True))
    ends = int32(*steps, g.out_height, g.out_width)
    for images in chunks(g.batch, images_at_once(function, g, g.channels)):
        part = grad_x[images]
        device.launch(
            f"{kernel}.cu",
            entry,
            {"T": c_type(grad_x), "C": c, "P": p, "EACH_C": each_c, "EACH_P": each_p},
            (phases * blocks(tile, channels, len(part) * rows * columns, g.groups),),
            (c // each_c * (p // each_p),),
            (*(a[images] for a in arrays), w, part, *_sizes(len(part), channels, g), *ends),
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


def grad_w_launches(function, device, kernel, entry, grad, x, w, grad_w, g: ConvGeometry) -> None:
    """The pixels in parts, as many as fill a GPU, then one launch that adds the parts up."""
    channels, filters = g.channels // g.groups, g.filters // g.groups
    images = list(chunks(g.batch, images_at_once(function, g, g.channels)))
    tile = _grad_w_tile(w.itemsize, filters, g.taps)
    f, p, each_f, each_p = tile
    threads, tiles = f // each_f * (p // each_p), blocks(tile, filters, g.taps, g.groups)
    resident = _MULTIPROCESSORS * min(16, _resident_threads(w.itemsize, each_f) // threads)
    plane = g.out_height * g.out_width
    for chunk, part, sums in in_parts(
        device, grad_w, images, plane, _LEAST_PART, resident // tiles
    ):
        device.launch(
            f"{kernel}.cu",
            entry,
            {"T": c_type(w), "F": f, "P": p, "EACH_F": each_f, "EACH_P": each_p},
            (tiles, len(sums)),
            (threads,),
            (
                grad[chunk], x[chunk], w, sums,
                *_sizes(chunk.stop - chunk.start, channels, g),
                *int32(g.out_height, g.out_width, part),
            ),
        )  # fmt: skip


def in_parts(
    device, out, images: list[slice], plane: int, least: int, most: int
) -> Iterator[tuple[slice, int, Array]]:
    """Cut a sum over the pixels of all images into parts, and add these up into out at the end.

    Parameters
    ----------
    images : list of slice
        Those that a launch takes at once, the first the most.
    plane : int
        Pixels of an image.
    least, most : int
        The fewest pixels of a part, but for the last, and the most parts of the first images.

    Yields
    ------
    images : slice
    part : int
        Pixels of a part of theirs.
    sums : array, (parts, *out.shape)
        To be written.
    """
    pixels = images[0].stop * plane
    most = min(most, GRID_LIMIT, WORKSPACE // (out.nbytes * len(images)))
    parts = max(1, min(most, pixels // least))
    part = -(-pixels // parts // _DEPTH) * _DEPTH
    counts = [-(-(chunk.stop - chunk.start) * plane // part) for chunk in images]
    sums = room_for_parts(device, out, sum(counts))
    first = 0
    for chunk, count in zip(images, counts, strict=True):
        yield chunk, part, sums[first : first + count]
        first += count
    add_parts(device, sums, out)


def room_for_parts(device, out, count: int) -> Array:
    """Where the parts of a sum go before `add_parts`: out itself, if it is one."""
    return out[None] if count == 1 else device.xp.empty((count, *out.shape), out.dtype)


def add_parts(device, parts, out) -> None:
    """Add up what was written to `room_for_parts`."""
    if len(parts) > 1:
        device.launch(
            "adder/add_parts.cu",
            "add_parts",
            {"T": c_type(out)},
            (-(-out.size // _REDUCED),),
            (_REDUCED**2,),
            (parts, out, *int32(len(parts), out.size)),
        )


def _grad_w_tile(itemsize: int, filters: int, taps: int) -> tuple[int, int, int, int]:
    """F, P, EACH_F, EACH_P: as few places as can be for which there is no filter or no tap."""
    heights = (8, 16, 32) if itemsize == 8 else (8, 16, 32, 64)
    f = next((f for f in heights if filters <= f), heights[-1])
    widths = (32, 64) if itemsize == 8 else (32, 64, 96, 144)  # 144 is 16 channels of 3 x 3
    p = min(widths[: 3 if f == 64 else 4], key=lambda p: (-(-taps // p) * (p + 16), -p))
    return f, p, {8: 2, 64: 8}.get(f, 4), 4


def _resident_threads(itemsize: int, each_f: int) -> int:
    """Of a multiprocessor, as grad_w.cu asks of the compiler."""
    return 384 if each_f == 8 or itemsize == 8 else 576


def _sizes(images: int, channels: int, g: ConvGeometry) -> tuple:
    """What the implicit kernels are told of a convolution, but for the end of the list."""
    return int32(
        images, g.groups, channels, g.height, g.width, g.filters // g.groups,
        *g.kernel, *g.stride, *g.padding, *g.dilation,
    )  # fmt: skip
