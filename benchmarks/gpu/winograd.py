"""The Winograd kernels on a GPU, by density, compared with the ordinary convolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mulfree_cupy as mf
from benchmarks.gpu import reference
from benchmarks.gpu.cases import Case
from benchmarks.layers import Layer
from benchmarks.timing import milliseconds, table
from benchmarks.winograd import LAYERS, QUICK, break_even
from mulfree_cupy.launch import select

RUNGS = select.names("winograd_conv")

DENSITIES = 1, 0.4, 0.2, 0.1


def cases(device: Any, quick: bool, tiny: bool) -> Iterator[Case]:
    """Every rung at every layer and density, the default, the gradients, and conv."""
    for layer in QUICK if tiny else LAYERS[:1] if quick else LAYERS:
        yield from _layer(device, layer)


def _layer(device: Any, layer: Layer) -> Iterator[Case]:
    xp, (host_x, host_w, host_grad) = device.xp, layer.floats()
    x, w, grad = map(xp.asarray, (host_x, host_w, host_grad))
    out = xp.empty(layer.out_shape, x.dtype)
    common = {"layer": layer.name, "dtype": "float32", "terms": layer.terms}
    common["bytes"] = x.nbytes + w.nbytes + grad.nbytes

    def conv():
        return mf.conv(x, w, padding=1, out=out)

    def conv_expected():
        taps = reference.window(layer.channels, 3, 1)
        return [reference.Sums(device, "conv", taps, x, w, 1, layer.out_shape).forward()]

    row = {"operation": "conv beside winograd_conv", "kernel": "default", "density": 1} | common
    yield Case(row, conv, conv_expected, 1e-5, [out])
    for density in DENSITIES:
        host = mf.WinogradWeights.from_spatial(host_w).prune(density)
        u, mask = xp.asarray(host.dense), xp.asarray(host.mask)
        weights = mf.WinogradWeights.from_dense(u, mask)

        def expected(u=u):
            return [reference.winograd(xp, x, u, 2)]

        def gradients(u=u, mask=mask):
            grad_x, grad_u = reference.winograd(xp, x, u, 2, grad)
            return [grad_x, grad_u * mask]

        for kernel in (*RUNGS, None):

            def forward(kernel=kernel, weights=weights):
                return mf.winograd_conv(x, weights, out=out, kernel=kernel)

            row = {"operation": "winograd_conv", "kernel": kernel or "default"} | common
            row["density"] = density
            yield Case(row, forward, expected, 1e-5, [out], main=density in (1, 0.4))

        def backward(weights=weights):
            return mf.winograd_conv_backward(grad, x, weights)

        row = {"operation": "winograd_conv_backward", "kernel": "default"} | common
        yield Case(row | {"density": density}, backward, gradients, 1e-4, main=density == 1)


def document(record: dict) -> list[str]:
    """Milliseconds, a row a layer and density, and break-even densities; nothing without rows."""
    rows = [row for row in record["rows"] if "winograd_conv" in row["operation"]]
    if not rows:
        return []
    body = []
    for layer, density in dict.fromkeys((r["layer"], r["density"]) for r in rows):

        def found(operation, kernel="default", layer=layer, density=density):
            wanted = {"layer": layer, "density": density, "operation": operation, "kernel": kernel}
            return milliseconds(*(r for r in rows if wanted.items() <= r.items()))

        forward = [found("winograd_conv", kernel) for kernel in (*RUNGS, "default")]
        conv = found("conv beside winograd_conv", density=1)
        body.append([layer, f"{density:g}", *forward, found("winograd_conv_backward"), conv])
    heads = ["layer, ms", "density", *RUNGS, "default", "backward", "im2col + cuBLAS"]
    return [
        "winograd_conv float32, F(2x2, 3x3), by kernel and density:",
        table(heads, body),
        "The density below which a kernel is faster, on a line between the measured ones:",
        even_table(rows),
    ]


def even_table(rows: list[dict]) -> str:
    """Break-even densities of the kernels that read sparse weights."""
    seconds = {
        (row["layer"], row["operation"], row["kernel"], row["density"]): row["seconds"]["median"]
        for row in rows
        if row.get("seconds")
    }
    against = {
        "1_dense": ("winograd_conv", "1_dense"),
        "im2col + cuBLAS": ("conv beside winograd_conv", "default"),
    }

    def even(layer, kernel, other):
        beside = seconds.get((layer, *other, 1))
        times = {d: seconds.get((layer, "winograd_conv", kernel, d)) for d in DENSITIES}
        return break_even({d: t and beside and t / beside for d, t in times.items()})

    pairs = [(kernel, other) for kernel in RUNGS[1:] for other in against]
    body = [
        [layer, *(even(layer, kernel, against[other]) for kernel, other in pairs)]
        for layer in dict.fromkeys(row["layer"] for row in rows)
    ]
    return table(["break-even density", *(f"{k} : {other}" for k, other in pairs)], body)
