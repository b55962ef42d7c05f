"""Launchers of cuda/batch_norm: the ladder of batch normalisation, and its gradients.

Arrays of x's shape are C-contiguous (N, C, pixels), the others (C,); all are checked and not empty.
"""

from __future__ import annotations

import numpy as np

from mulfree_cupy.launch import limits
from mulfree_cupy.launch.arguments import c_type, int32
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.select import Call, choose
from mulfree_cupy.launch.tiling import (
    channel_capacity,
    channel_in_registers,
    channel_parts,
    vector,
)

_THREADS = 256
_PART = 2**14  # bytes reduced by a block, 16 float32 per thread


@on_device_of_arrays
def batch_norm(
    device, x, weight, bias, residual, y, mean, variance, running, relu, eps, momentum, kernel=None
) -> None:
    """Normalise x by its own statistics into y; write these, and update the running ones.

    ``residual`` may be None, and so may ``running``, the running mean and variance.
    """
    channels, count = x.shape[1], _count("batch_norm", x)
    kernel = choose(Call("batch_norm", x.dtype, elements=count), kernel)
    moved = (mean, variance) if running is None else running
    args = (weight, bias, x if residual is None else residual, y, mean, variance, *moved)
    args += (x.dtype.type(eps), np.float64(momentum), *_sizes(x))
    flags = _least(x, relu), np.bool_(running is not None)
    wide = x, y, residual
    defines = {"RESIDUAL": int(residual is not None), "RUNNING": c_type(moved[0])}
    if kernel == "2_parts":
        defines["PART"] = _PART // x.itemsize
        moments = _moments_of_parts(device, x)
        parts, length = channel_parts(channels, count)
        args = (x, moments, *args, *int32(parts, length), *flags)
        grid = channels * parts, _THREADS
        _launch(device, "2_normalise", "batch_norm", wide, *grid, args, defines)
        return
    if kernel == "3_registers":
        threads, defines["EACH"] = channel_in_registers(x.itemsize, count)
    else:
        threads, wide = _THREADS, ()
    args = (x, *args, *flags)
    _launch(device, kernel, "batch_norm", wide, channels, threads, args, defines)


def _moments_of_parts(device, x):
    """Mean and sum of squared distances from it, float64 (C, parts, 2)."""
    channels, part = x.shape[1], _PART // x.itemsize
    parts = -(-_count("batch_norm", x) // part)
    moments = device.xp.empty((channels, parts, 2), np.float64)
    sizes, each = (*_sizes(x), np.int32(parts)), {"EACH": part // _THREADS}
    grid = channels * parts, _THREADS
    _launch(device, "2_moments", "batch_norm_moments", (x,), *grid, (x, moments, *sizes), each)
    return moments


@on_device_of_arrays
def batch_norm_moments(device, x):
    """Means and variances (C, parts) of parts of the channels, float64, and the parts' lengths."""
    moments, part = _moments_of_parts(device, x), _PART // x.itemsize
    counts = np.full(moments.shape[1], part)
    counts[-1] = _count("batch_norm", x) - part * (len(counts) - 1)
    counts = device.xp.asarray(counts)
    return moments[..., 0], moments[..., 1] / counts, counts


@on_device_of_arrays
def batch_norm_given(device, x, weight, bias, residual, y, mean, variance, relu, eps) -> None:
    """Normalise x by these statistics into y."""
    channels = x.shape[1]
    parts, length = channel_parts(channels, _count("batch_norm", x))
    arrays = x, mean, variance, weight, bias, x if residual is None else residual, y
    args = (*arrays, x.dtype.type(eps), *_sizes(x), *int32(parts, length), _least(x, relu))
    wide, grid = (x, y, residual), (channels * parts, _THREADS)
    defines = {"RESIDUAL": int(residual is not None)}
    _launch(device, "given", "batch_norm_given", wide, *grid, args, defines)


@on_device_of_arrays
def batch_norm_backward(
    device, grad, x, y, weight, mean, variance, grad_x, grad_weight, grad_bias, grad_residual,
    relu, eps, given, reduced=None,
) -> None:  # fmt: skip
    """Write the gradients; ``grad_residual`` may be None.

    `reduced` is applied to the sums (2, C) of `grad_sums`.
    """
    channels, count = x.shape[1], _count("batch_norm_backward", x)
    arrays = weight, mean, variance, grad_x, grad_weight, grad_bias
    args = (*arrays, grad_x if grad_residual is None else grad_residual)
    args += (x.dtype.type(eps), *_sizes(x))
    defines = {"RELU": int(relu), "RESIDUAL": int(grad_residual is not None)}
    wide = grad, x, y, grad_x, grad_residual
    if reduced is None and count <= channel_capacity(x.itemsize, _width(wide, x)):
        entry = "batch_norm_grad_registers"
        threads, each = channel_in_registers(x.itemsize, count)
        args, defines["EACH"] = (grad, x, y, *args, np.bool_(given)), each
        _launch(device, "grad_registers", entry, wide, channels, threads, args, defines)
        return
    parts, length = channel_parts(channels, count)
    sums = device.xp.empty((channels, parts, 2), np.float64)
    parting, grid = int32(parts, length), (channels * parts, _THREADS)
    summed = (grad, x, y, mean, sums, *_sizes(x), *parting)
    _launch(
        device, "grad_sums", "batch_norm_grad_sums", wide[:3], *grid, summed, {"RELU": int(relu)}
    )
    if reduced is not None:  # in the place of the first part's
        sums[:, 0], sums[:, 1:] = reduced(sums.sum(axis=1).T).T, 0
    args = (grad, x, y, sums, *args, *parting, np.bool_(given))
    _launch(device, "grad_x", "batch_norm_grad_x", wide, *grid, args, defines)


def _launch(device, kernel, entry, wide, blocks, threads, args, more) -> None:
    """`wide` are the arrays accessed with vector loads and stores, if all of them allow it."""
    x = args[0]
    defines = {"T": c_type(x), "VECTOR": _width(wide, x), "THREADS": threads, **more}
    device.launch(f"batch_norm/{kernel}.cu", entry, defines, (blocks,), (threads,), args)


def _width(wide, x) -> int:
    return min((vector(a, x.shape[2]) for a in wide if a is not None), default=1)


def _count(function: str, x) -> int:
    """Elements of a channel; the kernels index them, and the channels, with 32 bits."""
    count = len(x) * x.shape[2]
    limits.check_sizes(function, limits.INT32, {"N*H*W": count, "C": x.shape[1]})
    return count


def _sizes(x) -> tuple[np.int32, ...]:
    return int32(x.shape[1], x.shape[2], len(x) * x.shape[2])


def _least(x, relu: bool) -> np.floating:
    """Lower bound of the output: 0 with a ReLU."""
    return x.dtype.type(0 if relu else -np.inf)
