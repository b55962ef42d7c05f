"""The sparse Winograd convolution on the CPU by density, compared with conv2d, BLAS and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import reference, timing
from benchmarks.goals import summary
from benchmarks.layers import Layer
from mulfree_cupy import launch

LAYERS = [
    Layer(16, 64, 64, 32),
    Layer(16, 128, 128, 16),
    Layer(16, 256, 256, 8),
    Layer(8, 64, 64, 56),
    Layer(8, 256, 256, 14),
    Layer(1, 512, 512, 14),
]
QUICK = [Layer(2, 8, 12, 8)]
DENSITIES = (1, 0.6, 0.4, 0.35, 0.2, 0.1, 0.05)
KERNELS = "sparse", "blocks", "scipy"
DEFAULT = 0.4, 0.1  # densities at which the call without a kernel= is timed beside the one with it


@dataclass(frozen=True)
class Goal:
    """A ratio of two times, `over` / `under`, that should be at least `least(layer, features)`."""

    head: str
    over: str
    under: str
    least: Callable[[dict, str], float]


def always(least: float) -> Callable[[dict, str], float]:
    return lambda layer, features: least


def by_channels(
    few: float, many: float, narrower: float | None = None
) -> Callable[[dict, str], float]:
    """Other bounds from 128 channels on: with AVX-512, and with narrower instruction sets."""

    def least(layer: dict, features: str) -> float:
        if layer["channels"] < 128:
            return few
        return many if narrower is None or features == "avx512" else narrower

    return least


GOALS = [
    Goal("density 0.4 relative to conv2d", "conv2d", "default 0.4", by_channels(1.0, 2.5, 1.9)),
    Goal("density 0.1 relative to conv2d", "conv2d", "default 0.1", by_channels(1.5, 5, 3.5)),
    Goal("density 0.4 relative to SciPy", "scipy 0.4", "default 0.4", always(4)),
    Goal("density 0.1 relative to SciPy", "scipy 0.1", "default 0.1", always(4)),
    Goal("dense relative to im2col + BLAS", "im2col + BLAS", "dense", always(1.2)),
    Goal("dense F(4x4) relative to F(2x2)", "dense", "dense F(4x4)", by_channels(0, 1)),
    Goal("density 0.1 relative to kernel named", "sparse 0.1", "default 0.1", always(0.97)),
]
NOTES = """\
Winograd-ReLU layers, F(2x2, 3x3), transforms included; F(4x4): points 0, +-1, +-2. sparse: masks by
magnitude; blocks: by the magnitude of four filters' weights together. The first table times sparse
weights as users call them, without kernel=, the second by kernel. Each ratio is taken within a
round; the median over the rounds is shown. conv2d: torch (oneDNN), float32, contiguous or
channels_last, whichever is faster. im2col + BLAS: our im2col and NumPy's matmul, into buffers that
are there already. scipy: transforms in NumPy and 16 products csr_array @ dense on one thread.
Break-even: the density below which a kernel is faster, on a line between measured densities."""

STEADY = {"rounds": 5, "least": 0.03}
QUICKLY = {"rounds": 1, "least": 0.001}
PATIENCE = 20  # seconds a layer for repeating what other processes disturbed


def run(layers: list[Layer], threads: int, out: Path | None, quick: bool) -> int:
    """Check and time the layers, print the tables, write them to `out`; the exit status."""
    settings = QUICKLY if quick else STEADY
    quiet = timing.Quiet()
    record = {
        "benchmark": "winograd",
        "machine": timing.machine("torch", "scipy"),
        "threads": threads,
        "cpu_features": launch.cpu_kernels().features(),
        **settings,
        "layers": [],
    }
    for layer in timing.progress(layers, "layer"):
        quiet.patience = 0 if quick else PATIENCE
        record["layers"].append(measure(layer, threads, quiet, **settings))
        record |= {"measurements": quiet.taken, "disturbed": quiet.disturbed}
        if out is not None:
            file = timing.write_json(record, out, "winograd-cpu")
    print(document(record))
    if out is not None:
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"\nwritten: {file.name} and what stands beside it")
    return 0


def measure(layer: Layer, threads: int, quiet: timing.Quiet, rounds: int, least: float) -> dict:
    """Check every answer, then time everything in `rounds` interleaved rounds."""
    x, w, grad = layer.floats()
    calls = convolutions(layer, x, w, threads)
    expected = reference.conv(layer, x[[0, -1]], w)
    for name, call in calls.items():
        y = np.asarray(call())[[0, -1]]
        reference.agree(layer, name, reference.rows(y), expected, 1e-4)

    weights = mf.WinogradWeights.from_spatial(w)
    ours = {"dense": (weights, "dense")}
    for density in DENSITIES:
        pruned = weights.prune(density), weights.prune(density, block=4)
        for name, form in zip(KERNELS, (pruned[0], pruned[1], pruned[0]), strict=True):
            ours[f"{name} {density:g}"] = form, name
        if density in DEFAULT:
            ours[f"default {density:g}"] = pruned[0], None
    for name, (form, kernel) in ours.items():
        check(layer, name, x, form, kernel)
    four = mf.WinogradWeights.from_spatial(w, 4)
    ours["dense F(4x4)"] = four, "dense"
    calls |= {name: winograd(x, *form) for name, form in ours.items()}
    calls["backward"] = lambda: mf.winograd_conv_backward(grad, x, weights, relu=True)

    cases = {name: _timed(call, least) for name, call in calls.items()}
    seconds = timing.interleaved(cases, rounds, quiet)
    layouts = [name for name in seconds if name.startswith("conv2d ")]
    if layouts:
        seconds["conv2d"] = seconds[min(layouts, key=lambda name: np.median(seconds[name]))]
    return {"name": layer.name, "channels": layer.channels, "seconds": seconds}


def _timed(call, least):
    return lambda: timing.call_seconds(call, least)


def winograd(x, weights, kernel):
    return lambda: mf.winograd_conv(x, weights, relu=True, kernel=kernel)


def check(layer: Layer, name: str, x: np.ndarray, weights, kernel: str | None) -> None:
    """Compare a kernel with SciPy's products in float64, on the first image and the last."""
    ends = x[[0, -1]]
    y = mf.winograd_conv(x, weights, relu=True, kernel=kernel)[[0, -1]]
    exact = weights.astype(np.float64)
    expected = mf.winograd_conv(ends.astype(np.float64), exact, relu=True, kernel="scipy")
    reference.agree(layer, name, y, expected, 1e-5)


