"""The shift kernels on a GPU: the bare shift against a copy, the fused one against its 1x1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import mulfree_cupy as mf
from benchmarks.layers import Layer
from benchmarks.timing import cell, progress, table
from mulfree_cupy import launch
from mulfree_cupy.launch import shift as launchers

if TYPE_CHECKING:
    from benchmarks.gpu import Run

PUBLISHED_BLOCKS = 128  # the most that the published kernels start

# Above 200 MB, so that nothing stays in an L2 cache.
MOVES = [
    Layer(256, 64, 64, 56, kernel=1),
    Layer(512, 128, 128, 28, kernel=1),
    Layer(1024, 256, 256, 14, kernel=1),
    Layer(2048, 512, 512, 7, kernel=1),
    Layer(3200, 16, 16, 32, kernel=1),
]
CONVOLUTIONS = [
    Layer(128, 64, 64, 56, kernel=1),
    Layer(128, 144, 64, 56, kernel=1),
    Layer(128, 128, 128, 28, kernel=1),
    Layer(128, 256, 256, 14, kernel=1),
    Layer(256, 512, 512, 7, kernel=1),
    Layer(512, 48, 16, 32, kernel=1),
]
QUICK = [Layer(2, 18, 8, 7, kernel=1)]

# What is timed, as (kernel, most blocks, dtype).
MOVERS = [
    *((kernel, most, "float32") for kernel in launchers.SHIFT_KERNELS[:2] for most in (128, None)),
    ("3_table", None, "float32"),
    ("3_table", None, "float16"),
]


def moves(state: Run, measured: Callable) -> None:
    """Every rung of the bare shift, and CuPy's copy of as many bytes, at every layer."""
    for layer in progress(QUICK if state.record["emulated"] else MOVES, "layer"):
        if state.left < 0:
            state.record["left_out"].append(f"shift at {layer.name}")
            continue
        state.record["rows"] += _move_rows(state, layer, measured)


def _move_rows(state: Run, layer: Layer, measured: Callable) -> list[dict]:
    xp, rows, shifts = state.device.xp, [], mf.modulo_shifts(layer.channels)
    moved = xp.asarray(shifts.astype(np.int32))
    for dtype in ("float32", "float16"):
        host = layer.floats()[0].astype(dtype)
        x, expected = xp.asarray(host), mf.shift(host, shifts)
        out = xp.zeros_like(x)

        def copy(x=x, out=out):
            xp.copyto(out, x)
            return out

        row = {"operation": "shift", "dtype": dtype, "bytes": 2 * x.nbytes}
        copied = {"kernel": "copy", "most_blocks": None}
        rows.append(measured(state, layer, row | copied, copy, [host], 0))
        for kernel, most in [(k, m) for k, m, d in MOVERS if d == dtype]:

            def move(x=x, out=out, kernel=kernel, most=most):
                launchers.shift(launch.device_for(x), x, moved, out, (1, 1), kernel, most)
                return out

            out.fill(np.nan)  # the last kernel's answer must not pass for this one's
            named = {"kernel": kernel, "most_blocks": most}
            rows.append(measured(state, layer, row | named, move, [expected], 0))
    return rows


def convolutions(state: Run, measured: Callable) -> None:
    """The fused kernel, the separate way, the 1x1 convolution alone, the adder, the gradients."""
    for layer in progress(QUICK if state.record["emulated"] else CONVOLUTIONS, "layer"):
        if state.left < 0:
            state.record["left_out"].append(f"shift_conv at {layer.name}")
            continue
        for dtype in ("float32", "float16"):
            state.record["rows"] += _conv_rows(state, layer, dtype, measured)


