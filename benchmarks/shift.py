"""The shift operations on the CPU, compared with memcpy and torch's convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import goals, reference, timing
from benchmarks.goals import Column, Mean
from benchmarks.layers import Layer
from mulfree_cupy import launch

MOVES = [
    Column("speed relative to memcpy", "memcpy", "shift"),
    Column("backward", "memcpy", "shift_backward"),
    Column("stride 2, its bytes", "memcpy a quarter", "shift stride 2"),
    Column("NumPy slices", "memcpy", "NumPy slices"),
]
MEAN = Mean("speed relative to memcpy", {"avx512": 0.9, "avx2": 0.85}, "all sizes")

GOALS = [
    Column("time relative to 1x1", "shift_conv", "1x1", goal=1.05, at_most=True),
    Column("speed relative to depthwise + 1x1", "depthwise + 1x1", "shift_conv", goal=1.3, aim=2),
    Column("speed relative to conv2d 3x3", "conv2d 3x3", "shift_conv", ".1f", goal=5),
]
BESIDE = [
    Column("time relative to our 1x1", "shift_conv", "conv"),
    Column("speed relative to shift then our 1x1", "shift + conv", "shift_conv"),
    Column("backward / forward", "shift_conv_backward", "shift_conv"),
    Column("shift_adder_conv, time", "shift_adder_conv", "shift_conv"),
    Column("its backward / forward", "shift_adder_conv_backward", "shift_adder_conv"),
]
NOTES = """\
Shifts are modulo_shifts(C), kernel size 3. Each ratio is taken within a round; the median over the
rounds is shown. memcpy: torch's copy_ of the same array on the same threads, into allocated
memory; shift too writes into an existing array. The speed of both depends on the
physical pages of the arrays, so rounds are spread over several sets of arrays.
1x1, depthwise + 1x1, conv2d 3x3: torch (oneDNN), float32, no bias, contiguous or channels_last,
whichever is faster. Ours and torch's allocate their outputs.
backward: both gradients."""

STEADY = {"rounds": 15, "least": 0.03}
QUICK = {"rounds": 2, "least": 0.001}
PLACEMENTS = 5  # sets of arrays for the bare shift
PATIENCE = 15  # seconds a layer for repeating what other processes disturbed


def run(
    layers: list[Layer], moves: list[Layer], threads: int, out: Path | None, quick: bool
) -> int:
    """Check and time everything, print the tables, write them to `out`; the exit status."""
    settings = QUICK if quick else STEADY
    quiet = timing.Quiet()
    record = {
        "benchmark": "shift",
        "machine": timing.machine("torch"),
        "threads": threads,
        "cpu_features": launch.cpu_kernels().features(),
        **settings,
        "moves": [],
        "layers": [],
    }
    todo = [("moves", measure_move, a) for a in moves] + [("layers", measure, a) for a in layers]
    for part, function, layer in timing.progress(todo, "layer"):
        quiet.patience = 0 if quick else PATIENCE
        record[part].append(function(layer, threads, quiet, **settings))
        record |= {"measurements": quiet.taken, "disturbed": quiet.disturbed}
        if out is not None:  # now, so that an interrupted run keeps its results
            file = timing.write_json(record, out, "shift-cpu")
    print(document(record))
    if out is not None:
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"\nwritten: {file.name} and what stands beside it")
    return 0


def measure_move(
    layer: Layer, threads: int, quiet: timing.Quiet, rounds: int, least: float
) -> dict:
    """Check, then time the bare shift of the layer's input."""
    x, shifts = layer.floats()[0], mf.modulo_shifts(layer.channels)
    moved = np.empty_like(x)
    slices(x, shifts, moved)
    reference.agree(layer, "shift", mf.shift(x, shifts), moved, 0)
    half = mf.shift(x, shifts, stride=2)
    reference.agree(layer, "shift, stride 2", half, moved[..., ::2, ::2], 0)
    seconds: timing.Seconds = {}
    kept = []  # alive, so that the next arrays lie elsewhere
    for _ in range(PLACEMENTS):
        kept.append(calls := _moves(x.copy(), shifts, threads))
        cases = {name: timing.case(call, least) for name, call in calls.items()}
        rounds_here = -(-rounds // PLACEMENTS)
        for name, times in timing.interleaved(cases, rounds_here, quiet).items():
            seconds.setdefault(name, []).extend(times)
    ratios = goals.ratios(seconds, MOVES)
    size = f"N{layer.batch} {layer.channels}@{layer.size}"
    return {"name": size, "bytes": 2 * x.nbytes, "seconds": seconds, "ratios": ratios}


def _moves(x: np.ndarray, shifts: np.ndarray, threads: int) -> dict[str, Callable[[], object]]:
    """The bare shift and its peers, in arrays of their own."""
    y, half, by_slices = np.empty_like(x), mf.shift(x, shifts, stride=2), np.empty_like(x)
    calls = {
        "shift": lambda: mf.shift(x, shifts, out=y),
        "shift_backward": lambda: mf.shift_backward(y, shifts, x.shape),
        "shift stride 2": lambda: mf.shift(x, shifts, stride=2, out=half),
        "NumPy slices": lambda: slices(x, shifts, by_slices),
    }
    if (torch := _torch(threads)) is not None:
        source, target = torch.from_numpy(x), torch.from_numpy(np.empty_like(x))
        quarter = source.flatten()[: half.size], target.flatten()[: half.size]
        calls["memcpy"] = lambda: target.copy_(source)
        calls["memcpy a quarter"] = lambda: quarter[1].copy_(quarter[0])
    return calls


def slices(x: np.ndarray, shifts: np.ndarray, y: np.ndarray) -> None:
    """modulo_shifts as array code: all channels of one shift are one assignment of slices."""
    whole = x.shape[1] // 9 * 9
    y[:, :whole] = 0
    y[:, whole:] = x[:, whole:]
    for k, shift in enumerate(shifts[:9]):
        (rows, from_rows), (columns, from_columns) = (
            (slice(max(0, -d), n - max(0, d)), slice(max(0, d), n - max(0, -d)))
            for d, n in zip(shift, x.shape[2:], strict=True)
        )
        y[:, k:whole:9, rows, columns] = x[:, k:whole:9, from_rows, from_columns]


def measure(layer: Layer, threads: int, quiet: timing.Quiet, rounds: int, least: float) -> dict:
    """Check, then time the fused operations of a layer beside torch."""
    x, w, grad = layer.floats()
    points, w = w, w[:, :, 0, 0].copy()
    shifts = mf.modulo_shifts(layer.channels)
    y = mf.shift_conv(x, w, shifts)
    moved = mf.shift(x, shifts)
    reference.agree(layer, "shift_conv", y, mf.conv(moved, points), 0)  # bit for bit
    ends = [0, layer.batch - 1]
    expected = reference.conv(layer, moved[ends], points)
    reference.agree(layer, "shift_conv", reference.rows(y[ends]), expected, 1e-5)
    distances = reference.rows(mf.shift_adder_conv(x, w, shifts)[ends])
    expected = reference.adder(layer, moved[ends], points)
    reference.agree(layer, "shift_adder_conv", distances, expected, 1e-5)
    calls = {
        "shift_conv": lambda: mf.shift_conv(x, w, shifts),
        "conv": lambda: mf.conv(x, points),
        "shift + conv": lambda: mf.conv(mf.shift(x, shifts), points),
        "shift_conv_backward": lambda: mf.shift_conv_backward(grad, x, w, shifts),
        "shift_adder_conv": lambda: mf.shift_adder_conv(x, w, shifts),
        "shift_adder_conv_backward": lambda: mf.shift_adder_conv_backward(grad, x, w, shifts),
    }
    if (torch := _torch(threads)) is not None:
        calls |= dict(_torch_calls(torch, layer, x, points, shifts, y))
    cases = {name: timing.case(call, least) for name, call in calls.items()}
    seconds = timing.interleaved(cases, rounds, quiet)
    for name in ("1x1", "depthwise + 1x1", "conv2d 3x3"):
        timing.choose_fastest(seconds, name, f"{name} contiguous", f"{name} channels_last")
    ratios = goals.ratios(seconds, GOALS + BESIDE)
    return {"name": layer.name, "terms": layer.terms, "seconds": seconds, "ratios": ratios}


def _torch(threads: int):
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    return torch


def _torch_calls(torch, layer, x, w, shifts, y) -> Iterator[tuple[str, Callable[[], object]]]:
    """The peers in both layouts; the depthwise kernels are one-hot, so that it is our answer."""
    c = layer.channels
    one_hot = np.zeros((c, 1, 3, 3), np.float32)
    one_hot[np.arange(c), 0, shifts[:, 0] + 1, shifts[:, 1] + 1] = 1
    wide = np.random.default_rng(2).standard_normal((layer.filters, c, 3, 3), np.float32)
    arrays = [torch.from_numpy(a) for a in (x, w, one_hot, wide)]
    conv = torch.nn.functional.conv2d
    for layout in ("contiguous", "channels_last"):
        form = torch.contiguous_format if layout == "contiguous" else torch.channels_last
        tx, point, depth, full = (a.contiguous(memory_format=form) for a in arrays)

        def separable(tx=tx, depth=depth, point=point):
            return conv(conv(tx, depth, padding=1, groups=c), point)

        reference.agree(layer, f"depthwise {layout}", separable().numpy(), y, 1e-5)
        calls = {
            "1x1": lambda tx=tx, point=point: conv(tx, point),
            "depthwise + 1x1": separable,
            "conv2d 3x3": lambda tx=tx, full=full: conv(tx, full, padding=1),
        }
        for name, call in calls.items():
            yield f"{name} {layout}", torch.inference_mode()(call)


def document(record: dict) -> str:
    """Everything as markdown."""
    rows = record["layers"]
    parts = goals.summary(record), move_table(record), layer_table(rows), beside_table(rows), NOTES
    return "\n\n".join([*parts, verdicts(record)])


def move_table(record: dict) -> str:
    """Speed of the plain shift relative to memcpy."""

    def first(row):
        seconds = float(np.median(row["seconds"]["shift"]))
        return [row["name"], f"{seconds * 1e3:.3f}", f"{row['bytes'] / seconds / 1e9:.1f}"]

    return goals.table(["bare shift", "ms", "GB/s"], record["moves"], first, MOVES)


def layer_table(rows: list[dict]) -> str:
    """The fused operation, and its ratios against the goals."""

    def first(row):
        seconds = float(np.median(row["seconds"]["shift_conv"]))
        return [row["name"], f"{seconds * 1e3:.2f}", f"{2e-9 * row['terms'] / seconds:.0f}"]

    return goals.table(["shift_conv", "ms", "Gflop/s"], rows, first, GOALS)


def beside_table(rows: list[dict]) -> str:
    """Ratios within our own functions."""
    return goals.table(["layer"], rows, lambda row: [row["name"]], BESIDE)


def verdicts(record: dict) -> str:
    """A line a goal."""
    mean = MEAN.verdict(record["moves"], record["cpu_features"])
    return f"{mean}\n{goals.verdicts(record['layers'], GOALS)}"
