"""The adder convolution on the CPU, beside other libraries: speed, and how near the limit it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import goals, peers, reference, timing
from benchmarks.goals import Column
from benchmarks.layers import Layer
from mulfree_cupy import launch

# "max/add peak" and "max/dot peak" stand for the time the layer would take at that peak.
GOALS = [
    Column("of max/add peak", "max/add peak", "adder_conv", ".0%", 0.70, 0.85),
    Column("speed, conv2d = 1", "conv2d", "adder_conv", ".2f", 0.40, 0.55),
    Column("times torch.cdist", "torch.cdist", "adder_conv", ".0f", 20),
    Column("uint8, conv2d float32 = 1", "conv2d", "adder_conv uint8", ".2f", 1.5, 2.3),
    Column("backward / forward", "adder_conv_backward", "adder_conv", ".2f", 3, at_most=True),
]
BESIDE = [
    Column("of copying x, y", "copy", "adder_conv", ".0%"),
    Column("uint8 of copying x, y", "copy uint8", "adder_conv uint8", ".0%"),
    Column("times published", "published", "adder_conv", ".0f"),
    Column("times scipy cdist", "scipy cdist", "adder_conv", ".0f"),
    Column("times FAISS L1", "faiss", "adder_conv", ".1f"),
    Column("uint8 of max/dot peak", "max/dot peak", "adder_conv uint8", ".0%"),
    Column("conv2d int8, conv2d = 1", "conv2d", "conv2d int8"),
    Column("our conv, conv2d = 1", "conv2d", "conv"),
]
NOTES = """\
A term is one abs(x - w). Each ratio is taken within a round; the median over the rounds is shown.
max/add peak: measured in the same rounds, a loop of vector maxima and additions on registers.
An L1 term costs two vector instructions (max, add) where a product costs one FMA, so 0.55 of
conv2d is the instruction limit in float32, and 2.3 in uint8 (max, dot: 2 for 64 bytes).
of copying x, y: the other limit, the time of copying (NumPy, on the same threads, their start
included) as many bytes as the rows of x that are read
and y have. The larger of the two fractions tells which limit is the nearer one.
conv2d: torch (oneDNN), float32, contiguous or channels_last, whichever is faster.
torch.cdist, scipy and FAISS are given the unfolded input, whose making is not in their time; scipy
uses one thread. The published formula and scipy run on some images and are scaled to the batch.
backward: both gradients."""

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
        if out is not None:  # now, so that a run that is cut off leaves what it has
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
    ratios = goals.ratios(seconds, GOALS + BESIDE)
    return {"name": layer.name, "terms": layer.terms, "seconds": seconds, "ratios": ratios}


def copy(size: int, pool: ThreadPoolExecutor, threads: int) -> Callable[[], None]:
    """A call that reads and writes `size` bytes in all, a part in each thread."""
    source, to = np.ones((2, threads, size // (2 * threads)), np.uint8)
    return lambda: list(pool.map(np.copyto, to, source))


def check(layer, grad, x, w, bytes_x, bytes_w) -> None:
    """Hold our functions to the float64 formulas on the first and the last image."""
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
    """Hold the peers to our answer, of which the formulas have seen the ends."""
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
    return "\n\n".join([*parts, goals.verdicts(rows, GOALS)])


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
    """Bars of our speed relative to conv2d's, a layer each; nothing without conv2d, matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [r for r in record["layers"] if r["ratios"]["speed, conv2d = 1"] is not None]
    if not rows:
        return
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    at = np.arange(len(rows))
    heads = [GOALS[1].head, GOALS[3].head]
    for shift, head, label in zip((-0.2, 0.2), heads, ("float32", "uint8"), strict=True):
        bars = axes.bar(at + shift, [r["ratios"][head] for r in rows], 0.4, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    for column, colour in ((GOALS[1], "C0"), (GOALS[3], "C1")):
        axes.axhline(column.goal, color=colour, linestyle="--", linewidth=0.8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(at, [r["name"].replace(" ", "\n", 1) for r in rows], fontsize=7)
    axes.set_ylabel("speed, conv2d float32 = 1")
    axes.set_title("adder_conv beside torch conv2d (dashed: goals)")
    axes.legend()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
