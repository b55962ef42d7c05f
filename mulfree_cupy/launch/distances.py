"""Launchers of L1 distances: the adder's implicit tile, its sums not negated, and the nearest.

The distances of rows are a convolution: the rows of b are the pixels of an image of one row, their
numbers its channels, and the rows of a are filters of one tap.
"""

from __future__ import annotations

import numpy as np

from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import limits
from mulfree_cupy.launch.adder import implicit_conv
from mulfree_cupy.launch.arguments import int32, int64
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.tiling import chunks

_C_TYPES = {"float32": "float", "float64": "double", "int32": "int"}
_NEAREST_THREADS = 256
_QUERIES = 4096  # at a time


@on_device_of_arrays
def pairwise(device, a, b, out, function: str = "pairwise_l1") -> None:
    """Write sum_l abs(a[m, l] - b[p, l]) into out, for a (M, L) and b (P, L)."""
    (m, length), xp = a.shape, device.xp
    columns = min(len(b), max(1, limits.INT32 // length), limits.LONGEST)
    whole = columns == len(b)
    most = limits.INT32 if whole else limits.WORKSPACE // out.itemsize  # of what is not out's own
    rows = max(1, min(most // columns, limits.INT32 // length))
    for part in chunks(len(b), columns):
        x = xp.ascontiguousarray(b[part].T)[None, :, None, :]
        for some in chunks(m, rows):
            w = a[some, :, None, None]
            answer = out[some] if whole else xp.empty((len(w), x.shape[3]), out.dtype)
            g = ConvGeometry(1, length, x.shape[2:], len(w), (1, 1))
            _distance(function, device, x, w, answer[None, :, None, :], g)
            if not whole:
                out[some, part] = answer


@on_device_of_arrays
def nearest(device, queries, points, distances, places) -> None:
    """Write the k smallest distances of each query (M, k), in order, and which points they are."""
    for rows in chunks(len(queries), _QUERIES):
        _nearest(device, queries[rows], points, distances[rows], places[rows])


def _nearest(device, queries, points, distances, places) -> None:
    """A part of the points at a time; what was kept and what is kept now change places."""
    (m, k), xp = distances.shape, device.xp
    parts = list(chunks(len(points), limits.WORKSPACE // (m * distances.itemsize)))
    kept, now = (xp.empty_like(distances), xp.empty_like(places)), (distances, places)
    if len(parts) % 2 == 0:  # the last part's are the answer
        kept, now = now, kept
    for part in parts:
        first, count = part.start, part.stop - part.start
        numbers = xp.empty((m, count), distances.dtype)
        pairwise(device, queries, points[part], numbers, "nearest_l1")
        device.launch(
            "adder/nearest.cu",
            "nearest",
            {"T": _C_TYPES[distances.dtype.name]},
            (m,),
            (_NEAREST_THREADS,),
            (
                *(numbers, *int32(count), *int64(first)),
                *(*kept, *int32(min(k, first))),
                *(*now, *int32(min(k, part.stop), k)),
            ),
        )
        kept, now = now, kept


@on_device_of_arrays
def match_template(device, image, template, out) -> None:
    """Write the distances of the template (C, h, w) from the image (C, H, W) into out (OH, OW)."""
    g = ConvGeometry(1, len(image), image.shape[1:], 1, template.shape[1:])
    _distance("match_template_l1", device, image[None], template[None], out[None, None], g)


def _distance(function, device, x, w, out, geometry: ConvGeometry) -> None:
    packed = x.dtype == np.uint8
    kernel = "distance_uint8" if packed else "distance"
    implicit_conv(function, device, kernel, x, w, None, out, geometry, packed)
