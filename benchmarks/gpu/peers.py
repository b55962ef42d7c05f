"""The same layers in other libraries on the same GPU: cuDNN through torch, torch.cdist, cuVS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.adder import FILLED, MAIN, STRIDED, columns
from benchmarks.gpu.cases import Case
from benchmarks.gpu.reference import Sums, window
from benchmarks.layers import QUICK, Layer

CDIST_TERMS = 2**31  # torch.cdist starts a block of threads an output: larger tells nothing more


def cases(device: Any, quick: bool, tiny: bool) -> Iterator[Case]:
    """conv2d in float32, TF32 and float16, either layout; torch.cdist and cuVS on the windows.

    torch and CuPy both use the legacy default stream, so events of the one see work of the other.

    Raises
    ------
    ImportError
        If torch is not installed, or sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise ImportError("torch sees no GPU")
    torch.backends.cudnn.benchmark = True
    for layer in QUICK if tiny else MAIN if quick else (*FILLED, *STRIDED):
        yield from _convolutions(device, layer, torch)
        yield from _distances(device, layer, torch)


def _row(layer: Layer, operation: str, kernel: str, dtype: str) -> dict:
    row = {"layer": layer.name, "operation": operation, "kernel": kernel, "dtype": dtype}
    return row | {"bytes": None, "terms": layer.terms}


def _convolutions(device: Any, layer: Layer, torch: Any) -> Iterator[Case]:
    x, w, _ = map(device.xp.asarray, layer.floats())
    taps = window(layer.channels, layer.kernel, layer.padding)
    expected = [Sums(device, "conv", taps, x, w, layer.stride, layer.out_shape).forward()]
    for name, tf32, tolerance in (
        ("float32", False, 1e-4),
        ("TF32", True, 5e-3),
        ("float16", False, 1e-2),
    ):
        dtype = torch.float16 if name == "float16" else torch.float32
        for form in (torch.contiguous_format, torch.channels_last):
            fx, fw = (torch.from_dlpack(a).to(dtype).contiguous(memory_format=form) for a in (x, w))

            def call(fx=fx, fw=fw, tf32=tf32):
                torch.backends.cudnn.allow_tf32 = tf32
                return device.xp.from_dlpack(torch.conv2d(fx, fw, **layer.options))

            layout = str(form).removeprefix("torch.").removesuffix("_format")
            row = _row(layer, f"conv2d {name} {layout}", "torch", "float32")
            yield Case(row, call, lambda: expected, tolerance)


def _distances(device: Any, layer: Layer, torch: Any) -> Iterator[Case]:
    xp, (x, w, _) = device.xp, map(device.xp.asarray, layer.floats())
    if layer.terms > CDIST_TERMS:
        return
    taps = window(layer.channels, layer.kernel, layer.padding)
    answer = Sums(device, "adder", taps, x, w, layer.stride, layer.out_shape).forward()
    expected = [-answer.transpose(0, 2, 3, 1).reshape(-1, layer.filters)]
    cols = columns(xp, layer, x)
    points = xp.ascontiguousarray(cols.swapaxes(1, 2).reshape(-1, layer.taps))
    filters = w.reshape(layer.filters, -1)
    a, b = torch.from_dlpack(points), torch.from_dlpack(filters)

    def cdist():
        return xp.from_dlpack(torch.cdist(a, b, p=1))

    row = _row(layer, "torch.cdist", "torch", "float32")
    yield Case(row, cdist, lambda: expected, 1e-5)
    try:
        from cuvs.distance import pairwise_distance
    except ImportError:
        return
    out = xp.empty(expected[0].shape, np.float32)

    def cuvs():
        return xp.asarray(pairwise_distance(points, filters, out, metric="l1"))

    yield Case(_row(layer, "cuvs L1", "cuvs", "float32"), cuvs, lambda: expected, 1e-5)
