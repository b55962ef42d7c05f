"""Conversion of each layer to ONNX: one function per operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mulfree_cupy import geometry
from mulfree_cupy.geometry import Sides, Sizes
from mulfree_cupy.inference.network import Layer
from mulfree_cupy.inference.onnx.graph import Graph
from mulfree_cupy.inference.operations import border_sides, window_of
from mulfree_cupy.ops import binary
from mulfree_cupy.ops.packing import filter_scale
from mulfree_cupy.ops.winograd import winograd_matrices

# Terms of an adder convolution per step: they fit a cache, and amortise the cost of a step.
_TERMS = 1 << 16


def _window(layer: Layer, kernel: Sizes) -> dict[str, Any]:
    """The attributes of a sliding window."""
    strides, sides, dilations = window_of(layer.op, layer.options, kernel)
    return {"strides": strides, "pads": _pads(sides), "dilations": dilations}


def _pads(sides: Sides) -> list[int]:
    """The padding before each axis, then the padding after each."""
    return [*(before for before, _ in sides), *(after for _, after in sides)]


def _by_channel(vector: np.ndarray) -> np.ndarray:
    """Per-channel numbers, shaped to broadcast over images."""
    return vector[:, None, None]


def _conv(graph: Graph, layer: Layer, x: str) -> str:
    inputs = [graph.floats(layer, x), *_weight_and_bias(graph, layer)]
    return graph.node("Conv", inputs, layer.name, **_grouped_window(graph, layer))


def _grouped_window(graph: Graph, layer: Layer) -> dict[str, Any]:
    window = _window(layer, graph.array(layer, "weight").shape[2:])
    return {**window, "group": layer.options.get("groups", 1)}


def _linear(graph: Graph, layer: Layer, x: str) -> str:
    inputs = [graph.floats(layer, x), *_weight_and_bias(graph, layer)]
    return graph.node("Gemm", inputs, layer.name, transB=1)


def _weight_and_bias(graph: Graph, layer: Layer, form: Callable | None = None) -> list[str]:
    bias = [graph.weight(layer, "bias")] if "bias" in layer.arrays else []
    return [graph.weight(layer, "weight", form), *bias]


def _with_bias(graph: Graph, layer: Layer, sums: str) -> str:
    """Of what takes none itself."""
    if "bias" not in layer.arrays:
        return sums
    return graph.node("Add", [sums, graph.weight(layer, "bias", _by_channel)], layer.name)


def _adder_conv(graph: Graph, layer: Layer, x: str) -> str:
    if "bits" in layer.options:
        most = np.uint8(2 ** layer.options["bits"] - 1)
        x = graph.node("Min", [x, graph.constant(most, f"{layer.name}/most")], f"{layer.name}/low")
    return _adder(graph, layer, x, **_window(layer, graph.array(layer, "weight").shape[2:]))


def _adder(graph: Graph, layer: Layer, x: str, **window: Any) -> str:
    (filters, *terms), groups = graph.array(layer, "weight").shape, layer.options.get("groups", 1)
    planes, _ = graph.network.forms[layer.name]
    kernel, integer = terms[1:] or (1, 1), graph.dtype(layer.inputs[0]).kind in "iu"
    an_image = groups * math.prod(terms) * math.prod(planes[1:])  # terms of a filter in each group
    at_once = max(
        n
        for n in range(1, filters // groups + 1)
        if n == 1 or (filters // groups % n == 0 and n * an_image <= _TERMS)
    )

    def by_step(weight):
        weight = np.minimum(weight, 2 ** layer.options.get("bits", 8) - 1) if integer else weight
        rows = weight.reshape(groups, -1, at_once, math.prod(terms), 1).swapaxes(0, 1)
        return rows.astype(np.int32) if integer else rows

    one_hot = np.eye(math.prod(kernel), dtype=np.float32).reshape(-1, 1, *kernel)
    weights = graph.weight(layer, "weight", by_step), graph.constant(one_hot, "taps")
    function = "IntegerAdderConv" if integer else "AdderConv"
    sums = graph.call(function, [x, *weights], layer.name, **window, planes=planes)
    return _with_bias(graph, layer, sums)


def _binary_conv(graph: Graph, layer: Layer, x: str) -> str:
    """An ordinary convolution of signs, whose sums are whole numbers: exact in any order."""
    weight = graph.array(layer, "weight")
    zero, one, minus = (graph.constant(np.float32(v), f"{layer.name}/{v}") for v in (0, 1, -1))
    positive = graph.node(
        "GreaterOrEqual", [graph.floats(layer, x), zero], f"{layer.name}/positive"
    )
    signs = graph.node("Where", [positive, one, minus], f"{layer.name}/signs")
    inputs = [signs, graph.weight(layer, "weight", binary.signs)]
    sums = graph.node("Conv", inputs, layer.name, **_grouped_window(graph, layer))
    if not layer.options.get("scale", True):
        return sums
    scale = graph.constant(_by_channel(filter_scale(weight)), f"{layer.name}/scale")
    return graph.node("Mul", [sums, scale], layer.name)


def _shift(graph: Graph, layer: Layer, x: str) -> str:
    """A depthwise convolution with one-hot kernels."""
    (channels, *sides), dtype = graph.network.forms[layer.inputs[0]]
    shifts = graph.array(layer, "shifts").clip(-np.array(sides), sides)  # beyond is all padding
    reach = abs(shifts).max(axis=0)
    kernels = np.zeros((channels, 1, *(2 * reach + 1)), np.float32)
    rows, columns = (shifts + reach).T
    kernels[np.arange(channels), 0, rows, columns] = 1
    inputs = graph.floats(layer, x), graph.constant(kernels, layer.arrays["shifts"])
    strides, _, _ = window_of(layer.op, layer.options, (1, 1))
    window = {"strides": strides, "pads": [*reach, *reach]}
    moved = graph.node("Conv", inputs, layer.name, **window, group=channels)
    return moved if dtype.kind == "f" else graph.cast(moved, dtype)


def _shift_conv(graph: Graph, layer: Layer, x: str) -> str:
    def pointwise(weight):
        return weight[:, :, None, None]

    moved = graph.floats(layer, _shift(graph, layer, x))
    return graph.node("Conv", [moved, *_weight_and_bias(graph, layer, pointwise)], layer.name)


def _shift_adder_conv(graph: Graph, layer: Layer, x: str) -> str:
    alone = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]}
    return _adder(graph, layer, _shift(graph, layer, x), **alone)


def _winograd_conv(graph: Graph, layer: Layer, x: str) -> str:
    u, (_, padding, _) = graph.array(layer, "weight"), window_of(layer.op, layer.options, (3, 3))
    t, filters, channels = u.shape[1:]
    BT, G, AT = winograd_matrices(t - 2, points=layer.options["points"])
    relu = layer.options.get("relu", False)
    x = graph.floats(layer, x)
    spatial = None if relu else _spatial(u, G)
    if spatial is not None:
        inputs = [x, *_weight_and_bias(graph, layer, lambda u: spatial)]
        return graph.node("Conv", inputs, layer.name, pads=_pads(padding))
    crop = graph.network.forms[layer.name][0][1:]
    sides = graph.network.forms[layer.inputs[0]][0][1:]
    tiles = [-(-out // (t - 2)) for out in crop]
    covered = [  # by all tiles
        (before, n * (t - 2) + 2 - side - before)
        for n, side, (before, _) in zip(tiles, sides, padding, strict=True)
    ]
    forms = {
        "rows": [-1, channels, t * t, math.prod(tiles)],
        "planes": [0, (t - 2) ** 2 * filters, *tiles],
        "crop": crop,
    }
    inputs = [
        x,
        graph.weight(layer, "weight", lambda u: u.reshape(t * t, filters, channels)),
        graph.constant(np.kron(BT, BT).reshape(-1, 1, t, t).astype(np.float32), "BT"),
        graph.constant(np.kron(AT, AT).astype(np.float32), "AT"),
    ]
    window = {"m": t - 2, "strides": [t - 2, t - 2], "pads": _pads(covered)}
    function = "WinogradReluConv" if relu else "WinogradConv"
    return _with_bias(graph, layer, graph.call(function, inputs, layer.name, **window, **forms))


def _spatial(u: np.ndarray, G: np.ndarray) -> np.ndarray | None:
    """The 3x3 kernels g with ``u = G g G^T`` up to rounding, or None."""
    back = np.linalg.pinv(G)
    kernels = np.einsum("ai,ijkc,bj->kcab", back, u.astype(np.float64), back)
    error = abs(np.einsum("ia,kcab,jb->ijkc", G, kernels, G) - u).max(initial=0)
    exact = error <= 4 * np.finfo(np.float32).eps * abs(u).max(initial=0)
    return kernels.astype(np.float32) if exact else None


def _batch_norm(graph: Graph, layer: Layer, x: str, residual: str | None = None) -> str:
    arrays = [graph.weight(layer, role) for role in ("weight", "bias", "mean", "variance")]
    inputs = [graph.floats(layer, x), *arrays]
    y = graph.node("BatchNormalization", inputs, layer.name, epsilon=layer.options["eps"])
    if residual is not None:
        y = graph.node("Add", [y, residual], layer.name)
    return graph.node("Relu", [y], layer.name) if layer.options["relu"] else y


def _rescale(graph: Graph, layer: Layer, x: str, residual: str | None = None) -> str:
    """In float64 where NumPy promotes int32 to it, for the same rounding."""
    dtype = np.result_type(graph.dtype(layer.inputs[0]), np.float32)
    form = _by_channel if len(graph.network.forms[layer.name][0]) == 3 else np.asarray

    def constant(number, name):
        return graph.constant(np.asarray(number, np.float32).astype(dtype), f"{layer.name}/{name}")

    def scaled(answer, scale):
        answer = graph.cast(answer, dtype)
        return graph.node("Mul", [answer, scale], f"{layer.name}/scaled")

    scale, offset = (constant(form(graph.array(layer, r)), r) for r in ("scale", "offset"))
    y = graph.node("Add", [scaled(x, scale), offset], f"{layer.name}/sum")
    if residual is not None:
        factor = constant(layer.options.get("residual_scale", 1.0), "residual_scale")
        y = graph.node("Add", [y, scaled(residual, factor)], f"{layer.name}/sum")
    limits = (constant(layer.options[name], name) for name in ("low", "high"))
    y = graph.node("Clip", [y, *limits], f"{layer.name}/clipped")
    if layer.options["dtype"] == "uint8":
        y = graph.node("Round", [y], f"{layer.name}/rounded")
    return graph.cast(y, layer.options["dtype"])


def _pad(graph: Graph, layer: Layer, x: str) -> str:
    sides = (0, 0), (0, 0), *border_sides(layer.options["border"])
    pads = graph.constant(np.array(_pads(sides)), f"{layer.name}/border")
    value = graph.constant(
        graph.dtype(layer.name).type(layer.options["value"]), f"{layer.name}/value"
    )
    return graph.node("Pad", [x, pads, value], layer.name)


def _max_pool(graph: Graph, layer: Layer, x: str) -> str:
    return graph.node("MaxPool", [x], layer.name, **_pool_window(layer))


def _pool_window(layer: Layer) -> dict[str, Any]:
    kernel = geometry.pair(layer.op, "kernel_size", layer.options["kernel_size"], 1)
    strides, sides, _ = window_of(layer.op, layer.options, kernel)
    return {"strides": strides, "pads": _pads(sides), "kernel_shape": kernel}


def _avg_pool(graph: Graph, layer: Layer, x: str) -> str:
    attributes = {**_pool_window(layer), "count_include_pad": 1}
    return graph.node("AveragePool", [graph.floats(layer, x)], layer.name, **attributes)


def _global_average_pool(graph: Graph, layer: Layer, x: str) -> str:
    pooled = graph.node("GlobalAveragePool", [graph.floats(layer, x)], layer.name)
    return graph.node("Flatten", [pooled], layer.name)


def _plain(op: str, **attributes: Any) -> Callable[..., str]:
    """The same operation by ONNX's name."""
    return lambda graph, layer, *inputs: graph.node(op, inputs, layer.name, **attributes)


WRITERS: dict[str, Callable[..., str]] = {
    "adder_conv": _adder_conv,
    "add": _plain("Add"),
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "binary_conv": _binary_conv,
    "concatenate": _plain("Concat", axis=1),
    "conv": _conv,
    "flatten": _plain("Flatten"),
    "global_average_pool": _global_average_pool,
    "linear": _linear,
    "max_pool": _max_pool,
    "pad": _pad,
    "relu": _plain("Relu"),
    "rescale": _rescale,
    "shift": _shift,
    "shift_adder_conv": _shift_adder_conv,
    "shift_conv": _shift_conv,
    "winograd_conv": _winograd_conv,
}
