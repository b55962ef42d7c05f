"""The adder convolution on the CPU, compared with other libraries and with its limit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import goals, peers, reference, timing
from benchmarks.goals import Column, Mean
from benchmarks.layers import Layer
from mulfree_cupy import launch

SPEED, UINT8, CONV = (
    "speed relative to conv2d",
    "uint8 relative to conv2d float32",
    "our conv relative to conv2d",
)


def is_3x3(name: str) -> bool:
    return "1x1" not in name


def is_dense(name: str) -> bool:
    """Of stride 1, with windows that overlap: arithmetic is the limit, not copying."""
    return is_3x3(name) and " s" not in name


# "max/add peak" and "max/dot peak" are the time the layer would take at that peak, "nearer limit"
# the longer of that and the time of copying.
GOALS = [
    Column("of max/add peak", "max/add peak", "adder_conv", ".0%", 0.80, where=is_dense),
    Column("of the nearer limit", "nearer limit", "adder_conv", ".0%", 0.60,
           where=lambda name: not is_dense(name)),
    Column(SPEED, "conv2d", "adder_conv"),
    Column("times torch.cdist", "torch.cdist", "adder_conv", ".0f", 20),
    Column(UINT8, "conv2d", "adder_conv uint8"),
    Column(CONV, "conv2d", "conv"),
    Column("backward / forward", "adder_conv_backward", "adder_conv", ".2f", 2.5, at_most=True),
]  # fmt: skip
MEANS = [
    Mean(SPEED, {"avx512": 0.56, "avx2": 0.54}),
    Mean(UINT8, {"avx512": 2.2, "avx2": 2.3}, "the 3x3 layers", is_3x3),
    Mean(CONV, {"avx512": 0.9, "avx2": 0.9}),
]
BESIDE = [
    Column("of copying x, y", "copy", "adder_conv", ".0%"),
    Column("uint8 of copying x, y", "copy uint8", "adder_conv uint8", ".0%"),
    Column("times published", "published", "adder_conv", ".0f"),
    Column("times scipy cdist", "scipy cdist", "adder_conv", ".0f"),
    Column("times FAISS L1", "faiss", "adder_conv", ".1f"),
    Column("uint8 of max/dot peak", "max/dot peak", "adder_conv uint8", ".0%"),
    Column("conv2d int8 relative to conv2d", "conv2d", "conv2d int8"),
]
NOTES = """\
A term is one abs(x - w). Each ratio is taken within a round; the median over the rounds is shown.
max/add peak: measured in the same rounds, a loop of vector maxima and additions on registers.
An L1 term costs two vector instructions (max, add) where a product costs one FMA: half of conv2d's
rate in float32 is the limit where these share their pipes. A Zen 4 or 5 with AVX-512 adds by an
FMA, beside the maxima: there conv2d's own rate is the limit. In uint8 it is 2.3 times that of FMAs
(max, dot: 2 for 64 bytes; AVX2 sums eight bytes a lane: psadbw, add).
of copying x, y: the other limit, the time of copying (NumPy, on the same threads, their start
included) as many bytes as the rows of x that are read
and y have. The nearer limit is the longer of the two times. The goal of the max/add peak is for
the 3x3 layers of stride 1, that of the nearer limit for the others.
conv2d: torch (oneDNN), float32, contiguous or channels_last, whichever is faster.
torch.cdist, scipy and FAISS are given the unfolded input, without timing the unfolding; scipy
uses one thread. The published formula and scipy run on some images and are scaled to the batch.
backward: both gradients. With --features, torch, oneDNN, OpenBLAS and FAISS are restricted
to that instruction set too."""

STEADY = {"rounds": 7, "least": 0.05}
QUICK = {"rounds": 2, "least": 0.001}
PATIENCE = 15  # seconds a layer for repeating what other processes disturbed


def run(layers: list[Layer], threads: int, out: Path | None, quick: bool) -> int:
    """Check and time the layers, print the tables, write them to `out`; the exit status."""
    settings = QUICK if quick else STEADY
    quiet = timing.Quiet()
    absent = peers.missing()
    if absent:
        print(f"left out, not installed: {', '.join(absent)}")
    record = {
        "benchmark": "adder",
        "machine": timing.machine("torch", "scipy", "faiss-cpu"),
        "threads": threads,
        "cpu_features": launch.cpu_kernels().features(),
        **settings,
        "layers": [],
    }
    for layer in timing.progress(layers, "layer"):
        quiet.patience = 0 if quick else PATIENCE
        record["layers"].append(measure(layer, threads, quiet, **settings))
        record |= {"measurements": quiet.taken, "disturbed": quiet.disturbed}
        if out is not None:  # now, so that an interrupted run keeps its results
            file = timing.write_json(record, out, "adder-cpu")
    print(document(record))
    if out is not None:
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        plot(record, file.with_suffix(".png"))
        print(f"\nwritten: {file.name} and what stands beside it")
    return 0


def measure(layer: Layer, threads: int, quiet: timing.Quiet, rounds: int, least: float) -> dict:
    """Check every answer, then time everything in `rounds` interleaved rounds."""
    x, w, grad = layer.floats()
    bytes_x, bytes_w = layer.bytes()
    check(layer, grad, x, w, bytes_x, bytes_w)
    beside = peers.available(layer, x, w, threads)
    check_peers(layer, x, w, beside)

    options = layer.options
    calls = {
        "adder_conv": lambda: mf.adder_conv(x, w, **options),
        "adder_conv uint8": lambda: mf.adder_conv(bytes_x, bytes_w, **options),
        "adder_conv_backward": lambda: mf.adder_conv_backward(grad, x, w, **options),
        "conv": lambda: mf.conv(x, w, **options),
    }
    cases = {name: timing.case(call, least) for name, call in calls.items()}
    cases |= {p.name: timing.case(p.call, least, layer.batch / p.images) for p in beside}
    peak = getattr(launch.cpu_kernels(), "peak", None)
    if peak is not None:
        cases["max/add peak"] = lambda: layer.terms / peak("max_add", least)
        cases["max/dot peak"] = lambda: layer.terms / peak("u8_max_dot", least)

    with ThreadPoolExecutor(threads) as pool:
        for name, a in (("copy", x), ("copy uint8", bytes_x)):
            call = copy(layer.moved_bytes(a.itemsize), pool, threads)
            cases[name] = timing.case(call, least)
        seconds = timing.interleaved(cases, rounds, quiet)
    timing.choose_fastest(seconds, "conv2d", "conv2d contiguous", "conv2d channels_last")
    if peak is not None:
        limits = zip(seconds["max/add peak"], seconds["copy"], strict=True)
        seconds["nearer limit"] = [max(both) for both in limits]
    ratios = goals.ratios(seconds, GOALS + BESIDE)
    return {"name": layer.name, "terms": layer.terms, "seconds": seconds, "ratios": ratios}


def copy(size: int, pool: ThreadPoolExecutor, threads: int) -> Callable[[], None]:
    """A call that reads and writes `size` bytes in all, a part in each thread."""
    source, to = np.ones((2, threads, size // (2 * threads)), np.uint8)
    return lambda: list(pool.map(np.copyto, to, source))


def check(layer, grad, x, w, bytes_x, bytes_w) -> None:
    """Compare our functions with the float64 formulas on the first and the last image."""
    ends = [0, layer.batch - 1]
    options = layer.options

    def compare(name, y, expected, tolerance):
        reference.agree(layer, name, reference.rows(y[ends]), expected, tolerance)

    y = mf.adder_conv(x, w, **options)
    compare("adder_conv", y, reference.adder(layer, x[ends], w), 1e-5)
    y = mf.adder_conv(bytes_x, bytes_w, **options)
    compare("adder_conv uint8", y, reference.adder(layer, bytes_x[ends], bytes_w), 0)
    y = mf.conv(x, w, **options)
    compare("conv", y, reference.conv(layer, x[ends], w), 1e-5)

    expected_x, expected_w = reference.adder_backward(layer, grad[:1], x[:1], w)
    grad_x, _ = mf.adder_conv_backward(grad, x, w, **options)
    reference.agree(layer, "adder_conv_backward grad_x", grad_x[:1], expected_x, 1e-5)
    _, grad_w = mf.adder_conv_backward(grad[:1], x[:1], w, **options)
    reference.agree(layer, "adder_conv_backward grad_w", grad_w, expected_w, 1e-5)


def check_peers(layer: Layer, x, w, beside: list[peers.Peer]) -> None:
    """Compare the peers with our result, which was checked against the formulas at its ends."""
    ours = {
        "adder_conv": reference.rows(mf.adder_conv(x, w, **layer.options)),
        "conv": reference.rows(mf.conv(x, w, **layer.options)),
    }
    for peer in beside:
        expected = ours[peer.expected][: peer.images * layer.out_size**2]
        reference.agree(layer, peer.name, peer.rows(peer.call()), expected, peer.tolerance)


def document(record: dict) -> str:
    """Everything as markdown."""
    rows = record["layers"]
    parts = goals.summary(record), goal_table(rows), beside_table(rows), NOTES
    return "\n\n".join([*parts, verdicts(record)])


def verdicts(record: dict) -> str:
    """One line per goal."""
    rows = record["layers"]
    means = [mean.verdict(rows, record["cpu_features"]) for mean in MEANS]
    return "\n".join([*means, goals.verdicts(rows, GOALS)])


def goal_table(rows: list[dict]) -> str:
    """Our times, and their ratios against the goals."""

    def first(row):
        seconds = float(np.median(row["seconds"]["adder_conv"]))
        return [row["name"], f"{seconds * 1e3:.2f}", f"{row['terms'] / seconds / 1e9:.1f}"]

    return goals.table(["layer", "ms", "G terms/s"], rows, first, GOALS)


def beside_table(rows: list[dict]) -> str:
    """Ratios to other libraries that carry no goal."""
    return goals.table(["layer"], rows, lambda row: [row["name"]], BESIDE)


def plot(record: dict, file: Path) -> None:
    """Bar chart of our speed relative to conv2d by layer; nothing without conv2d or matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [r for r in record["layers"] if r["ratios"][SPEED] is not None]
    if not rows:
        return
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    at = np.arange(len(rows))
    features = record["cpu_features"]
    for mean, shift, label in zip(MEANS[:2], (-0.2, 0.2), ("float32", "uint8"), strict=True):
        bars = axes.bar(at + shift, [r["ratios"][mean.head] for r in rows], 0.4, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
        if features in mean.goal:
            colour = bars[0].get_facecolor()
            axes.axhline(mean.goal[features], color=colour, linestyle="--", linewidth=0.8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(at, [r["name"].replace(" ", "\n", 1) for r in rows], fontsize=7)
    axes.set_ylabel("speed relative to conv2d float32")
    axes.set_title(f"adder_conv beside torch conv2d, {features} (dashed: goals of the means)")
    axes.legend()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
