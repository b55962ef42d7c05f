"""The binary ladder: signs and low-bit numbers, compared with the peak of POPC and tensor cores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import mulfree_cupy as mf
from benchmarks.gpu.cases import Case
from benchmarks.gpu.rates import BINARY_MMA
from benchmarks.gpu.reference import Sums, window
from benchmarks.layers import LAYERS, QUICK, Layer
from benchmarks.timing import cell, milliseconds, table
from mulfree_cupy.launch import select

LADDER = None, *reversed(select.names("binary_conv"))  # None is what runs by default
BITS = 1, 2, 3, 4
POPC = 512  # bits per clock and multiprocessor: 16 lanes of 32

# The batches of the CPU's table leave a large GPU waiting; these fill it.
FILLED = [layer.with_batch(16 * layer.batch) for layer in LAYERS if layer.stride == 1]
MAIN = FILLED[0], FILLED[2], FILLED[3], FILLED[5]  # 16, 64, 64 and 256 filters


def cases(device: Any, quick: bool, tiny: bool) -> Iterator[Case]:
    """Every rung on signs, packing alone, packed weights; and low bits compared with uint8."""
    for layer in QUICK if tiny else MAIN if quick else [*FILLED, *LAYERS]:
        yield from _signs(device, layer)
        yield from _low_bits(device, layer)


def _signs(device: Any, layer: Layer) -> Iterator[Case]:
    xp = device.xp
    x, w, _ = map(xp.asarray, layer.floats())
    signs = [xp.where(a >= 0, np.float32(1), np.float32(-1)) for a in (x, w)]
    taps = window(layer.channels, layer.kernel, layer.padding)
    expected = [Sums(device, "conv", taps, *signs, layer.stride, layer.out_shape).forward()]
    out = xp.empty(layer.out_shape, np.float32)
    packed = mf.pack(w, op="binary")
    row = {"layer": layer.name, "dtype": "float32", "terms": layer.terms}
    row["bytes"] = x.nbytes + w.nbytes + out.nbytes

    def words_expected():
        channels = xp.moveaxis(x, 1, -1) >= 0
        bits = xp.zeros((*channels.shape[:-1], -(-layer.channels // 64) * 64), bool)
        bits[..., : layer.channels] = channels
        words = xp.packbits(bits, bitorder="little").view(np.uint64)
        return [xp.moveaxis(words.reshape(*bits.shape[:-1], -1), -1, 1)]

    words = {"operation": "pack_signs", "kernel": "default", "bytes": x.nbytes + x.nbytes // 32}
    yield Case(row | words, lambda: mf.pack_signs(x), words_expected)
    for kernel in LADDER:

        def call(kernel=kernel):
            return mf.binary_conv(x, w, scale=False, out=out, kernel=kernel, **layer.options)

        named = {"operation": "binary_conv", "kernel": kernel or "default"}
        yield Case(row | named, call, lambda: expected, 0, [out], main=kernel is None)

    def call_packed():
        return mf.binary_conv(x, packed, scale=False, out=out, **layer.options)

    named = {"operation": "binary_conv, w packed", "kernel": "default"}
    yield Case(row | named, call_packed, lambda: expected, 0, [out])


def _low_bits(device: Any, layer: Layer) -> Iterator[Case]:
    xp = device.xp
    numbers = [xp.asarray(a % 16) for a in layer.bytes()]
    taps = window(layer.channels, layer.kernel, layer.padding)
    out = xp.empty(layer.out_shape, np.int32)
    x, w = numbers
    row = {"layer": layer.name, "kernel": "default", "dtype": "uint8", "terms": layer.terms}
    row["bytes"] = x.nbytes + w.nbytes + out.nbytes
    for bits in (*BITS, None):
        most = np.uint8(15 if bits is None else 2**bits - 1)
        low = [xp.minimum(a, most) for a in numbers]
        packed = mf.pack(w, op="adder", bits=bits)

        def expected(low=low):
            return [Sums(device, "adder", taps, *low, layer.stride, layer.out_shape).forward()]

        def call(bits=bits, packed=packed):
            return mf.adder_conv(x, packed, bits=bits, out=out, **layer.options)

        operation = "adder_conv, w packed" + (f", {bits} bits" if bits else "")
        yield Case(row | {"operation": operation}, call, expected, 0, [out])


def document(record: dict) -> list[str]:
    """The parts of the record's text that are about bits."""
    rows = record["rows"]
    if not any(r["operation"] == "binary_conv" for r in rows):
        return []
    return [
        "binary_conv of float32, bits per clock and multiprocessor, by kernel, packing included:",
        signs_table(record, rows),
        "adder_conv of uint8, milliseconds, by bits, w packed before:",
        low_bits_table(rows),
    ]


def signs_table(record: dict, rows: list[dict]) -> str:
    mma = record.get("rates", {}).get(BINARY_MMA, {}).get("per_clock")
    copy = record.get("copy_bytes_per_second")
    multiprocessors = record["device"]["multiprocessors"]
    body = []
    for layer, found in _by_layer(rows, "binary_conv"):
        body.append([layer])
        for kernel in LADDER:
            row = found.get(("binary_conv", kernel or "default"), {})
            rate = _bits_a_clock(row, multiprocessors)
            body[-1].append("WRONG" if "wrong" in row else cell(rate, ".0f"))
        default = found.get(("binary_conv", "default"), {})
        rate = _bits_a_clock(default, multiprocessors)
        speed = default["bytes"] / default["seconds"]["median"] if default.get("seconds") else None
        body[-1] += [
            cell(rate and rate / POPC, ".0%"),
            cell(rate and mma and rate / mma, ".0%"),
            cell(speed and copy and speed / copy, ".0%"),
            *(
                milliseconds(found.get((operation, "default"), {}))
                for operation in ("binary_conv", "binary_conv, w packed", "pack_signs")
            ),
        ]
    heads = [kernel or "default" for kernel in LADDER]
    shares = [f"of POPC's {POPC}", "of MMA's rate", "of copy speed"]
    return table(["layer", *heads, *shares, "ms", "ms, w packed", "ms, pack_signs"], body)


def low_bits_table(rows: list[dict]) -> str:
    """The crossover with uint8, whose kernel takes four terms per instruction."""
    heads = [f"{bits} bits" for bits in BITS]
    body = []
    for layer, found in _by_layer(rows, "adder_conv, w packed"):
        names = [*(f"adder_conv, w packed, {head}" for head in heads), "adder_conv, w packed"]
        body.append([layer, *(milliseconds(found.get((n, "default"), {})) for n in names)])
    return table(["layer, ms", *heads, "uint8"], body)


def _by_layer(rows: list[dict], operation: str) -> Iterator[tuple[str, dict]]:
    for layer in dict.fromkeys(r["layer"] for r in rows if r["operation"] == operation):
        found = [r for r in rows if r["layer"] == layer]
        yield layer, {(r["operation"], r["kernel"]): r for r in found}


def _bits_a_clock(row: dict, multiprocessors: int) -> float | None:
    if not row.get("seconds") or not row.get("clock_hz"):
        return None
    return row["terms"] / (row["seconds"]["median"] * row["clock_hz"] * multiprocessors)
