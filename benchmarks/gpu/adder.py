"""The adder's ladder, its gradients, and the ordinary convolution, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import mulfree_cupy as mf
from benchmarks.gpu.cases import Case
from benchmarks.gpu.reference import Sums, window
from benchmarks.layers import LAYERS, QUICK, Layer
from mulfree_cupy.launch import select

LADDER = None, *reversed(select.names("adder_matmul"))  # None is what runs by default
HALVES = "7_half2"
HALF_TOLERANCE = 1e-2  # of the largest answer; the bound is in docs/cuda.md

# The batches of the CPU's table leave a large GPU waiting; these fill it.
FILLED = [layer.with_batch(16 * layer.batch) for layer in LAYERS if layer.stride == 1]
STRIDED = [layer for layer in LAYERS if layer.stride > 1]
MAIN = FILLED[0], FILLED[2], FILLED[3]  # 16, 64 and 64 filters


def cases(device: Any, quick: bool, tiny: bool) -> Iterator[Case]:
    """Every rung and the default in float32 and uint8, the one for float16; the rest in float32."""
    large = [*MAIN, STRIDED[0]] if quick else [*FILLED, *LAYERS]
    layers = QUICK if tiny else large
    for layer in layers:
        yield from _floats(device, layer)
        yield from _bytes(device, layer)
        yield from _halves(device, layer)


def _sums(device: Any, term: str, layer: Layer, x, w) -> Sums:
    taps = window(layer.channels, layer.kernel, layer.padding)
    return Sums(device, term, taps, x, w, layer.stride, layer.out_shape)


def _ladder(
    layer: Layer, x, w, out, expected: list, tolerance: float, kernels=LADDER
) -> Iterator[Case]:
    for kernel in kernels:

        def call(kernel=kernel):
            return mf.adder_conv(x, w, out=out, kernel=kernel, **layer.options)

        row = {
            "layer": layer.name,
            "operation": "adder_conv",
            "kernel": kernel or "default",
            "dtype": x.dtype.name,
            "bytes": x.nbytes + w.nbytes + out.nbytes,
            "terms": layer.terms,
        }
        main = kernel in (None, HALVES)
        yield Case(row, call, lambda: expected, tolerance, [out], main=main)


def _bytes(device: Any, layer: Layer) -> Iterator[Case]:
    x, w = map(device.xp.asarray, layer.bytes())
    out = device.xp.empty(layer.out_shape, np.int32)
    yield from _ladder(layer, x, w, out, [_sums(device, "adder", layer, x, w).forward()], 0)


def _halves(device: Any, layer: Layer) -> Iterator[Case]:
    x, w, _ = (device.xp.asarray(a.astype(np.float16)) for a in layer.floats())
    out = device.xp.empty(layer.out_shape, np.float32)
    expected = [_sums(device, "adder", layer, x, w).forward()]
    yield from _ladder(layer, x, w, out, expected, HALF_TOLERANCE, [HALVES])


def _floats(device: Any, layer: Layer) -> Iterator[Case]:
    x, w, grad = map(device.xp.asarray, layer.floats())
    adder, conv = (_sums(device, term, layer, x, w) for term in ("adder", "conv"))
    out = device.xp.empty(layer.out_shape, np.float32)
    yield from _ladder(layer, x, w, out, [adder.forward()], 1e-5)

    size, options = layer.kernel, layer.options
    images = layer.x_shape[0] * layer.out_size**2 * layer.taps * x.itemsize
    both, once = 2 * (x.nbytes + w.nbytes) + grad.nbytes, x.nbytes + w.nbytes + grad.nbytes

    calls = {
        "adder_conv_backward": (
            both,
            1e-4,
            lambda: mf.adder_conv_backward(grad, x, w, **options),
            lambda: [adder.by_x(grad), adder.by_w(grad)],
        ),
        "conv": (once, 1e-5, lambda: mf.conv(x, w, **options), lambda: [conv.forward()]),
        "conv_backward": (
            both,
            1e-4,
            lambda: mf.conv_backward(grad, x, w, **options),
            lambda: [conv.by_x(grad), conv.by_w(grad)],
        ),
    }
    if images < 2**31:
        calls["im2col"] = (
            x.nbytes + images,
            0,
            lambda: mf.im2col(x, size, **options),
            lambda: [columns(device.xp, layer, x)],
        )
    for operation, (moved, tolerance, call, expected) in calls.items():
        row = {"layer": layer.name, "operation": operation, "kernel": "default"}
        row |= {"dtype": "float32", "bytes": moved, "terms": layer.terms}
        yield Case(row, call, expected, tolerance, main=operation != "im2col")


def columns(xp: Any, layer: Layer, x):
    """im2col by slices of the padded image."""
    p, k, s, out = layer.padding, layer.kernel, layer.stride, layer.out_size
    n, c, height, width = x.shape
    padded = xp.zeros((n, c, height + 2 * p, width + 2 * p), x.dtype)
    padded[:, :, p : p + height, p : p + width] = x
    views = [
        padded[:, :, i : i + (out - 1) * s + 1 : s, j : j + (out - 1) * s + 1 : s]
        for i in range(k)
        for j in range(k)
    ]
    return xp.stack(views, axis=2).reshape(n, c * k * k, out * out)
