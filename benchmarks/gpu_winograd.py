"""The Winograd kernels on a GPU, by density, beside im2col + cuBLAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mulfree_cupy as mf
from benchmarks.timing import milliseconds, progress, table
from benchmarks.winograd import LAYERS, QUICK, break_even
from mulfree_cupy.launch.winograd import WINOGRAD_KERNELS

if TYPE_CHECKING:
    from benchmarks.gpu import Run

DENSITIES = 1, 0.4, 0.2, 0.1


def convolutions(state: Run, measured: Callable) -> None:
    """Every rung at every layer and density, the default, the gradients, and conv."""
    for layer in progress(QUICK if state.record["emulated"] else LAYERS, "layer"):
        if state.left < 0:
            state.record["left_out"].append(f"winograd at {layer.name}")
            continue
        state.record["rows"] += _rows(state, layer, measured)


def _rows(state: Run, layer, measured: Callable) -> list[dict]:
    xp, (x, w, grad) = state.device.xp, layer.floats()
    on_device = {"x": xp.asarray(x), "w": xp.asarray(w), "grad": xp.asarray(grad)}
    moved = x.nbytes + w.nbytes + grad.nbytes
    common = {"dtype": "float32", "bytes": moved}
    row = {"operation": "conv beside winograd_conv", "kernel": "default", "density": 1, **common}
    expected = [mf.conv(x, w, padding=1)]

    def conv():
        return mf.conv(on_device["x"], on_device["w"], padding=1)

    rows = [measured(state, layer, row, conv, expected, 1e-5)]
    for density in DENSITIES:
        host = mf.WinogradWeights.from_spatial(w).prune(density)
        weights = mf.WinogradWeights.from_dense(xp.asarray(host.dense), xp.asarray(host.mask))
        expected = [mf.winograd_conv(x, host)]
        for kernel in (*WINOGRAD_KERNELS, None):

            def forward(kernel=kernel, weights=weights):
                return mf.winograd_conv(on_device["x"], weights, kernel=kernel)

            row = {"operation": "winograd_conv", "kernel": kernel or "default"}
            row |= {"density": density, **common}
            rows.append(measured(state, layer, row, forward, expected, 1e-5))

        def backward(weights=weights):
            return mf.winograd_conv_backward(on_device["grad"], on_device["x"], weights)

        row = {"operation": "winograd_conv_backward", "kernel": "default"}
        row |= {"density": density, **common}
        expected = mf.winograd_conv_backward(grad, x, host)
        rows.append(measured(state, layer, row, backward, expected, 1e-4))
    return rows


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

        forward = [found("winograd_conv", kernel) for kernel in (*WINOGRAD_KERNELS, "default")]
        conv = found("conv beside winograd_conv", density=1)
        body.append([layer, f"{density:g}", *forward, found("winograd_conv_backward"), conv])
    heads = ["layer, ms", "density", *WINOGRAD_KERNELS, "default", "backward", "im2col + cuBLAS"]
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

    pairs = [(kernel, other) for kernel in WINOGRAD_KERNELS[1:] for other in against]
    body = [
        [layer, *(even(layer, kernel, against[other]) for kernel, other in pairs)]
        for layer in dict.fromkeys(row["layer"] for row in rows)
    ]
    return table(["break-even density", *(f"{k} : {other}" for k, other in pairs)], body)
