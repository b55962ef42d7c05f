"""The Winograd convolution as array code: input tiles, a product per position, output tiles.

`tiles` and `untile` are adjoint to each other, which makes forward and backward the same few lines:
out = untile(U tiles(x; BT); A), grad_x = untile(U^T tiles(grad; A); BT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mulfree_cupy.geometry import Sides

_NONE = ((0, 0), (0, 0))  # no padding
_WORKSPACE = 64 << 20  # bytes; limit for a band of tiles

# BT and AT with Lavin's points, by tile size; other matrices are passed in.
_LAVIN = {
    16: (
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    ),
    36: (
        np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ]
        ),
        np.array(
            [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
        ),
    ),
}


def winograd_dense(u):
    return u.reshape(-1, *u.shape[2:])


def winograd_sparse(indptr, indices, values, shape):
    u = np.zeros((len(indptr) - 1, shape[2]), values.dtype)
    np.add.at(u, (np.repeat(np.arange(len(u)), np.diff(indptr)), indices), values)
    return u.reshape(-1, *shape[1:])


def winograd_blocks(indptr, indices, values, shape):
    t, filters, channels = shape
    u = np.zeros((len(indptr) - 1, channels, 4), values.dtype)
    np.add.at(u, (np.repeat(np.arange(len(u)), np.diff(indptr)), indices), values)
    return u.swapaxes(1, 2).reshape(t * t, -1, channels)[:, :filters]


def winograd_costs(dtype):
    return 0.0, 1.0, 1.0  # all forms use dense products


def winograd_conv(x, plan, bias, out, padding, relu, matrices):
    matrices = matrices or _LAVIN[len(plan)]
    forward(x, lambda seen: plan @ seen, bias, out, padding, relu, matrices)


def forward(x, product, bias, out, padding, relu, matrices):
    """`winograd_conv` with any function for the product of weights (t*t, K, C) and tiles (t*t, C,
    P)."""
    BT, AT = matrices
    out[...] = 0 if bias is None else bias[:, None, None]
    for band in _bands(x, out, AT):
        untile(product(_seen(x, band, BT, padding, relu)), band, AT.T, _NONE, out)


def transformed(x, padding, relu, matrices):
    """Yield transformed tiles (t*t, C, P), P at a time."""
    BT, AT = matrices
    height, width = (size + sum(sides) for size, sides in zip(x.shape[2:], padding, strict=True))
    out = np.empty((len(x), 0, height - 2, width - 2))
    for band in _bands(x, out, AT):
        yield _seen(x, band, BT, padding, relu)


def winograd_conv_grad_x(grad, x, u, grad_x, padding, relu, matrices):
    transposed = winograd_dense(u).swapaxes(1, 2)
    BT, AT = matrices or _LAVIN[len(transposed)]
    grad_x[...] = 0
    for band in _bands(x, grad, AT):
        below = transposed @ tiles(grad, band, AT.T, _NONE)
        if relu:
            below *= tiles(x, band, BT, padding) > 0
        untile(below, band, BT, padding, grad_x)


def winograd_conv_grad_u(grad, x, grad_u, padding, relu, matrices):
    total = winograd_dense(grad_u)
    BT, AT = matrices or _LAVIN[len(total)]
    total[...] = 0
    for band in _bands(x, grad, AT):
        seen = _seen(x, band, BT, padding, relu)
        total += tiles(grad, band, AT.T, _NONE) @ seen.swapaxes(1, 2)


def _seen(x, band, BT, padding, relu):
    seen = tiles(x, band, BT, padding)
    return np.maximum(seen, 0, out=seen) if relu else seen


@dataclass(frozen=True)
class Band:
    """Tiles m pixels apart: those of some images and rows of tiles."""

    m: int
    images: slice
    rows: range
    columns: int


def _bands(x: np.ndarray, out: np.ndarray, AT: np.ndarray) -> Iterator[Band]:
    """Split the tiles of an output (N, K, OH, OW) into bands that fit the workspace."""
    m, t = AT.shape
    rows, columns = -(-out.shape[2] // m), -(-out.shape[3] // m)
    # As many again for intermediate sums, and for gradients.
    bytes_a_tile = 4 * t * t * (x.shape[1] + out.shape[1]) * x.itemsize
    most = max(1, _WORKSPACE // max(1, bytes_a_tile * columns))
    images, height = max(1, most // rows), min(most, rows)
    for first in range(0, len(x), images):
        for row in range(0, rows, height):
            which = slice(first, min(first + images, len(x)))
            yield Band(m, which, range(row, min(row + height, rows)), columns)


def tiles(image: np.ndarray, band: Band, matrix: np.ndarray, padding: Sides) -> np.ndarray:
    """``matrix @ d @ matrix.T`` of each tile d, as an array (t*t, C, tiles).

    A tile has as many pixels a side as `matrix` has columns; the first begins at ``-padding``.
    Outside the image there are zeros.
    """
    canvas, on_canvas, in_image = _canvas(image, band, matrix, padding)
    canvas[on_canvas] = image[in_image]
    coefficients = matrix.tolist()  # Python floats, which do not promote float32
    t, (images, channels) = len(matrix), canvas.shape[:2]
    shape = channels, images, len(band.rows), band.columns
    answer = np.empty((t, t, *shape), image.dtype)
    for i in range(t):
        half = _sum(coefficients[i], lambda a: canvas[:, :, _every(a, band.m, len(band.rows))])
        for j in range(t):
            whole = _sum(coefficients[j], lambda b: half[..., _every(b, band.m, band.columns)])  # noqa: B023
            answer[i, j] = whole.swapaxes(0, 1)
    return answer.reshape(t * t, channels, -1)


def untile(
    tiled: np.ndarray, band: Band, matrix: np.ndarray, padding: Sides, image: np.ndarray
) -> None:
    """Add ``matrix.T @ tile @ matrix`` of each tile to the image; what falls outside is dropped."""
    canvas, on_canvas, in_image = _canvas(image, band, matrix, padding)
    coefficients = matrix.T.tolist()
    t, (images, channels) = len(matrix), canvas.shape[:2]
    shape = channels, images, len(band.rows), band.columns
    tiled = tiled.reshape(t, t, *shape).swapaxes(2, 3)
    for b, across in enumerate(coefficients):
        half = _sum(across, lambda j: tiled[:, j])
        columns = _every(b, band.m, band.columns)
        for a, down in enumerate(coefficients):
            canvas[:, :, _every(a, band.m, len(band.rows)), columns] += _sum(
                down,
                lambda i: half[i],  # noqa: B023
            )
    image[in_image] += canvas[on_canvas]


def _canvas(image, band, matrix, padding) -> tuple[np.ndarray, tuple, tuple]:
    """Zeros for all pixels of a band's tiles, and matching slices of them and of the image."""
    side = matrix.shape[1]
    sizes, on_canvas, in_image = [], [], []
    places = (band.rows.start, len(band.rows)), (0, band.columns)
    for (first_tile, count), length, (before, _) in zip(
        places, image.shape[2:], padding, strict=True
    ):
        sizes.append((count - 1) * band.m + side)
        start = first_tile * band.m - before
        first = max(0, start)
        last = max(first, min(length, start + sizes[-1]))
        on_canvas.append(slice(first - start, last - start))
        in_image.append(slice(first, last))
    images = image[band.images]
    canvas = np.zeros((*images.shape[:2], *sizes), image.dtype)
    return canvas, (..., *on_canvas), (band.images, slice(None), *in_image)


def _every(first: int, m: int, count: int) -> slice:
    return slice(first, first + (count - 1) * m + 1, m)


def _sum(coefficients: list[float], part: Callable[[int], np.ndarray]) -> np.ndarray:
    """``sum(c[i] * part(i))`` over the coefficients that are not zero."""
    return sum(c * part(i) for i, c in enumerate(coefficients) if c)
