"""Launchers of cuda/batch_norm: the ladder of batch normalisation, and its gradients.

Arrays of x's shape are C-contiguous (N, C, pixels), the others (C,); all are checked and not empty.
"""

from __future__ import annotations

import numpy as np

from mulfree_cupy.launch.sizes import INT32, c_type, check_sizes, int32, on_device_of_arrays
from mulfree_cupy.launch.tiles import vector

BATCH_NORM_KERNELS = ("1_three_passes", "2_parts", "3_registers")

_THREADS = 256
_PART = 2**14  # bytes of which a block takes the moments, 16 numbers of float32 a thread
_HELD = 128  # bytes of a channel that a thread keeps in registers, where they hold all of it,
_FEW, _MANY = 256, 512  # and the threads for channels of few elements and of more
_LEAST, _LONGEST = 2**12, 2**16  # elements of a part; a thread sums at most 256 in their own type
_BLOCKS = 2048  # that fill a large GPU, about twice over


@on_device_of_arrays
def batch_norm(
    device, x, weight, bias, residual, y, mean, variance, running, relu, eps, momentum, kernel=None
) -> None:
    """Normalise x by its own statistics into y; write these, and move the running ones to them.

    ``residual`` may be None, and so may ``running``, the running mean and variance.
    """
    channels, count = x.shape[1], _count("batch_norm", x)
    kernel = _checked(kernel, x, count)
    moved = (mean, variance) if running is None else running
    args = (weight, bias, x if residual is None else residual, y, mean, variance, *moved)
    args += (x.dtype.type(eps), np.float64(momentum), *_sizes(x))
    flags = _least(x, relu), np.bool_(running is not None)
    wide = x, y, residual
    defines = {"RESIDUAL": int(residual is not None), "RUNNING": c_type(moved[0])}
    if kernel == "2_parts":
        defines["PART"] = part = _PART // x.itemsize
        parts = -(-count // part)
        moments = device.xp.empty((channels, parts, 2), np.float64)
        sizes, each = (*_sizes(x), np.int32(parts)), {"EACH": part // _THREADS}
        grid = channels * parts, _THREADS
        _launch(device, "2_moments", "batch_norm_moments", (x,), *grid, (x, moments, *sizes), each)
        parts, length = _parts(channels, count)
        args = (x, moments, *args, *int32(parts, length), *flags)
        grid = channels * parts, _THREADS
        _launch(device, "2_normalise", "batch_norm", wide, *grid, args, defines)
        return
    if kernel == "3_registers":
        threads, defines["EACH"] = _in_registers(x, count)
    else:
        threads, wide = _THREADS, ()
    args = (x, *args, *flags)
    _launch(device, kernel, "batch_norm", wide, channels, threads, args, defines)


@on_device_of_arrays
def batch_norm_given(device, x, weight, bias, residual, y, mean, variance, relu, eps) -> None:
    """Normalise x by these statistics into y."""
    channels = x.shape[1]
    parts, length = _parts(channels, _count("batch_norm", x))
    arrays = x, mean, variance, weight, bias, x if residual is None else residual, y
    args = (*arrays, x.dtype.type(eps), *_sizes(x), *int32(parts, length), _least(x, relu))
    wide, grid = (x, y, residual), (channels * parts, _THREADS)
    defines = {"RESIDUAL": int(residual is not None)}
    _launch(device, "given", "batch_norm_given", wide, *grid, args, defines)


@on_device_of_arrays
def batch_norm_backward(
    device, grad, x, y, weight, mean, variance, grad_x, grad_weight, grad_bias, grad_residual,
    relu, eps, given,
) -> None:  # fmt: skip
    """Write the gradients; ``grad_residual`` may be None."""
    channels, count = x.shape[1], _count("batch_norm_backward", x)
    arrays = weight, mean, variance, grad_x, grad_weight, grad_bias
    args = (*arrays, grad_x if grad_residual is None else grad_residual)
    args += (x.dtype.type(eps), *_sizes(x))
    defines = {"RELU": int(relu), "RESIDUAL": int(grad_residual is not None)}
    wide = grad, x, y, grad_x, grad_residual
    # One element at a time, as on odd planes, the many threads have too few registers.
    most = _capacity(x) if _width(wide, x) > 1 else _capacity(x) // _MANY * _FEW
    if count <= most:
        entry, (threads, each) = "batch_norm_grad_registers", _in_registers(x, count)
        args, defines["EACH"] = (grad, x, y, *args, np.bool_(given)), each
        _launch(device, "grad_registers", entry, wide, channels, threads, args, defines)
        return
    parts, length = _parts(channels, count)
    sums = device.xp.empty((channels, parts, 2), np.float64)
    parting, grid = int32(parts, length), (channels * parts, _THREADS)
    summed = (grad, x, y, mean, sums, *_sizes(x), *parting)
    _launch(
        device, "grad_sums", "batch_norm_grad_sums", wide[:3], *grid, summed, {"RELU": int(relu)}
    )
    args = (grad, x, y, sums, *args, *parting, np.bool_(given))
    _launch(device, "grad_x", "batch_norm_grad_x", wide, *grid, args, defines)


def _launch(device, kernel, entry, wide, blocks, threads, args, more) -> None:
    """`wide` are the arrays whose elements move several at once, where all of them can."""
    x = args[0]
    defines = {"T": c_type(x), "VECTOR": _width(wide, x), "THREADS": threads, **more}
    device.launch(f"batch_norm/{kernel}.cu", entry, defines, (blocks,), (threads,), args)


def _width(wide, x) -> int:
    return min((vector(a, x.shape[2]) for a in wide if a is not None), default=1)


def _count(function: str, x) -> int:
    """Elements of a channel; the kernels number them, and the channels, with 32 bits."""
    count = len(x) * x.shape[2]
    check_sizes(function, INT32, {"N*H*W": count, "C": x.shape[1]})
    return count


def _sizes(x) -> tuple[np.int32, ...]:
    return int32(x.shape[1], x.shape[2], len(x) * x.shape[2])


def _least(x, relu: bool) -> np.floating:
    """What no answer is below."""
    return x.dtype.type(0 if relu else -np.inf)


def _parts(channels: int, count: int) -> tuple[int, int]:
    """Parts of a channel and the elements of one, multiples of a vector."""
    parts = min(-(-count // _LEAST), -(-_BLOCKS // channels))
    parts = max(parts, -(-count // _LONGEST))
    length = -(-count // (4 * parts)) * 4
    return -(-count // length), length


def _capacity(x) -> int:
    return _MANY * _HELD // x.itemsize


def _in_registers(x, count: int) -> tuple[int, int]:
    """Threads of a block that holds a channel, and the elements each of them has room for."""
    each = _HELD // x.itemsize
    return (_FEW if count <= _FEW * each else _MANY), each


def _checked(kernel: str | None, x, count: int) -> str:
    able = BATCH_NORM_KERNELS if count <= _capacity(x) else BATCH_NORM_KERNELS[:2]
    if kernel is None:
        return able[-1]
    if kernel not in BATCH_NORM_KERNELS:
        raise ValueError(
            f"batch_norm: kernel must be one of {', '.join(BATCH_NORM_KERNELS)}, got {kernel!r}"
        )
    if kernel not in able:
        raise ValueError(
            f"batch_norm: kernel {kernel!r} takes at most {_capacity(x)} elements a channel, got "
            f"{count}; {', '.join(able)} can"
        )
    return kernel
