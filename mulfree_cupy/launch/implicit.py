"""Launchers of the implicit convolutions, shared by the ordinary and the adder convolution.

A kernel is given by its file below ``cuda/`` without suffix, and its entry. All compute window
offsets themselves, in 32 bits: a launch takes as many images as that allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mulfree_cupy.arrays import Array
from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import limits
from mulfree_cupy.launch.arguments import c_type, convolution_struct, int32
from mulfree_cupy.launch.tiling import (
    DEPTH,
    chunks,
    conv_tile,
    grad_w_parts,
    grad_w_tile,
    grad_x_tile,
    vector,
)

_LEAST_PART = 128  # pixels per part of the gradient of w
_REDUCED = 32  # outputs per block of add_parts
_DEPTHWISE_ROWS = 8  # most outputs per thread of depthwise.cu
_DEPTHWISE_THREADS = 128


def images_at_once(function: str, g: ConvGeometry, channels: int) -> int:
    """Number of images whose offsets, padding included, fit 32 bits."""
    limits.check_geometry(function, g, limits.LONGEST)
    x_size, out_size = channels * math.prod(g.padded_size), math.prod(g.out_shape[1:])
    sizes = {
        f"the elements of one padded image of x, of shape {g.x_shape},": x_size,
        f"the elements of one image of the output, of shape {g.out_shape},": out_size,
        f"the elements of w, of shape {g.w_shape},": math.prod(g.w_shape),
    }
    limits.check_sizes(function, limits.INT32, sizes)
    return limits.INT32 // max(x_size, out_size)


def conv_launch(
    device, kernel, entry, defines, x, w, parameters, out, g: ConvGeometry, choose_tile=conv_tile
) -> None:
    """Launch a sum over each window of x, with `parameters` (mostly the bias) for the epilogue."""
    filters, length = g.filters // g.groups, w[0].size
    images, pixels = len(out), len(out) * math.prod(g.out_size)
    tile = choose_tile(x.itemsize, filters, pixels, g.groups)
    defines = {
        **defines,
        **tile.defines(),
        "W_VECTOR": vector(w, length),
        "Y_VECTOR": min(vector(out, math.prod(g.out_size)), 16 // x.itemsize),
    }
    defines |= large_window(g)
    device.launch(
        f"{kernel}.cu",
        entry,
        defines,
        (tile.blocks(filters, pixels, g.groups),),
        (tile.threads,),
        (x, w, *parameters, out, convolution_struct(g, images, w.shape[1])),
    )


def large_window(g: ConvGeometry) -> dict[str, int]:
    """The macro for windows with more rows or columns than gather.cuh has bits for."""
    large = any(size > most for size, most in zip(g.kernel, limits.WINDOW, strict=True))
    return {"LARGE_WINDOW": 1} if large else {}


def depthwise_launch(
    device, kernel, entry, defines, x, w, parameters, out, g: ConvGeometry
) -> None:
    """`conv_launch` of a depthwise convolution: all loop bounds are macros."""
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
        (x, w, *parameters, out, convolution_struct(g, len(out))),
    )


def grad_x_launches(function, device, kernel, entry, arrays, w, grad_x, g: ConvGeometry) -> None:
    """One launch for all phases of the stride; `arrays` begin with grad, and are sliced with x."""
    channels = g.channels // g.groups
    tile = grad_x_tile(grad_x.itemsize, channels)
    rows, columns = (-(-size // step) for size, step in zip(g.x_shape[2:], g.stride, strict=True))
    phases = min(g.stride[0], g.height) * min(g.stride[1], g.width)
    for images in chunks(g.batch, images_at_once(function, g, g.channels)):
        part = grad_x[images]
        device.launch(
            f"{kernel}.cu",
            entry,
            {"T": c_type(grad_x), **tile.defines("C")},
            (phases * tile.blocks(channels, len(part) * rows * columns, g.groups),),
            (tile.threads,),
            (*(a[images] for a in arrays), w, part, convolution_struct(g, len(part))),
        )


def grad_w_launches(function, device, kernel, entry, grad, x, w, grad_w, g: ConvGeometry) -> None:
    """Split-K over the pixels, with enough parts to fill a GPU, then one launch to reduce them."""
    filters = g.filters // g.groups
    images = list(chunks(g.batch, images_at_once(function, g, g.channels)))
    tile = grad_w_tile(w.itemsize, filters, g.taps)
    tiles = tile.blocks(filters, g.taps, g.groups)
    most, plane = grad_w_parts(w.itemsize, tile, tiles), math.prod(g.out_size)
    for chunk, part, sums in in_parts(device, grad_w, images, plane, _LEAST_PART, most):
        shape = convolution_struct(g, chunk.stop - chunk.start)
        device.launch(
            f"{kernel}.cu",
            entry,
            {"T": c_type(w), **tile.defines()},
            (tiles, len(sums)),
            (tile.threads,),
            (grad[chunk], x[chunk], w, sums, shape, np.int32(part)),
        )


def in_parts(
    device, out, images: list[slice], plane: int, least: int, most: int
) -> Iterator[tuple[slice, int, Array]]:
    """Split a sum over the pixels of all images into parts, and reduce them into out at the end.

    Parameters
    ----------
    images : list of slice
        The images of each launch; the first slice is the largest.
    plane : int
        Pixels per image.
    least, most : int
        The fewest pixels per part, except the last, and the most parts of the first launch.

    Yields
    ------
    images : slice
    part : int
        Pixels per part.
    sums : array, (parts, *out.shape)
        To be written.
    """
    pixels = images[0].stop * plane
    most = min(most, limits.GRID_LIMIT, limits.WORKSPACE // (out.nbytes * len(images)))
    parts = max(1, min(most, pixels // least))
    part = -(-pixels // parts // DEPTH) * DEPTH
    counts = [-(-(chunk.stop - chunk.start) * plane // part) for chunk in images]
    sums = room_for_parts(device, out, sum(counts))
    first = 0
    for chunk, count in zip(images, counts, strict=True):
        yield chunk, part, sums[first : first + count]
        first += count
    add_parts(device, sums, out)


def room_for_parts(device, out, count: int) -> Array:
    """Workspace for the parts of a sum: out itself, if there is one part."""
    return out[None] if count == 1 else device.xp.empty((count, *out.shape), out.dtype)


def add_parts(device, parts, out) -> None:
    """Reduce the parts in `room_for_parts` into out."""
    if len(parts) > 1:
        device.launch(
            "adder/add_parts.cu",
            "add_parts",
            {"T": c_type(out)},
            (-(-out.size // _REDUCED),),
            (_REDUCED**2,),
            (parts, out, *int32(len(parts), out.size)),
        )
