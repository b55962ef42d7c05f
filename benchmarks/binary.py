"""The binary convolution and the low-bit adder on the CPU, compared with what they replace."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import goals, peers, reference, timing
from benchmarks.goals import Column
from benchmarks.layers import RESNET18, RESNET20, Layer
from mulfree_cupy import launch

VGG_SMALL = [
    Layer(32, 128, 128, 32),
    Layer(32, 128, 256, 16),
    Layer(32, 256, 256, 16),
    Layer(32, 256, 512, 8),
    Layer(32, 512, 512, 8),
]
LAYERS = RESNET20 + RESNET18 + VGG_SMALL
BITS = 1, 2, 3, 4
GIGA_TERMS = 92  # per second and thread, of bitnet.cpp's 2-bit product on x86


def is_wide(name: str) -> bool:
    """Whether there are enough channels to fill words."""
    return int(name.split()[1].partition("->")[0]) >= 64


COLUMNS = [
    Column("speed relative to conv2d", "conv2d", "binary_conv", ".1f", 6, 12, where=is_wide),
    Column("packed before", "conv2d", "packed", ".1f", 6, 12, where=is_wide),
    Column("relative to our conv", "conv", "binary_conv", ".1f"),
    Column("relative to uint8 adder", "uint8", "binary_conv", ".1f"),
    Column("of popcount peak", "popcount peak", "packed", ".0%"),
]
LOW_BIT = [
    Column("1 bit relative to uint8", "uint8", "1 bit"),
    Column("2 bits relative to uint8", "uint8", "2 bits", goal=2, where=is_wide),
    Column("3 bits", "uint8", "3 bits"),
    Column("4 bits", "uint8", "4 bits"),
    Column("2 bits relative to 92 G terms/s a thread", "92 G terms/s", "2 bits", goal=1, aim=3),
    Column("2 bits, of popcount peak", "popcount peak of 2 bits", "2 bits", ".0%"),
    Column("uint8, of its peak", "max/dot peak", "uint8", ".0%"),
]
NOTES = """\
Each ratio is taken within a round; the median over the rounds is shown. binary_conv: x and w are
float32, whose signs are packed in the call; "packed before": w alone by `mulfree_cupy.pack`.
popcount peak: the time the layer would take at the rate of its inner loop, measured in the same
rounds: logic, population counts and additions on registers, with AVX2 tiles of look-ups in tables.
conv2d: torch (oneDNN), float32, contiguous or channels_last, whichever is faster. The weights of
the adders are packed before. With more bits an adder is that of uint8."""

STEADY = {"rounds": 7, "least": 0.05}
QUICK = {"rounds": 2, "least": 0.001}
PATIENCE = 15  # seconds a layer for repeating what other processes disturbed


def run(layers: list[Layer], threads: int, out: Path | None, quick: bool) -> int:
    """Check and time the layers, print the tables, write them to `out`; the exit status."""
    settings = QUICK if quick else STEADY
    quiet = timing.Quiet()
    record = {
        "benchmark": "binary",
        "machine": timing.machine("torch"),
        "threads": threads,
        "cpu_features": launch.cpu_kernels().features(),
        **settings,
        "layers": [],
    }
    for layer in timing.progress(layers, "layer"):
        quiet.patience = 0 if quick else PATIENCE
        record["layers"].append(measure(layer, threads, quiet, **settings))
        record |= {"measurements": quiet.taken, "disturbed": quiet.disturbed}
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, "binary-cpu")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"\nwritten: {file.name} and what stands beside it")
    return 0


def measure(layer: Layer, threads: int, quiet: timing.Quiet, rounds: int, least: float) -> dict:
    """Check, then time one layer."""
    x, w, _ = layer.floats()
    options, bytes_x, bytes_w = layer.options, *layer.bytes()
    packed, uint8 = mf.pack(w, "binary"), mf.pack(bytes_w, "adder")
    calls = {
        "binary_conv": lambda: mf.binary_conv(x, w, **options),
        "packed": lambda: mf.binary_conv(x, packed, **options),
        "conv": lambda: mf.conv(x, w, **options),
        "uint8": lambda: mf.adder_conv(bytes_x, uint8, **options),
    } | {name(bits): low_bit(layer, bits) for bits in BITS}
    check(layer, x, w, calls)
    calls |= {
        peer.name: peer.call
        for peer in peers.available(layer, x, w, threads)
        if peer.name in ("conv2d contiguous", "conv2d channels_last")
    }
    cases = {name: timing.case(call, least) for name, call in calls.items()}
    peak = getattr(launch.cpu_kernels(), "peak", None)
    if peak is not None:
        cases["popcount peak"] = lambda: layer.terms / peak("popcount", least)
        cases["popcount peak of 2 bits"] = lambda: layer.terms / peak("popcount_2_bits", least)
        cases["max/dot peak"] = lambda: layer.terms / peak("u8_max_dot", least)
    seconds = timing.interleaved(cases, rounds, quiet)
    timing.choose_fastest(seconds, "conv2d", "conv2d contiguous", "conv2d channels_last")
    seconds["92 G terms/s"] = [layer.terms / (threads * GIGA_TERMS * 1e9)] * rounds
    ratios = goals.ratios(seconds, COLUMNS + LOW_BIT)
    return {"name": layer.name, "terms": layer.terms, "seconds": seconds, "ratios": ratios}


def name(bits: int) -> str:
    return f"{bits} bit" if bits == 1 else f"{bits} bits"


def low_bit(layer: Layer, bits: int):
    """A call of the adder on numbers of `bits` bits."""
    x, w = (a >> (8 - bits) for a in layer.bytes())
    packed = mf.pack(w, "adder", bits=bits)
    return lambda: mf.adder_conv(x, packed, bits=bits, **layer.options)


def check(layer: Layer, x, w, calls: dict) -> None:
    """Compare the results with the float64 formulas on the first and the last image."""
    ends = [0, layer.batch - 1]
    sign = lambda a: np.where(a >= 0, 1.0, -1.0)  # noqa: E731
    expected = reference.conv(layer, sign(x[ends]), sign(w)) * abs(w).mean(axis=(1, 2, 3))
    for name_ in ("binary_conv", "packed"):
        reference.agree(layer, name_, reference.rows(calls[name_]()[ends]), expected, 1e-6)
    for bits in BITS:
        low_x, low_w = (a >> (8 - bits) for a in layer.bytes())
        answer = reference.rows(calls[name(bits)]()[ends])
        reference.agree(layer, name(bits), answer, reference.adder(layer, low_x[ends], low_w), 0)


def document(record: dict) -> str:
    """Everything as markdown."""
    rows = record["layers"]
    parts = goals.summary(record), binary_table(rows), low_bit_table(rows), NOTES
    return "\n\n".join([*parts, goals.verdicts(rows, COLUMNS + LOW_BIT)])


def binary_table(rows: list[dict]) -> str:
    """The binary convolution's times, and its ratios."""

    def first(row: dict) -> list[str]:
        seconds = float(np.median(row["seconds"]["binary_conv"]))
        return [row["name"], f"{seconds * 1e3:.3f}", f"{row['terms'] / seconds / 1e9:.0f}"]

    return goals.table(["layer", "ms", "G terms/s"], rows, first, COLUMNS)


def low_bit_table(rows: list[dict]) -> str:
    """Where an adder of few bits is faster than that of uint8."""

    def first(row: dict) -> list[str]:
        seconds = float(np.median(row["seconds"]["2 bits"]))
        return [row["name"], f"{row['terms'] / seconds / 1e9:.0f}"]

    return goals.table(["layer", "2 bits, G terms/s"], rows, first, LOW_BIT)