def _conv_rows(state: Run, layer: Layer, dtype: str, measured: Callable) -> list[dict]:
    xp, shifts = state.device.xp, mf.modulo_shifts(layer.channels)
    # The answers are checked against those of the same numbers in float32.
    host = [a.astype(dtype) for a in layer.floats()]
    x, w, grad = (a.astype(np.float32) for a in host)
    w, tolerance = w[:, :, 0, 0], 1e-5 if dtype == "float32" else 2e-3
    dx, dw, dgrad = map(xp.asarray, host)
    dw = dw[:, :, 0, 0].copy()
    one_pass = (x.nbytes + w.nbytes + grad.nbytes) * host[0].itemsize // 4
    calls: dict[tuple[str, str], tuple[Callable, Callable[[], Any], int]] = {
        ("shift_conv", kernel): (
            lambda kernel=kernel: mf.shift_conv(dx, dw, shifts, kernel=kernel),
            lambda: [mf.shift_conv(x, w, shifts)],
            one_pass,
        )
        for kernel in ("3_table", "4_fused_conv")
    }
    unmoved = np.zeros_like(shifts)
    calls["conv 1x1", "4_fused_conv"] = (
        lambda: mf.shift_conv(dx, dw, unmoved, kernel="4_fused_conv"),
        lambda: [mf.shift_conv(x, w, unmoved)],
        one_pass,
    )
    if dtype == "float32":
        calls["conv 1x1", "matmul"] = (
            lambda: mf.conv(dx, dw[:, :, None, None]),
            lambda: [mf.conv(x, w[:, :, None, None])],
            one_pass,
        )
        calls["shift_adder_conv", "4_fused_conv"] = (
            lambda: mf.shift_adder_conv(dx, dw, shifts),
            lambda: [mf.shift_adder_conv(x, w, shifts)],
            one_pass,
        )
        calls["shift_conv_backward", "default"] = (
            lambda: mf.shift_conv_backward(dgrad, dx, dw, shifts),
            lambda: mf.shift_conv_backward(grad, x, w, shifts),
            2 * one_pass,
        )
    rows = []
    for (operation, kernel), (call, expected, moved) in calls.items():
        row = {"operation": operation, "kernel": kernel, "dtype": dtype, "bytes": moved}
        rows.append(measured(state, layer, row, call, expected(), tolerance))
    return rows


def document(record: dict) -> list[str]:
    """The parts of the record's text that are about shift."""
    rows = record["rows"]
    if not any(r["operation"] == "shift" for r in rows):
        return []
    return [
        "shift, speed relative to a device copy of as many bytes, by kernel (most blocks):",
        moves_table(rows),
        "shift_conv, milliseconds, and the fused kernel's time relative to others:",
        convolutions_table(rows),
    ]


def moves_table(rows: list[dict]) -> str:
    heads = [(name, most, dtype) for name, most, dtype in MOVERS]
    rows = [r for r in rows if r["operation"] == "shift"]
    body = []
    for layer in dict.fromkeys(r["layer"] for r in rows):
        found = {
            (r["kernel"], r["most_blocks"], r["dtype"]): r for r in rows if r["layer"] == layer
        }
        copy = _speed(found["copy", None, "float32"])
        body.append([layer, cell(copy and copy / 1e12, ".2f")])
        for head in heads:
            if "wrong" in found[head]:
                body[-1].append("WRONG")
            else:
                speed = _speed(found[head])
                body[-1].append(cell(speed and speed / copy, ".0%"))
    names = [
        name + (f" ({most})" if most else "") + (f" {dtype}" if dtype != "float32" else "")
        for name, most, dtype in heads
    ]
    return table(["layer", "copy, TB/s", *names], body)


def _speed(row: dict) -> float | None:
    return row["bytes"] / row["seconds"]["median"] if row.get("seconds") else None


def convolutions_table(rows: list[dict]) -> str:
    kinds = [
        ("shift_conv", "4_fused_conv"),
        ("shift_conv", "3_table"),
        ("conv 1x1", "4_fused_conv"),
        ("conv 1x1", "matmul"),
        ("shift_adder_conv", "4_fused_conv"),
        ("shift_conv_backward", "default"),
    ]
    body = []
    for layer, dtype in dict.fromkeys(
        (r["layer"], r["dtype"]) for r in rows if r["operation"] == "shift_conv"
    ):
        found = {
            (r["operation"], r["kernel"]): r
            for r in rows
            if r["layer"] == layer and r["dtype"] == dtype
        }
        times = [
            found[k]["seconds"]["median"] if k in found and found[k].get("seconds") else None
            for k in kinds
        ]
        wrong = ["WRONG" if "wrong" in found.get(k, {}) else None for k in kinds]
        fused = times[0]
        body.append(
            [layer, dtype]
            + [w or cell(t and 1e3 * t, ".3f") for w, t in zip(wrong, times, strict=True)]
            + [cell(fused and t and fused / t, ".2f") for t in times[1:4]]
        )
    heads = ["fused", "separate", "ours, unmoved", "1x1 matmul", "adder fused", "backward"]
    ratios = ["of separate", "of unmoved", "of matmul"]
    return table(["layer", "dtype", *heads, *ratios], body)
