"""The operations of a network's layers, one row each, computed by the package's functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.geometry import Sides, Sizes, window_options
from mulfree_cupy.ops.adder import adder_conv
from mulfree_cupy.ops.batch_norm import batch_norm
from mulfree_cupy.ops.binary import binary_conv
from mulfree_cupy.ops.convolution import conv, matmul
from mulfree_cupy.ops.packing import MOST_BITS
from mulfree_cupy.ops.pooling import avg_pool, global_average_pool, max_pool
from mulfree_cupy.ops.shift import shift, shift_adder_conv, shift_conv
from mulfree_cupy.ops.winograd import WinogradWeights, winograd_conv


@dataclass(frozen=True)
class Operation:
    """A kind of layer: its number of inputs, its arrays and options, and its function.

    Arrays and options map to whether they are required. ``run(*inputs, **arrays, **options)``.
    """

    run: Callable[..., Array]
    inputs: tuple[int, int] = (1, 1)
    arrays: Mapping[str, bool] = field(default_factory=dict)
    options: Mapping[str, bool] = field(default_factory=dict)


def _floats(op: str, *inputs: Array | None) -> None:
    for x in inputs:
        if x is not None and x.dtype.kind != "f":
            raise TypeError(f"{op}: takes floating-point numbers, got {x.dtype}; rescale it first")


def _alike(op: str, a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{op}: shapes must be equal, got {a.shape[1:]} and {b.shape[1:]}")


def _masked(weight: Array, mask: Array | None) -> Array:
    return weight if mask is None else weight * mask


def _conv(x, weight, bias=None, mask=None, **options):
    return conv(x, _masked(weight, mask), bias, **options)


def _winograd_conv(x, weight, bias=None, mask=None, *, points, **options):
    weights = WinogradWeights.from_dense(weight, mask, points=points)
    return winograd_conv(x, weights, bias, **options)


def _linear(x, weight, bias=None):
    _floats("linear", x)
    y = matmul(x, weight.T)
    return y if bias is None else y + bias


def _batch_norm(x, residual=None, *, weight, bias, mean, variance, eps, relu):
    _floats("batch_norm", x, residual)
    statistics = {"mean": mean, "variance": variance, "eps": eps}
    return batch_norm(x, weight, bias, residual, relu=relu, **statistics)[0]


def _relu(x):
    _floats("relu", x)
    return namespace(x).maximum(x, 0)


def _concatenate(*parts):
    return namespace(parts[0]).concatenate(parts, axis=1)


def _flatten(x):
    return x.reshape(len(x), math.prod(x.shape[1:]))


def _add(a, b):
    _floats("add", a, b)
    _alike("add", a, b)
    return a + b


def _rescale(x, residual=None, *, scale, offset, low, high, dtype, residual_scale=1.0):
    """``clip(x * scale + offset + residual * residual_scale, low, high)``, rounded for uint8."""
    if scale.shape != offset.shape or scale.shape != x.shape[1:2]:
        raise ValueError(
            f"rescale: scale and offset must have shape {x.shape[1:2]}, got {scale.shape} and "
            f"{offset.shape}"
        )
    xp, by_channel = namespace(x), (slice(None), *[None] * (x.ndim - 2))
    y = x * scale[by_channel] + offset[by_channel]
    if residual is not None:
        _alike("rescale", x, residual)
        y += residual * scale.dtype.type(residual_scale)
    y = xp.clip(y, low, high)
    return (xp.rint(y) if dtype == "uint8" else y).astype(dtype)


def window_of(op: str, options: Mapping[str, Any], kernel: Sizes) -> tuple[Sizes, Sides, Sizes]:
    """Stride, padding and dilation of a layer with such a window."""
    given = {name: options[name] for name in _STEPS if name in options}
    if op == "winograd_conv":
        given.setdefault("padding", 1)
    return window_options(op, kernel, **given)


def border_sides(border: Any) -> Sides:
    """The rows and columns (before, after) of `pad`, whose border has the forms of a padding."""
    _, sides, _ = window_options("pad", (1, 1), padding=border)
    return sides


def _pad(x, *, border, value):
    """Pad all sides with a constant."""
    sides = (0, 0), (0, 0), *border_sides(border)
    return namespace(x).pad(x, sides, constant_values=value)


_STEPS = "stride", "padding", "dilation"
_WINDOW = dict.fromkeys((*_STEPS, "groups"), False)
_POOL = dict.fromkeys(("kernel_size", "stride", "padding"), True)
_WEIGHT = {"weight": True, "bias": False}
_SHIFTED = {**_WEIGHT, "shifts": True}

OPERATIONS = {
    "conv": Operation(_conv, arrays={**_WEIGHT, "mask": False}, options=_WINDOW),
    "adder_conv": Operation(
        lambda x, weight, bias=None, **options: adder_conv(x, weight, bias, **options),
        arrays=_WEIGHT,
        options={**_WINDOW, "bits": False},
    ),
    "binary_conv": Operation(
        lambda x, weight, **options: binary_conv(x, weight, **options),
        arrays={"weight": True},
        options={**_WINDOW, "scale": False},
    ),
    "shift": Operation(shift, arrays={"shifts": True}, options={"stride": False}),
    "shift_conv": Operation(
        lambda x, weight, shifts, bias=None, **options: shift_conv(
            x, weight, shifts, bias, **options
        ),
        arrays=_SHIFTED,
        options={"stride": False},
    ),
    "shift_adder_conv": Operation(
        lambda x, weight, shifts, bias=None, **options: shift_adder_conv(
            x, weight, shifts, bias, **options
        ),
        arrays=_SHIFTED,
        options={"stride": False},
    ),
    "winograd_conv": Operation(
        _winograd_conv,
        arrays={**_WEIGHT, "mask": False},
        options={"padding": False, "relu": False, "points": True},
    ),
    "linear": Operation(_linear, arrays=_WEIGHT),
    "batch_norm": Operation(
        _batch_norm,
        inputs=(1, 2),
        arrays=dict.fromkeys(("weight", "bias", "mean", "variance"), True),
        options={"eps": True, "relu": True},
    ),
    "rescale": Operation(
        _rescale,
        inputs=(1, 2),
        arrays={"scale": True, "offset": True},
        options={"low": True, "high": True, "dtype": True, "residual_scale": False},
    ),
    "pad": Operation(_pad, options={"border": True, "value": True}),
    "relu": Operation(_relu),
    "add": Operation(_add, inputs=(2, 2)),
    "concatenate": Operation(_concatenate, inputs=(2, 1 << 16)),
    "max_pool": Operation(max_pool, options=_POOL),
    "avg_pool": Operation(avg_pool, options=_POOL),
    "global_average_pool": Operation(global_average_pool),
    "flatten": Operation(_flatten),
}


def dtypes(op: str, role: str) -> tuple[type, ...]:
    """The dtypes allowed for an array, by its role in an operation."""
    if role == "mask":
        return (np.bool_,)
    if role == "shifts":
        return np.int8, np.int16, np.int32, np.int64
    whole = {"weight": (np.uint8,), "bias": (np.int32,)} if op == "adder_conv" else {}
    return np.float32, np.float64, *whole.get(role, ())


_MOST = 1 << 16  # largest size, stride and the like of any network


def _whole(least: int, most: int = _MOST) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _pair(least: int) -> Callable[[Any], bool]:
    one = _whole(least)

    def check(value: Any) -> bool:
        two = isinstance(value, (list, tuple)) and len(value) == 2
        return all(map(one, value)) if two else one(value)

    return check


def _sides(value: Any) -> bool:
    two = isinstance(value, (list, tuple)) and len(value) == 2
    pairs = two and all(isinstance(sides, (list, tuple)) for sides in value)
    return all(map(_pair(0), value)) if pairs else _pair(0)(value)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


# For each option: whether a value is valid, and the description of valid values for errors.
OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("stride", "dilation", "kernel_size"), (_pair(1), "a whole number from 1, or two of them")
    ),
    **dict.fromkeys(
        ("padding", "border"), (_sides, "a whole number from 0, two of them or two pairs of them")
    ),
    "groups": (_whole(1), "a whole number from 1"),
    "bits": (_whole(1, MOST_BITS), f"a whole number from 1 to {MOST_BITS}"),
    **dict.fromkeys(("relu", "scale"), (lambda value: type(value) is bool, "true or false")),
    "eps": (lambda value: _number(value) and value >= 0, "a number from 0"),
    "points": (lambda value: isinstance(value, str), "a text"),
    "dtype": (lambda value: value in ("uint8", "float32"), "'uint8' or 'float32'"),
    "value": (_whole(0, 255), "a whole number from 0 to 255"),
    **dict.fromkeys(("low", "high", "residual_scale"), (_number, "a number")),
}
