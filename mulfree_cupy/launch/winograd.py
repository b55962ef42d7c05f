"""Launchers of cuda/winograd: in steps through V, the transformed input, or fused.

The first two rungs and the gradient store V and its products for a part of the tiles at a time.
Weights are `WinogradWeights`, which cache the packed form of each kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import limits
from mulfree_cupy.launch.arguments import PAIR, c_type, convolution_struct, int32, struct
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.select import Call, choose
from mulfree_cupy.launch.tiling import chunks, winograd_frozen_tile, winograd_fused_tile

_FROZEN_CHUNK = 64  # channels; CHUNK in 4_frozen.cu

Matrices = tuple[np.ndarray, np.ndarray, np.ndarray]  # BT, G, AT

_IMAGE_TILES = np.dtype(  # as in cuda/winograd/transform.cuh
    [("planes", np.int32), ("size", *PAIR), ("pad", *PAIR)]
    + [(name, np.int32) for name in ("count", "rows", "columns", "first", "last")]
)


@dataclass(frozen=True)
class Tiles:
    """The m x m output tiles of a convolution, numbered by image, row and column."""

    m: int
    images: int
    rows: int
    columns: int

    @classmethod
    def of(cls, g: ConvGeometry, m: int) -> Tiles:
        return cls(m, g.batch, -(-g.out_height // m), -(-g.out_width // m))

    def __len__(self) -> int:
        return self.images * self.rows * self.columns

    def parts(self, g: ConvGeometry, itemsize: int) -> Iterator[slice]:
        """Ranges whose transformed inputs and outputs fit the workspace, at least 32 tiles."""
        bytes_a_tile = (self.m + 2) ** 2 * (g.channels + g.filters) * itemsize
        return chunks(len(self), max(1, limits.WORKSPACE // (32 * bytes_a_tile)) * 32)


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")  # NaN and Inf propagate without warnings
def winograd_conv(
    device,
    x,
    weights,
    matrices: Matrices,
    bias,
    out,
    g: ConvGeometry,
    relu: bool,
    kernel: str | None = None,
) -> None:
    """Write A^T [ sum_c U . V ] A of every tile, and bias, into out."""
    kernel = choose(Call("winograd_conv", x.dtype, weights=weights), kernel)
    _check_sizes("winograd_conv", g, weights.m)
    if kernel == "3_fused":
        _fused(device, x, weights, bias, out, g, relu)
    elif kernel == "4_frozen":
        _frozen(device, x, weights, bias, out, g, relu)
    else:
        _in_steps(device, x, weights, matrices, bias, out, g, relu, kernel)


def _check_sizes(function: str, g: ConvGeometry, m: int) -> None:
    """Raise for sizes that overflow 32 bits."""
    sizes = {**limits.padded_sizes(g), "C": g.channels, "K": g.filters}
    limits.check_sizes(function, limits.INT32, sizes)
    tiles = {"the number of tiles": len(Tiles.of(g, m))}
    limits.check_sizes(function, limits.INT32 // 4, tiles)


def _in_steps(device, x, weights, matrices, bias, out, g, relu, kernel) -> None:
    """Rungs 1 and 2: input transform, a product per position, output transform."""
    BT, _, AT = matrices
    tiles = Tiles.of(g, weights.m)
    product = _dense_product if kernel == "1_dense" else _sparse_product
    for part in tiles.parts(g, x.itemsize):
        seen = _input_transform(device, x, BT, tiles, part, g.before, relu)
        products = product(device, weights, seen)
        _output_transform(device, products, bias, out, AT.T, tiles, part, (0, 0))


def _dense_product(device, weights, seen):
    u = weights.dense
    return device.xp.matmul(u.reshape(-1, *u.shape[2:]), seen)


def _sparse_product(device, weights, seen):
    def pack():
        indptr, indices, values = weights.csr
        entries = {"entries of weights": len(values)}
        limits.check_sizes("winograd_conv", limits.INT32, entries)
        return tuple(map(device.xp.asarray, (indptr.astype(np.int32), indices, values)))

    positions, channels, count = seen.shape
    filters = weights.shape[2]
    products = device.xp.empty((positions, filters, count), seen.dtype)
    threads, each = 128, 16 // seen.itemsize
    device.launch(
        "winograd/2_sparse.cu",
        "winograd_sparse",
        {"T": c_type(seen)},
        (-(-count // (threads * each)), min(filters, limits.GRID_LIMIT), positions),
        (threads,),
        (seen, *weights.kept("csr", device.xp, pack), products, *int32(channels, filters, count)),
    )
    return products


def _input_transform(device, image, matrix, tiles: Tiles, part: slice, padding, relu=False):
    """matrix d matrix^T of some tiles d of an image, (t*t, C, tiles), padded to a multiple of 32
    tiles."""
    channels, count = image.shape[1], -(-(part.stop - part.start) // 32) * 32
    v = device.xp.empty((len(matrix) ** 2, channels, count), image.dtype)
    arrays, more = (image, v), (relu, count)
    _per_thread(device, "input", matrix, image, tiles, part, padding, count, arrays, more)
    return v


def _output_transform(
    device, products, bias, image, matrix, tiles: Tiles, part: slice, padding
) -> None:
    """Write bias + matrix^T p matrix of some tiles p into an image; overlapping tiles
    accumulate."""
    overlap = (matrix.shape[1] - 1) // tiles.m
    first, last = (
        tile // tiles.columns + tile // tiles.columns // tiles.rows * overlap
        for tile in (part.start, part.stop - 1)
    )
    block_rows = last + overlap + 1 - first
    threads = block_rows * (tiles.columns + overlap)
    arrays, more = (products, bias, image), (products.shape[2], first, block_rows)
    _per_thread(device, "output", matrix, image, tiles, part, padding, threads, arrays, more)


def _per_thread(
    device, way, matrix, image, tiles: Tiles, part: slice, padding, threads, arrays, more
) -> None:
    """Launch the transform of some tiles of an image."""
    planes = image.shape[1]
    places = len(tiles), tiles.rows, tiles.columns, part.start, part.stop
    defines = {
        "T": c_type(image),
        "TILE": len(matrix),
        "SIDE": matrix.shape[1],
        "M": tiles.m,
        "MATRIX": str(matrix.tolist()).replace("[", "{").replace("]", "}"),
    }
    device.launch(
        f"winograd/1_{way}_transform.cu",
        f"winograd_{way}_transform",
        defines,
        (-(-threads // 128), min(planes, limits.GRID_LIMIT)),
        (128,),
        (*arrays, struct(_IMAGE_TILES, planes, image.shape[2:], padding, *places), *int32(*more)),
    )


def _fused(device, x, weights, bias, out, g: ConvGeometry, relu: bool) -> None:
    """Rung 3."""
    tile = winograd_fused_tile(x.itemsize, g.filters, len(Tiles.of(g, 2)))

    def pack():
        return tuple(map(device.xp.asarray, _by_chunk(*weights.blocks, tile.chunk, g.channels)))

    packed = weights.kept(("fused", tile.chunk), device.xp, pack)
    _launch_fused(device, "3_fused", tile, x, packed, bias, out, g, relu)


def _by_chunk(indptr, indices, values, chunk: int, channels: int):
    """The rows of a CSR split into chunks of columns, with column indices relative to the chunk."""
    rows, chunks_ = len(indptr) - 1, -(-channels // chunk)
    row = indices // chunk * rows + np.repeat(np.arange(rows), np.diff(indptr))
    sizes = {"rows of weights": rows * chunks_, "entries": len(row)}
    limits.check_sizes("winograd_conv", limits.INT32, sizes)
    order = np.argsort(row, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows * chunks_))])
    return starts.astype(np.int32), (indices % chunk)[order], values[order]


def _frozen(device, x, weights, bias, out, g: ConvGeometry, relu: bool) -> None:
    """Rung 4."""
    tile = winograd_frozen_tile(x.itemsize, g.filters, len(Tiles.of(g, 2)))

    def pack():
        text, values = generate(weights, tile.rows)
        return text, device.xp.asarray(values)

    text, values = weights.kept(("frozen", tile.rows), device.xp, pack)
    more = {"PRODUCTS": text}
    _launch_fused(device, "4_frozen", tile, x, (values,), bias, out, g, relu, more)


def generate(weights, rows: int) -> tuple[str, np.ndarray]:
    """PRODUCTS of 4_frozen.cu for the positions of the weights, and their values in its order."""
    _, indices, values = weights.csr
    filters = weights.shape[2]
    row = np.repeat(np.arange(16 * filters), np.diff(weights.csr[0]))
    position, k = row // filters, row % filters
    groups = -(-filters // rows)
    step = indices // _FROZEN_CHUNK * 16 + position
    case = step * groups + k // rows
    order = np.lexsort((k, indices, case))
    ordered, words, last_case, last_channel = [], [], None, None
    for entry in order:
        if case[entry] != last_case:
            ordered += [0.0] * (-len(ordered) % 4)
            words.append(f"break; case {case[entry]}:")
            last_case, last_channel = case[entry], None
        if len(ordered) % 4 == 0:
            words.append(f"W({len(ordered) // 4})")
        if indices[entry] != last_channel:
            last_channel = indices[entry]
            words.append(f"V({last_channel % _FROZEN_CHUNK})")
        words.append(f"P({k[entry] % rows}, {len(ordered) % 4})")
        ordered.append(values[entry])
    ordered += [0.0] * (-len(ordered) % 4 or 4 * (not ordered))
    return " ".join(["default:", *words, "break;"]), np.array(ordered, values.dtype)


def _launch_fused(
    device, kernel, tile, x, packed, bias, out, g: ConvGeometry, relu, more=None
) -> None:
    tiles = len(Tiles.of(g, 2))
    blocks = tile.blocks(tiles, g.filters)
    planes = {"H*W": g.height * g.width, "OH*OW": g.out_height * g.out_width}
    limits.check_sizes("winograd_conv", limits.INT32, planes)
    limits.check_sizes("winograd_conv", limits.GRID_LIMIT, {"K / filters of a block": blocks[1]})
    device.launch(
        f"winograd/{kernel}.cu",
        f"winograd_{kernel[2:]}",
        {"T": c_type(x), **tile.defines(), **(more or {})},
        blocks,
        (tile.threads,),
        (x, *packed, bias, out, convolution_struct(g, len(x)), *int32(relu, tiles)),
    )


@on_device_of_arrays
@np.errstate(invalid="ignore", over="ignore")
def winograd_conv_backward(
    device, grad, x, weights, matrices: Matrices, grad_x, grad_u, g: ConvGeometry, relu: bool
) -> None:
    """Write both gradients of sum(winograd_conv(x, weights) * grad); grad_u is not masked yet.

    Per tile dM = A grad A^T; grad_u sums dM V^T, and grad_x adds up B (U^T dM, where V > 0) B^T.
    """
    _check_sizes("winograd_conv_backward", g, weights.m)
    xp, (BT, _, AT), tiles = device.xp, matrices, Tiles.of(g, weights.m)
    transposed = weights.dense.reshape(-1, g.filters, g.channels).transpose(0, 2, 1)
    total = grad_u.reshape(-1, g.filters, g.channels)
    total[...] = 0
    for part in tiles.parts(g, 2 * x.itemsize):  # V, dM and products
        seen = _input_transform(device, x, BT, tiles, part, g.before, relu)
        flow = _input_transform(device, grad, AT.T, tiles, part, (0, 0))
        total += xp.matmul(flow, seen.transpose(0, 2, 1))
        products = xp.matmul(transposed, flow)
        if relu:
            products *= seen > 0
        _output_transform(device, products, None, grad_x, BT, tiles, part, g.before)
