"""Steps as calls of the compiled CPU kernels on preallocated arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mulfree_cupy import geometry, launch
from mulfree_cupy.inference.folding import Epilogue, Step
from mulfree_cupy.inference.operations import border_sides, window_of
from mulfree_cupy.ops import pooling
from mulfree_cupy.ops.batch_norm import scale_of
from mulfree_cupy.ops.packing import filter_scale, kernel_name
from mulfree_cupy.ops.winograd import WinogradWeights
from mulfree_cupy.ops.winograd.convolution import fastest, transforms_for_kernels

Call = Callable[[], Any]
# Maps a step's inputs, its residual (or None) and its output to a call.
Bind = Callable[[list[np.ndarray], "np.ndarray | None", np.ndarray], Call]


def kernel_for(step: Step) -> Bind:
    """Prepare a step once, e.g. pack its weights."""
    return _KERNELS[step.op](step)


def _images(matrix: np.ndarray) -> np.ndarray:
    """Rows (N, C) as images of one pixel."""
    return matrix.reshape(*matrix.shape, 1, 1) if matrix.ndim == 2 else matrix


def _finished(epilogue: Epilogue, residual: np.ndarray | None) -> dict[str, Any]:
    """The keyword arguments of the ..._fused kernels."""
    return {
        "origin": epilogue.origin,
        "scale": epilogue.scale,
        "offset": epilogue.offset,
        "residual": None if residual is None else _images(residual),
        "residual_scale": epilogue.residual_scale,
        "low": epilogue.low,
        "high": epilogue.high,
    }


def _convolution(step: Step, function: str) -> Bind:
    kernels = launch.cpu_kernels()
    weight, bias, options = _images(step.arrays["weight"]), step.arrays.get("bias"), step.options
    if function == "binary_conv" and options.get("scale", True):
        bias = filter_scale(weight)  # this kernel takes the scale instead of a bias
    groups = options.get("groups", 1)
    packed = getattr(kernels, f"pack_{function}")(weight, groups)
    window = *window_of(function, options, weight.shape[2:]), groups

    def bind(inputs, residual, out):
        arguments = _images(inputs[0]), packed, bias, _images(out), *window
        if step.epilogue.is_none:  # int32 sums may be stored too
            return partial(getattr(kernels, function), *arguments)
        finish = _finished(step.epilogue, residual)
        return partial(getattr(kernels, f"{function}_fused"), *arguments, **finish)

    return bind


def _adder(step: Step) -> Bind:
    return _convolution(step, kernel_name("adder", step.options.get("bits")))


def _shift_convolution(step: Step, function: str) -> Bind:
    kernels = launch.cpu_kernels()
    weight, bias = step.arrays["weight"], step.arrays.get("bias")
    pack = kernels.pack_adder_conv if "adder" in function else kernels.pack_conv
    packed = pack(_images(weight), 1)
    table = np.ascontiguousarray(step.arrays["shifts"], np.int64)
    stride = geometry.pair(function, "stride", step.options.get("stride", 1), 1)

    def bind(inputs, residual, out):
        finish = _finished(step.epilogue, residual)
        arguments = inputs[0], packed, table, bias, out, stride
        return partial(getattr(kernels, f"{function}_fused"), *arguments, **finish)

    return bind


def _shift(step: Step) -> Bind:
    table = np.ascontiguousarray(step.arrays["shifts"], np.int64)
    stride = geometry.pair("shift", "stride", step.options.get("stride", 1), 1)
    move = launch.cpu_kernels().shift
    return lambda inputs, residual, out: partial(move, inputs[0], table, out, stride)


def _winograd(step: Step) -> Bind:
    arrays, options = step.arrays, step.options
    points, relu = options["points"], options.get("relu", False)
    weights = WinogradWeights.from_dense(arrays["weight"], arrays.get("mask"), points=points)
    packed, transforms = weights.plan(fastest(weights)), transforms_for_kernels(weights)
    bias = arrays.get("bias")
    _, padding, _ = window_of(step.op, options, (3, 3))
    run = launch.cpu_kernels().winograd_conv
    finish = {"relu_of_out": step.epilogue.low == 0}

    def bind(inputs, residual, out):
        arguments = inputs[0], packed, bias, out, padding, relu, transforms
        return partial(run, *arguments, residual=residual, **finish)

    return bind


def _batch_norm(step: Step) -> Bind:
    weight, bias, mean, variance = (
        step.arrays[role] for role in ("weight", "bias", "mean", "variance")
    )
    scale = scale_of(weight, variance, step.options["eps"])
    relu = step.options["relu"] or step.epilogue.low == 0
    run = launch.cpu_kernels().batch_norm

    def bind(inputs, residual, out):
        x, added, y = (a.reshape(*a.shape[:2], -1) for a in (inputs[0], inputs[-1], out))
        added = added if len(inputs) == 2 else None
        return partial(run, x, mean, scale, bias, added, relu, out=y)

    return bind


def _rescale(step: Step) -> Bind:
    """A rescale of images, or without a convolution before it; computed in `out` if float32."""
    options = step.options
    low, high = options["low"], options["high"]

    def bind(inputs, residual, out):
        x = inputs[0]
        by_channel = (slice(None), *[None] * (x.ndim - 2))
        scale, offset = (step.arrays[role][by_channel] for role in ("scale", "offset"))
        y = out if out.dtype == np.float32 else np.empty(out.shape, np.float32)
        added = np.empty(out.shape, np.float32) if len(inputs) == 2 else None

        def call():
            np.multiply(x, scale, out=y)
            np.add(y, offset, out=y)
            if added is not None:
                np.multiply(inputs[1], np.float32(options.get("residual_scale", 1)), out=added)
                np.add(y, added, out=y)
            np.clip(y, low, high, out=y)
            if y is not out:
                np.rint(y, out=y)
                np.copyto(out, y, casting="unsafe")

        return call

    return bind


def _pad(step: Step) -> Bind:
    (top, bottom), (left, right) = border_sides(step.options["border"])

    def bind(inputs, residual, out):
        height, width = out.shape[2:]
        inside = out[:, :, top : height - bottom, left : width - right]

        def call():
            out.fill(step.options["value"])
            np.copyto(inside, inputs[0])

        return call

    return bind


def _add(step: Step) -> Bind:
    def bind(inputs, residual, out):
        if step.epilogue.low != 0:
            return partial(np.add, *inputs, out=out)

        def call():
            np.add(*inputs, out=out)
            np.maximum(out, 0, out=out)

        return call

    return bind


def _relu(step: Step) -> Bind:
    return lambda inputs, residual, out: partial(np.maximum, inputs[0], 0, out=out)


def _concatenate(step: Step) -> Bind:
    return lambda inputs, residual, out: partial(np.concatenate, inputs, axis=1, out=out)


def _pool(step: Step, function: Callable) -> Bind:
    run = partial(function, **step.options)
    return lambda inputs, residual, out: partial(run, inputs[0], out=out)


def _flatten(step: Step) -> Bind:
    """Nothing to do: the output shares the input's memory."""
    return lambda inputs, residual, out: _nothing


def _nothing() -> None:
    pass


_KERNELS: dict[str, Callable[[Step], Bind]] = {
    "conv": partial(_convolution, function="conv"),
    "adder_conv": _adder,
    "binary_conv": partial(_convolution, function="binary_conv"),
    "linear": partial(_convolution, function="conv"),
    "shift": _shift,
    "shift_conv": partial(_shift_convolution, function="shift_conv"),
    "shift_adder_conv": partial(_shift_convolution, function="shift_adder_conv"),
    "winograd_conv": _winograd,
    "batch_norm": _batch_norm,
    "rescale": _rescale,
    "pad": _pad,
    "relu": _relu,
    "add": _add,
    "concatenate": _concatenate,
    "max_pool": partial(_pool, function=pooling.max_pool),
    "avg_pool": partial(_pool, function=pooling.avg_pool),
    "global_average_pool": partial(_pool, function=pooling.global_average_pool),
    "flatten": _flatten,
}