def convolutions(layer: Layer, x: np.ndarray, w: np.ndarray, threads: int) -> dict[str, Callable]:
    """The same layer as an ordinary convolution, by those libraries that are there."""
    columns = np.empty((layer.batch, layer.taps, layer.out_size**2), np.float32)
    answer = np.empty((layer.batch, layer.filters, layer.out_size**2), np.float32)
    filters, padding = w.reshape(len(w), -1), ((layer.padding,) * 2,) * 2

    def im2col():
        launch.cpu_kernels().im2col(x, columns, (3, 3), (1, 1), padding, (1, 1))
        return np.matmul(filters, columns, out=answer).reshape(layer.out_shape)

    calls = {"im2col + BLAS": im2col}
    try:
        import torch
    except ImportError:
        return calls
    torch.set_num_threads(threads)

    def conv2d(form):
        tx, tw = (torch.from_numpy(a).contiguous(memory_format=form) for a in (x, w))

        def call():
            with torch.inference_mode():
                return torch.conv2d(tx, tw, **layer.options)

        return call

    calls["conv2d contiguous"] = conv2d(torch.contiguous_format)
    calls["conv2d channels_last"] = conv2d(torch.channels_last)
    return calls


def document(record: dict) -> str:
    """Everything as markdown."""
    rows, features = record["layers"], record["cpu_features"]
    tables = goal_table(rows), density_table(rows), even_table(rows)
    return "\n\n".join([summary(record), *tables, NOTES, goals(rows, features)])


def goal_table(rows: list[dict]) -> str:
    """The ratios that have goals, and dense products, F(4x4) and the backward pass."""
    more = [
        ("dense relative to conv2d", "conv2d", "dense"),
        ("dense F(4x4) relative to conv2d", "conv2d", "dense F(4x4)"),
        ("backward / dense", "backward", "dense"),
    ]
    ratios = [(g.head, g.over, g.under) for g in GOALS] + more
    body = [[row["name"], *(_cell(row, over, under) for _, over, under in ratios)] for row in rows]
    return timing.table(["layer", *(head for head, _, _ in ratios)], body)


def density_table(rows: list[dict]) -> str:
    """Speed relative to conv2d, by kernel and density."""
    body = [
        [f"{row['name']} {kernel}", *(_cell(row, "conv2d", f"{kernel} {d:g}") for d in DENSITIES)]
        for row in rows
        for kernel in KERNELS
    ]
    return timing.table(["speed relative to conv2d", *(f"{d:g}" for d in DENSITIES)], body)


def even_table(rows: list[dict]) -> str:
    """Break-even densities."""
    against = "conv2d", "dense"
    head = ["break-even density", *(f"{k} : {other}" for k in KERNELS for other in against)]
    body = [
        [row["name"], *(_even(row, kernel, other) for kernel in KERNELS for other in against)]
        for row in rows
    ]
    return timing.table(head, body)


def _even(row: dict, kernel: str, other: str) -> str:
    return break_even(
        {d: timing.ratio(row["seconds"], f"{kernel} {d:g}", other) for d in DENSITIES}
    )


def break_even(ratios: dict[float, float | None]) -> str:
    """The density below which a time falls below another, from their ratios by falling density."""
    if None in ratios.values():
        return "-"
    for (d, high), (e, low) in pairwise(ratios.items()):
        if high <= 1:
            return f"{d:.2f}"
        if low <= 1:
            return f"{e + (d - e) * (1 - low) / (high - low):.2f}"
    return f"< {min(ratios):g}"


def goals(rows: list[dict], features: str) -> str:
    """A line a goal: on how many layers it is met, and where it is not."""
    lines = []
    for goal in GOALS:
        values = [(row, timing.ratio(row["seconds"], goal.over, goal.under)) for row in rows]
        values = [(row, value) for row, value in values if value is not None]
        below = [row["name"] for row, value in values if value < goal.least(row, features)]
        bounds = sorted({f"{goal.least(row, features):g}" for row in rows})
        verdict = "not measured"
        if values:
            verdict = f"met on {len(values) - len(below)} of {len(values)} layers"
        verdict += f", not on {'; '.join(below)}" if below else ""
        lines.append(f"- {goal.head}, goal {' to '.join(bounds)}: {verdict}")
    return "\n".join(lines)


def _cell(row: dict, over: str, under: str) -> str:
    return timing.cell(timing.ratio(row["seconds"], over, under))
