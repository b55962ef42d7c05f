"""Rounding errors in float32: those of our operations, and PyTorch's, against float64 formulas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import mulfree_cupy as mf
from benchmarks import goals, layers, reference, timing
from benchmarks.layers import Layer
from benchmarks.shift import slices
from mulfree_cupy import launch

OURS, TORCH = "mulfree_cupy", "PyTorch"
WRONG = 1e-4  # of the terms: more cannot be rounding
# Small enough for the emulator.
EMULATED = [*layers.QUICK, Layer(1, 64, 16, 8), Layer(2, 128, 8, 6)]
EMULATED_SHIFT = layers.QUICK_SHIFT
NOTES = """\
x, w and the gradient of the output are normal random numbers in float32 (near 100: with 100 added
to x and w). The exact result is the formula in float64 on the same numbers, over whole batches.
of its terms: the largest |error| / sum |terms| of an output, where the terms are those of its
formula. Error bounds of sums are for this ratio; rounding one number costs up to 6.0e-08.
The terms of adder_conv have one sign, so there it is the error relative to each output.
of the largest: the largest |error| / the largest |output|.
Each figure is the worst of all layers. PyTorch: on the CPU, conv2d with its gradients by autograd,
and torch.cdist with p = 1 on the unfolded input; a dash where there is no counterpart.
F(2x2, 3x3), F(4x4, 3x3): winograd_conv with unpruned weights, transforms included, on the 3x3
layers of stride 1."""

NONE = (None, None)

Exact = tuple[np.ndarray, np.ndarray]  # an answer, and the sums of its terms' magnitudes
Answer = tuple[str, str, np.ndarray]  # the operation, who computed it, the answer


def run(threads: int, out: Path | None, quick: bool) -> int:
    """Measure every operation, print the tables, write them to `out`; the exit status."""
    record = {
        "benchmark": "errors",
        "machine": timing.machine("torch"),
        "threads": threads,
        "cpu_features": launch.cpu_kernels().features(),
        "layers": [],
        "in_emulator": [],
    }
    convolutions = layers.QUICK if quick else layers.LAYERS
    shifts = layers.QUICK_SHIFT if quick else layers.SHIFT
    todo = [(layer, False) for layer in convolutions] + [(layer, True) for layer in shifts]
    record["layers"] = [measure(*each) for each in timing.progress(todo, "layer")]
    todo = [(layer, False) for layer in EMULATED] + [(layer, True) for layer in EMULATED_SHIFT]
    with mf.emulated_cuda(check=False):
        record["in_emulator"] = [measure(*each) for each in timing.progress(todo, "layer")]
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, "errors-cpu")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"\nwritten: {file.name} and its .md")
    return 0


def measure(layer: Layer, shift: bool) -> dict:
    """The errors of all answers of a layer, or of a shift and a 1x1 layer in one."""
    x, w, grad = layer.floats()
    if shift:
        exact, answers = expected_of_shifts(layer, x, w, grad), of_shifts(layer, x, w, grad)
    else:
        exact, answers = expected(layer, x, w, grad), of_convolutions(layer, x, w, grad)
    errors: dict[str, dict[str, list[float]]] = {}
    for operation, way, answer in answers:
        pair = error(answer, *exact[operation])
        if not pair[0] <= WRONG:  # NaN never passes
            raise reference.WrongAnswer(
                f"{layer.name}: {operation} by {way} is off by {pair[0]:.3g} of its terms"
            )
        errors.setdefault(operation, {})[way] = pair
    return {"name": layer.name, "taps": layer.taps, "errors": errors}


def error(answer: np.ndarray, exact: np.ndarray, magnitudes: np.ndarray) -> list[float]:
    """The largest error: of the terms that were added up, and of the largest answer."""
    off = np.abs(answer.astype(np.float64) - exact)
    of_terms = np.divide(off, magnitudes, out=off.copy(), where=magnitudes > 0)
    return [float(of_terms.max()), float(off.max() / np.abs(exact).max())]


def expected(layer: Layer, x, w, grad) -> dict[str, Exact]:
    """By the formulas in float64; forward results have one row per pixel, as `reference.rows`."""
    bytes_x, bytes_w = layer.bytes()
    distances = {
        "adder_conv": reference.adder(layer, x, w),
        "adder_conv near 100": reference.adder(layer, x + 100, w + 100),
        "adder_conv uint8": reference.adder(layer, bytes_x, bytes_w),
    }
    exact = {operation: (y, -y) for operation, y in distances.items()}
    exact["conv"] = reference.conv(layer, x, w), reference.conv(layer, abs(x), abs(w))
    backward = {
        "adder_conv": (
            reference.adder_backward(layer, grad, x, w),
            reference.adder_backward(layer, grad, x, w, each=np.abs),
        ),
        "conv": (
            reference.conv_backward(layer, grad, x, w),
            reference.conv_backward(layer, abs(grad), abs(x), abs(w)),
        ),
    }
    for operation, (gradients, magnitudes) in backward.items():
        for name, *pair in zip(("grad_x", "grad_w"), gradients, magnitudes, strict=True):
            exact[f"{operation} {name}"] = tuple(pair)
    return exact


def of_convolutions(layer: Layer, x, w, grad) -> Iterator[Answer]:
    options, near, in_bytes = layer.options, (x + 100, w + 100), layer.bytes()
    yield "adder_conv", OURS, reference.rows(mf.adder_conv(x, w, **options))
    yield "adder_conv near 100", OURS, reference.rows(mf.adder_conv(*near, **options))
    yield "adder_conv uint8", OURS, reference.rows(mf.adder_conv(*in_bytes, **options))
    yield from gradients("adder_conv", OURS, mf.adder_conv_backward(grad, x, w, **options))
    yield "conv", OURS, reference.rows(mf.conv(x, w, **options))
    yield from gradients("conv", OURS, mf.conv_backward(grad, x, w, **options))
    if layer.kernel == 3 and layer.stride == 1:
        for m in (2, 4):
            weights, way = mf.WinogradWeights.from_spatial(w, m), f"F({m}x{m}, 3x3)"
            yield "conv", way, reference.rows(mf.winograd_conv(x, weights))
            yield "conv grad_x", way, mf.winograd_conv_backward(grad, x, weights)[0]
    yield from of_torch(layer, x, w, grad)
    yield from of_cdist(layer, "adder_conv", x, w)
    yield from of_cdist(layer, "adder_conv near 100", *near)


def expected_of_shifts(layer: Layer, x, w, grad) -> dict[str, Exact]:
    """Those of the 1x1 layer behind the shift; gradients by x are moved back."""
    moved = shifted(x)
    return {"shift": (moved, abs(moved))} | {
        f"shift_{operation}": tuple(map(back, pair)) if operation.endswith("grad_x") else pair
        for operation, pair in expected(layer, moved, w, grad).items()
    }


def of_shifts(layer: Layer, x, w, grad) -> Iterator[Answer]:
    shifts, points = mf.modulo_shifts(layer.channels), w[:, :, 0, 0]
    yield "shift", OURS, mf.shift(x, shifts)
    for operation, forward, backward in (
        ("shift_adder_conv", mf.shift_adder_conv, mf.shift_adder_conv_backward),
        ("shift_conv", mf.shift_conv, mf.shift_conv_backward),
    ):
        yield operation, OURS, reference.rows(forward(x, points, shifts))
        grad_x, grad_w = backward(grad, x, points, shifts)
        yield from gradients(operation, OURS, (grad_x, grad_w[:, :, None, None]))
    for operation, way, answer in of_torch(layer, shifted(x), w, grad):
        yield f"shift_{operation}", way, back(answer) if operation.endswith("grad_x") else answer


def shifted(x: np.ndarray, direction: int = 1) -> np.ndarray:
    y = np.empty_like(x)
    slices(x, direction * mf.modulo_shifts(x.shape[1]), y)
    return y


def back(grad: np.ndarray) -> np.ndarray:
    """The adjoint of `shifted`."""
    return shifted(grad, -1)


def gradients(operation: str, way: str, pair) -> Iterator[Answer]:
    yield f"{operation} grad_x", way, pair[0]
    yield f"{operation} grad_w", way, pair[1]


def of_torch(layer: Layer, x, w, grad) -> Iterator[Answer]:
    """conv2d and its gradients; nothing where there is no torch."""
    try:
        import torch
    except ImportError:
        return
    a, b = (torch.from_numpy(array).requires_grad_() for array in (x, w))
    y = torch.nn.functional.conv2d(a, b, **layer.options)
    yield "conv", TORCH, reference.rows(y.detach().numpy())
    pair = torch.autograd.grad(y, (a, b), torch.from_numpy(grad))
    yield from gradients("conv", TORCH, [g.numpy() for g in pair])


def of_cdist(layer: Layer, operation: str, x, w) -> Iterator[Answer]:
    """The distances of the unfolded input; nothing where there is no torch."""
    try:
        import torch
    except ImportError:
        return
    cols, filters = reference.windows(layer, x), w.reshape(len(w), -1)
    yield operation, TORCH, -torch.cdist(*map(torch.from_numpy, (cols, filters)), p=1).numpy()


def document(record: dict) -> str:
    """Everything as markdown."""
    rows = record["layers"]
    parts = [goals.summary(record), operation_table(rows), NOTES]
    parts += ["By layer, of the terms:", layer_table(rows)]
    parts += ["CUDA kernels in the emulator, on small layers:"]
    return "\n\n".join([*parts, operation_table(record["in_emulator"])])


def operation_table(rows: list[dict]) -> str:
    """The worst of all layers, one row per operation."""
    worst: dict[tuple[str, str], np.ndarray] = {}
    for row in rows:
        for operation, ways in row["errors"].items():
            for way, pair in ways.items():
                so_far = worst.get((operation, way), pair)
                worst[operation, way] = np.maximum(so_far, pair)
    lines = []
    for (operation, way), pair in worst.items():
        if way != TORCH:
            name = operation if way == OURS else f"{operation} by {way}"
            lines.append(
                [name, *map(_cell, pair), *map(_cell, worst.get((operation, TORCH), NONE))]
            )
    head = "of its terms", "of the largest"
    return timing.table(["float32", *head, *(f"PyTorch {h}" for h in head)], lines)


def layer_table(rows: list[dict]) -> str:
    """Errors relative to the terms, one row per layer."""
    columns = {
        "adder_conv": ("adder_conv", OURS),
        "cdist": ("adder_conv", TORCH),
        "conv": ("conv", OURS),
        "conv2d": ("conv", TORCH),
        "F(2x2)": ("conv", "F(2x2, 3x3)"),
        "F(4x4)": ("conv", "F(4x4, 3x3)"),
    }
    lines = [
        [row["name"], str(row["taps"])]
        + [_cell(row["errors"][o].get(way, NONE)[0]) for o, way in columns.values()]
        for row in rows
        if "conv" in row["errors"]
    ]
    return timing.table(["layer", "terms", *columns], lines)


def _cell(value: float | None) -> str:
    return "0" if value == 0 else timing.cell(value, ".1e")
