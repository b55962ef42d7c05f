"""One image at a time: convolutions with packed weights, compared with PyTorch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import goals, peers, reference, timing
from benchmarks.goals import Column
from benchmarks.layers import QUICK as QUICK_LAYERS
from benchmarks.layers import Layer
from mulfree_cupy import launch

# Every convolution of ResNet-20 on CIFAR images.
LAYERS = [
    Layer(1, 3, 16, 32),
    Layer(1, 16, 16, 32),
    Layer(1, 16, 32, 32, stride=2),
    Layer(1, 16, 32, 32, kernel=1, stride=2),
    Layer(1, 32, 32, 16),
    Layer(1, 32, 64, 16, stride=2),
    Layer(1, 32, 64, 16, kernel=1, stride=2),
    Layer(1, 64, 64, 8),
]
COLUMNS = [
    Column("conv, time relative to conv2d", "conv", "conv2d", ".2f", 1.3, at_most=True),
    Column("adder_conv", "adder_conv", "conv2d"),
    Column("adder_conv uint8", "adder_conv uint8", "conv2d"),
    Column("conv, packed in the call", "conv of w", "conv2d"),
]
NOTES = """\
Times of one image, weights packed before (`mulfree_cupy.pack`), but for the last column; each ratio
is taken within a round, and the median over the rounds is shown. conv2d: torch (oneDNN), float32,
contiguous or channels_last, whichever is faster; it packs its weights in every call."""

STEADY = {"rounds": 11, "least": 0.03}
QUICK = {"rounds": 2, "least": 0.001}
PATIENCE = 20.0  # seconds to wait for the machine to be free, a layer


def run(threads: int, quick: bool, out: Path | None) -> int:
    """Check and time every layer, print the table, and write the figures to `out`."""
    settings = QUICK if quick else STEADY
    quiet = timing.Quiet(PATIENCE)
    record = {
        "benchmark": "batch1",
        "machine": timing.machine("torch"),
        "threads": threads,
        "cpu_features": launch.cpu_kernels().features(),
        **settings,
        "layers": [],
    }
    layers = [layer.with_batch(1) for layer in QUICK_LAYERS] if quick else LAYERS
    for layer in timing.progress(layers, "layer"):
        quiet.patience = 0 if quick else PATIENCE
        record["layers"].append(measure(layer, threads, quiet, **settings))
        record |= {"measurements": quiet.taken, "disturbed": quiet.disturbed}
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, "batch1-cpu")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"\nwritten: {file.name} and what stands beside it")
    return 0


def measure(layer: Layer, threads: int, quiet: timing.Quiet, rounds: int, least: float) -> dict:
    """Check, then time one layer."""
    x, w, _ = layer.floats()
    bytes_x, bytes_w = layer.bytes()
    conv, adder, adder8 = mf.pack(w, "conv"), mf.pack(w, "adder"), mf.pack(bytes_w, "adder")
    options = layer.options
    calls = {
        "conv": lambda: mf.conv(x, conv, **options),
        "adder_conv": lambda: mf.adder_conv(x, adder, **options),
        "adder_conv uint8": lambda: mf.adder_conv(bytes_x, adder8, **options),
        "conv of w": lambda: mf.conv(x, w, **options),
    }
    expected = {
        "conv": reference.conv(layer, x, w),
        "adder_conv": reference.adder(layer, x, w),
        "adder_conv uint8": reference.adder(layer, bytes_x, bytes_w),
    }
    for name, answer in expected.items():
        tolerance = 0 if "uint8" in name else 1e-5
        reference.agree(layer, name, reference.rows(calls[name]()), answer, tolerance)
    calls |= {
        peer.name: peer.call
        for peer in peers.available(layer, x, w, threads)
        if peer.name in ("conv2d contiguous", "conv2d channels_last")
    }
    cases = {name: timing.case(call, least) for name, call in calls.items()}
    seconds = timing.interleaved(cases, rounds, quiet)
    timing.choose_fastest(seconds, "conv2d", "conv2d contiguous", "conv2d channels_last")
    ratios = goals.ratios(seconds, COLUMNS)
    return {"name": layer.name, "terms": layer.terms, "seconds": seconds, "ratios": ratios}


def document(record: dict) -> str:
    """Everything as markdown."""
    rows = record["layers"]
    return "\n\n".join([goals.summary(record), table(rows), NOTES, goals.verdicts(rows, COLUMNS)])


def table(rows: list[dict]) -> str:
    """A row a layer: microseconds of `conv`, and the ratios."""

    def first(row: dict) -> list[str]:
        return [row["name"], timing.cell(1e6 * np.median(row["seconds"]["conv"]), ".1f")]

    return goals.table(["layer", "us"], rows, first, COLUMNS)
