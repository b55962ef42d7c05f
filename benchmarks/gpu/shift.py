"""The shift kernels on a GPU: the plain shift compared with a copy, the fused one with its 1x1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import mulfree_cupy as mf
from benchmarks.gpu.cases import Case
from benchmarks.gpu.reference import Sums, shifted
from benchmarks.layers import Layer
from benchmarks.timing import cell, table
from mulfree_cupy import launch
from mulfree_cupy.launch import select
from mulfree_cupy.launch import shift as launchers

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
TINY = [Layer(2, 18, 8, 7, kernel=1)]

# What is timed, as (kernel, most blocks, dtype).
MOVERS = [
    *(
        (kernel, most, "float32")
        for kernel in select.names("shift")[:2]
        for most in (PUBLISHED_BLOCKS, None)
    ),
    *(("3_table", None, dtype) for dtype in ("float32", "float16", "uint8")),
]


def cases(device: Any, quick: bool, tiny: bool) -> Iterator[Case]:
    """Every rung of the bare shift and a copy; the fused kernel, its parts and its gradients."""
    few = slice(1 if quick else None)
    for layer in TINY if tiny else MOVES[few] + (MOVES[3:4] if quick else []):
        pixels = device.xp.asarray(
            np.random.default_rng(0).integers(0, 251, layer.x_shape, np.uint8)
        )
        for dtype in ("float32", "float16", "uint8"):
            yield from _moves(device, layer, pixels.astype(dtype))
    for layer in TINY if tiny else CONVOLUTIONS[few]:
        floats = [device.xp.asarray(a) for a in layer.floats()]
        for dtype in ("float32", "float16"):
            yield from _convolutions(device, layer, *(a.astype(dtype) for a in floats))


def _moved(xp: Any, x, shifts: np.ndarray):
    """The shift by slices, a channel at a time."""
    y, (height, width) = xp.zeros_like(x), x.shape[2:]
    for c, (dh, dw) in enumerate(shifts.tolist()):
        rows, columns = (slice(max(0, -d), s - max(0, d)) for d, s in ((dh, height), (dw, width)))
        seen = slice(max(0, dh), height + min(0, dh)), slice(max(0, dw), width + min(0, dw))
        y[:, c, rows, columns] = x[:, c, seen[0], seen[1]]
    return y


def _moves(device: Any, layer: Layer, x) -> Iterator[Case]:
    xp, shifts, dtype = device.xp, mf.modulo_shifts(layer.channels), x.dtype.name
    out, moved, as_launched = xp.empty_like(x), [], shifts.astype(np.int32)

    def expected():  # made once, and only if it is asked for
        if not moved:
            moved.append(_moved(xp, x, shifts))
        return moved

    def copy():
        xp.copyto(out, x)
        return out

    row = {"layer": layer.name, "operation": "shift", "dtype": dtype, "bytes": 2 * x.nbytes}
    row |= {"terms": x.size, "most_blocks": None}
    yield Case(row | {"kernel": "copy"}, copy, lambda: [x], 0, [out])
    for kernel, most in [(k, m) for k, m, d in MOVERS if d == dtype]:

        def move(kernel=kernel, most=most):
            if most is None:
                return mf.shift(x, shifts, out=out, kernel=kernel)
            launchers.shift(launch.device_for(x), x, as_launched, out, (1, 1), kernel, most)
            return out

        named = row | {"kernel": kernel, "most_blocks": most}
        yield Case(named, move, expected, 0, [out], main=kernel == "3_table")


def _convolutions(device: Any, layer: Layer, x, w, grad) -> Iterator[Case]:
    xp, shifts, dtype = device.xp, mf.modulo_shifts(layer.channels), x.dtype.name
    w = xp.ascontiguousarray(w[:, :, 0, 0])
    unmoved = np.zeros_like(shifts)
    out = xp.empty(layer.out_shape, dtype)

    def sums(term: str, table: np.ndarray) -> Sums:
        return Sums(device, term, shifted(table), x, w, 1, layer.out_shape)

    one_pass = x.nbytes + w.nbytes + grad.nbytes
    conv, still, adder = sums("conv", shifts), sums("conv", unmoved), sums("adder", shifts)
    calls = {
        ("shift_conv", "4_fused_conv"): (
            lambda: mf.shift_conv(x, w, shifts, out=out),
            lambda: [conv.forward()],
            one_pass,
        ),
        ("shift_conv", "3_table"): (
            lambda: mf.shift_conv(x, w, shifts, out=out, kernel="3_table"),
            lambda: [conv.forward()],
            one_pass,
        ),
        ("conv 1x1", "4_fused_conv"): (
            lambda: mf.shift_conv(x, w, unmoved, out=out),
            lambda: [still.forward()],
            one_pass,
        ),
    }
    if dtype == "float32":
        calls |= {
            ("conv 1x1", "default"): (
                lambda: mf.conv(x, w[:, :, None, None], out=out),
                lambda: [still.forward()],
                one_pass,
            ),
            ("shift_adder_conv", "4_fused_conv"): (
                lambda: mf.shift_adder_conv(x, w, shifts, out=out),
                lambda: [adder.forward()],
                one_pass,
            ),
            ("shift_conv_backward", "default"): (
                lambda: mf.shift_conv_backward(grad, x, w, shifts),
                lambda: [conv.by_x(grad), conv.by_w(grad)],
                2 * one_pass,
            ),
            ("shift_adder_conv_backward", "default"): (
                lambda: mf.shift_adder_conv_backward(grad, x, w, shifts),
                lambda: [adder.by_x(grad), adder.by_w(grad)],
                2 * one_pass,
            ),
        }
    for (operation, kernel), (call, expected, moved) in calls.items():
        row = {"layer": layer.name, "operation": operation, "kernel": kernel, "dtype": dtype}
        row |= {"bytes": moved, "terms": layer.terms}
        backward = operation.endswith("backward")
        tolerance = (1e-4 if backward else 1e-5) if dtype == "float32" else 2e-3
        yield Case(row, call, expected, tolerance, [] if backward else [out])


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
        copy = _speed(found.get(("copy", None, "float32"), {}))
        body.append([layer, cell(copy and copy / 1e12, ".2f")])
        for head in heads:
            beside = _speed(found.get(("copy", None, head[2]), {}))
            speed = _speed(found.get(head, {}))
            wrong = "wrong" in found.get(head, {})
            body[-1].append("WRONG" if wrong else cell(speed and beside and speed / beside, ".0%"))
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
        ("conv 1x1", "default"),
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
    heads = ["fused", "separate", "ours, unmoved", "conv 1x1", "adder fused", "backward"]
    ratios = ["of separate", "of unmoved", "of conv 1x1"]
    return table(["layer", "dtype", *heads, *ratios], body)
