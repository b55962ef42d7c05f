"""Shift convolution: a per-channel shift by a few pixels, then a 1x1 convolution."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.launch import shift as launchers
from mulfree_cupy.ops.convolution import (
    backward,
    forward,
    refuse_half_on_cpu,
    take_for_backward,
)
from mulfree_cupy.ops.packing import for_kernels, unpack

__all__ = [
    "group_shifts",
    "modulo_shifts",
    "shift",
    "shift_adder_conv",
    "shift_adder_conv_backward",
    "shift_backward",
    "shift_conv",
    "shift_conv_backward",
]


def modulo_shifts(
    channels: int, kernel_size: int | tuple[int, int] = 3, *, dilation: int | tuple[int, int] = 1
) -> np.ndarray:
    """The table of shifts in which neighbouring channels have different shifts.

    Parameters
    ----------
    channels : int
        At least ``kh*kw``, so that every shift has a channel.
    kernel_size : int or pair of ints
        (kh, kw): the shifts are the taps of such a kernel, relative to its centre.
    dilation : int or pair of ints
        Distance between neighbouring shifts.

    Returns
    -------
    numpy.ndarray, shape (C, 2), int64
        (dh, dw) of every channel.

    Raises
    ------
    ValueError
        If there are fewer channels than shifts, or a parameter is out of range.
    TypeError
        If a parameter is not an int or pair of ints.

    See Also
    --------
    group_shifts : as many channels per shift, in another order.

    Notes
    -----
    ``dw = dilation * (c % k - k//2)``, ``dh = dilation * ((c // k) % k - k//2)``; the last ``C mod
    k*k`` channels are not shifted.

    Examples
    --------
    >>> import mulfree_cupy as mf
    >>> mf.modulo_shifts(11)[[0, 1, 4, 8, 9, 10]]
    array([[-1, -1],
           [-1,  0],
           [ 0,  0],
           [ 1,  1],
           [ 0,  0],
           [ 0,  0]])
    """
    channels, taps = _taps("modulo_shifts", channels, kernel_size, dilation)
    table = np.zeros((channels, 2), np.int64)
    whole = channels // len(taps) * len(taps)
    table[:whole] = np.tile(taps, (channels // len(taps), 1))
    return table


def group_shifts(
    channels: int, kernel_size: int | tuple[int, int] = 3, *, dilation: int | tuple[int, int] = 1
) -> np.ndarray:
    """The table of shifts in which channels with the same shift are neighbours.

    Parameters
    ----------
    channels, kernel_size, dilation
        As in `modulo_shifts`.

    Returns
    -------
    numpy.ndarray, shape (C, 2), int64
        ``C // (kh*kw)`` consecutive channels for each (dh, dw), in the order of the kernel's taps;
        the remaining channels come last and are not shifted.

    Raises
    ------
    ValueError, TypeError
        As `modulo_shifts`.

    Examples
    --------
    >>> import mulfree_cupy as mf
    >>> mf.group_shifts(9, (1, 3), dilation=2).T
    array([[ 0,  0,  0,  0,  0,  0,  0,  0,  0],
           [-2, -2, -2,  0,  0,  0,  2,  2,  2]])
    """
    channels, taps = _taps("group_shifts", channels, kernel_size, dilation)
    table = np.zeros((channels, 2), np.int64)
    whole = channels // len(taps) * len(taps)
    table[:whole] = np.repeat(taps, channels // len(taps), axis=0)
    return table


@arrays.on_device_of_arguments
def shift(
    x: Array,
    shifts: Array,
    *,
    stride: int | tuple[int, int] = 1,
    out: Array | None = None,
    kernel: str | None = None,
) -> Array:
    """Shift every channel of x by its own number of rows and columns.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Any dtype of 1, 2, 4, 8 or 16 plain bytes, in any memory order. Bits are copied: NaN
        payloads and the sign of zero are kept.
    shifts : array of integers, shape (C, 2)
        (dh, dw) of every channel, of any size; see `modulo_shifts` and `group_shifts`. Pass a NumPy
        array even on a GPU: a CuPy array is read back, which synchronises.
    stride : int or pair of ints
        Only every stride-th pixel of the shifted image is computed.
    out : array, shape (N, C, ceil(H/stride), ceil(W/stride)), optional
        Receives the result; must not overlap x.
    kernel : str, optional
        Name of a CUDA kernel, for study; see `kernels`. The default is the fastest.

    Returns
    -------
    array, shape (N, C, ceil(H/stride), ceil(W/stride)), dtype of x

    Raises
    ------
    ValueError
        If shapes, parameters or `out` do not fit, or there is no such kernel.
    TypeError
        If x is not of plain bytes, shifts are not integers, or arrays are on different devices.

    Notes
    -----
    ``y[n,c,h,w] = x[n, c, h*stride + dh[c], w*stride + dw[c]]``, zero bits outside the image. This
    is a depthwise convolution with one-hot kernels; nothing is multiplied.

    References
    ----------
    .. [1] B. Wu et al., "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions",
       CVPR 2018.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> x = np.arange(1, 10).reshape(1, 1, 3, 3)
    >>> mf.shift(x, [(1, -1)])[0, 0]
    array([[0, 4, 5],
           [0, 7, 8],
           [0, 0, 0]])
    """
    x = arrays.take_one("shift", "x", x, arrays.plain_bits)
    geometry.check_rank("shift", "x", x.shape, "N, C, H, W")
    g = geometry.window("shift", x.shape, 1, filters=x.shape[1], stride=stride)
    table = _table("shift", shifts, x, g)
    shape = g.out_shape
    out = arrays.output_array("shift", out, shape, x.dtype, x=x)
    launch.check_kernel("shift", kernel, x=x)
    result = arrays.answer(out, shape, x.dtype, like=x)
    _move("shift", x, table, result, g.stride, kernel)
    return arrays.deliver(result, out)


@arrays.on_device_of_arguments
def shift_backward(
    grad: Array,
    shifts: Array,
    x_shape: tuple[int, int, int, int],
    *,
    stride: int | tuple[int, int] = 1,
    kernel: str | None = None,
) -> Array:
    """Shift every channel back: the adjoint of `shift`.

    Parameters
    ----------
    grad : array, shape (N, C, ceil(H/stride), ceil(W/stride))
        Of any dtype that `shift` takes.
    shifts : array of integers, shape (C, 2)
    x_shape : tuple of 4 ints
        (N, C, H, W) of the result.
    stride : int or pair of ints
        As given to `shift`.
    kernel : str, optional
        As in `shift`.

    Returns
    -------
    array, shape (N, C, H, W), dtype of grad
        Zero where `shift` read no pixel.

    Raises
    ------
    ValueError, TypeError
        As `shift`.

    Notes
    -----
    ``(shift(x) * y).sum() == (x * shift_backward(y)).sum()`` for all x and y.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.shift_backward(np.array([[[[0, 4, 5], [0, 7, 8]]]]), [(1, -1)], (1, 1, 2, 3))[0, 0]
    array([[0, 0, 0],
           [4, 5, 0]])
    """
    grad = arrays.take_one("shift_backward", "grad", grad, arrays.plain_bits)
    shape = geometry.shape4("shift_backward", "x_shape", x_shape)
    g = geometry.window("shift_backward", shape, 1, filters=shape[1], stride=stride)
    geometry.check_shape("shift_backward", "grad", grad.shape, g.out_shape, "for this x_shape")
    table = _table("shift_backward", shifts, grad, g)
    launch.check_kernel("shift_backward", kernel, grad=grad)
    grad_x = arrays.empty_beside(grad, shape, grad.dtype)
    _move("shift_backward", grad, table, grad_x, g.stride, kernel)
    return grad_x


@arrays.on_device_of_arguments
def shift_conv(
    x: Array,
    w: Array,
    shifts: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    out: Array | None = None,
    kernel: str | None = None,
) -> Array:
    """Shift convolution: `shift`, then a 1x1 convolution, in one pass.

    The shifted image is never stored: kernels read x at the shifted places.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        float32 or float64, in any memory order; on a GPU float16 too.
    w : array, shape (K, C), or PackedWeights
        See `pack`.
    shifts : array of integers, shape (C, 2)
        (dh, dw) of every channel, of any size; see `modulo_shifts` and `group_shifts`. Pass a NumPy
        array even on a GPU: a CuPy array is read back, which synchronises.
    bias : array, shape (K,), optional
    stride : int or pair of ints
    out : array, shape (N, K, ceil(H/stride), ceil(W/stride)), optional
        Receives the result; must not overlap an input.
    kernel : str, optional
        Name of a CUDA kernel, for study; see `kernels`. The default is the fastest.

    Returns
    -------
    array, shape (N, K, ceil(H/stride), ceil(W/stride))
        float32, or float64 if an input is; float16, summed in float32, if all are.

    Raises
    ------
    ValueError
        If shapes, parameters or `out` do not fit, or there is no such kernel.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    ``y[n,k,h,w] = bias[k] + sum_c w[k,c] * x[n, c, h*stride + dh[c], w*stride + dw[c]]``, x being
    zero outside the image.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> x = np.array([[[[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]]])
    >>> mf.shift_conv(x, np.array([[1.0, 1.0]]), [(0, 1), (0, -1)])[0, 0]
    array([[ 2., 13., 20.]])
    """
    return _forward(
        "shift_conv", launchers.shift_conv, x, w, shifts, bias, stride, out, kernel, (np.float16,)
    )


@arrays.on_device_of_arguments
def shift_conv_backward(
    grad: Array, x: Array, w: Array, shifts: Array, *, stride: int | tuple[int, int] = 1
) -> tuple[Array, Array]:
    """Gradients of ``(shift_conv(x, w, shifts) * grad).sum()`` with respect to x and w.

    Parameters
    ----------
    grad : array, shape (N, K, ceil(H/stride), ceil(W/stride))
        float32 or float64; on a GPU float16 too.
    x : array, shape (N, C, H, W)
        As given to `shift_conv`; the shifted image is not needed.
    w : array, shape (K, C)
    shifts, stride
        As given to `shift_conv`.

    Returns
    -------
    grad_x, grad_w : arrays, shapes of x and w
        In their common dtype; float16 is accumulated in float32.

    Raises
    ------
    ValueError
        If shapes or parameters do not fit.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> x, w, shifts = np.array([[[[1.0, 2.0, 3.0]]]]), np.array([[5.0]]), [(0, 1)]
    >>> grad_x, grad_w = mf.shift_conv_backward(np.array([[[[1.0, 10.0, 100.0]]]]), x, w, shifts)
    >>> grad_x.ravel(), grad_w.ravel()
    (array([ 0.,  5., 50.]), array([32.]))
    """

    def on_cpu(kernels, grad, x, w, table, grad_x, grad_w, stride):
        kernels.shift_conv_grad_x(grad, w, table, grad_x, stride)
        kernels.shift_conv_grad_w(grad, x, table, grad_w, stride)

    launcher, also = launchers.shift_conv_backward, (np.float16,)
    return _backward("shift_conv_backward", launcher, on_cpu, grad, x, w, shifts, stride, also)


@arrays.on_device_of_arguments
def shift_adder_conv(
    x: Array,
    w: Array,
    shifts: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    out: Array | None = None,
    kernel: str | None = None,
) -> Array:
    """`shift`, then a 1x1 adder convolution, in one pass: no multiplication anywhere.

    Parameters
    ----------
    x, w, shifts, bias, stride, out, kernel
        As in `shift_conv`, float32 or float64.

    Returns
    -------
    array, shape (N, K, ceil(H/stride), ceil(W/stride))
        float32, or float64 if an input is.

    Raises
    ------
    ValueError, TypeError
        As `shift_conv`.

    Notes
    -----
    ``y[n,k,h,w] = bias[k] - sum_c abs(x[n, c, h*stride + dh[c], w*stride + dw[c]] - w[k,c])``.
    Outside the image x = 0 does count: it adds ``-abs(w)``.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.shift_adder_conv(np.array([[[[1.0, 2.0, 3.0]]]]), np.array([[5.0]]), [(0, 1)])[0, 0]
    array([[-3., -2., -5.]])
    """
    return _forward(
        "shift_adder_conv", launchers.shift_adder_conv, x, w, shifts, bias, stride, out, kernel, ()
    )


@arrays.on_device_of_arguments
def shift_adder_conv_backward(
    grad: Array, x: Array, w: Array, shifts: Array, *, stride: int | tuple[int, int] = 1
) -> tuple[Array, Array]:
    """AdderNet's surrogate gradients of `shift_adder_conv`; see `adder_conv_backward`.

    Parameters
    ----------
    grad, x, w, shifts, stride
        As in `shift_conv_backward`, float32 or float64.

    Returns
    -------
    grad_x, grad_w : arrays, shapes of x and w

    Raises
    ------
    ValueError, TypeError
        As `shift_conv_backward`.

    Notes
    -----
    With s the shifted image, ``grad_w[k,c] = sum_nhw (s - w) * grad``, and ``sum_k clip(w - s, -1,
    1) * grad`` is shifted back to the pixels of x; pixels that s does not contain have gradient
    zero.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> x, w, shifts = np.array([[[[1.0, 2.0, 3.0]]]]), np.array([[2.5]]), [(0, 1)]
    >>> grad_x, grad_w = mf.shift_adder_conv_backward(np.ones((1, 1, 1, 3)), x, w, shifts)
    >>> grad_x.ravel(), grad_w.ravel()
    (array([ 0. ,  0.5, -0.5]), array([-2.5]))
    """

    def on_cpu(kernels, grad, x, w, table, grad_x, grad_w, stride):
        kernels.shift_adder_conv_grad_x(grad, x, w, table, grad_x, stride)
        kernels.shift_adder_conv_grad_w(grad, x, w, table, grad_w, stride)

    launcher = launchers.shift_adder_conv_backward
    return _backward("shift_adder_conv_backward", launcher, on_cpu, grad, x, w, shifts, stride, ())


def _taps(function, channels, kernel_size, dilation):
    """The number of channels, and (dh, dw) of a kernel's taps relative to its centre, in row-major
    order."""
    channels = geometry.integer(function, "channels", channels, 0)
    kh, kw = geometry.pair(function, "kernel_size", kernel_size, 1)
    step_h, step_w = geometry.pair(function, "dilation", dilation, 1)
    if channels < kh * kw:
        raise ValueError(
            f"{function}: channels must be at least {kh}*{kw} = {kh * kw}, one per shift, got "
            f"{channels}; take more channels or a smaller kernel_size, or write the table by hand"
        )
    rows, columns = step_h * (np.arange(kh) - kh // 2), step_w * (np.arange(kw) - kw // 2)
    taps = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    return channels, taps.reshape(-1, 2)


def check_table(function: str, name: str, table: Array, channels: int | None = None) -> Array:
    """The argument `name` as an array of integers (C, 2); C is checked if given."""
    table = arrays.take_one(function, name, table)
    if table.dtype.kind not in "iu":
        raise TypeError(
            f"{function}: {name} must be integers, got dtype {table.dtype} and shape {table.shape}"
        )
    rows = "C" if channels is None else channels
    if table.shape[1:] != (2,) or channels not in (None, len(table)):
        raise ValueError(
            f"{function}: {name} must have shape ({rows}, 2), rows and columns for each channel, "
            f"got {table.shape}"
        )
    return table


def _table(function, shifts, x, g):
    """Check shifts and convert them for the kernels of x: a NumPy array, int64 for the CPU.

    Shifts on a GPU are read back, which synchronises; the launchers cache a device copy.
    """
    shifts = check_table(function, "shifts", shifts, g.channels)
    if arrays.namespace(shifts) is not np:
        arrays.take(function, check=arrays.plain_bits, x=x, shifts=shifts)  # on one device
        shifts = shifts.get()
    if shifts.dtype.kind == "u":
        shifts = np.minimum(shifts, np.uint64(2**31)).astype(np.int64)
    if launch.device_for(x) is None:
        return np.ascontiguousarray(shifts, np.int64)
    most = np.array(g.size)  # all shifts beyond the image are equivalent
    return np.ascontiguousarray(np.minimum(np.maximum(shifts, -most), most), np.int32)


def _move(function, source, table, target, stride, kernel):
    """Run the kernel `function` between two arrays of one dtype."""
    if not source.size:
        return
    device = launch.device_for(source)
    if device is None:
        getattr(launch.cpu_kernels(), function)(source, table, target, stride)
    else:
        launcher = getattr(launchers, function)
        launcher(device, arrays.contiguous(source), table, target, stride, kernel=kernel)


def _geometry(function, x, w, stride):
    geometry.check_rank(function, "x", x.shape, "N, C, H, W")
    geometry.check_rank(function, "w", w.shape, "K, C")
    if w.shape[1] != x.shape[1]:
        raise ValueError(
            f"{function}: w must have one column for each of the {x.shape[1]} channels of x: "
            f"x has shape {x.shape}, w has shape {w.shape}"
        )
    return geometry.window(function, x.shape, 1, filters=w.shape[0], stride=stride)


def _forward(function, launcher, x, w, shifts, bias, stride, out, kernel, also):
    w, packed = unpack(function, w, "adder" if "adder" in function else "conv")
    if packed is not None and w.ndim == 4 and w.shape[2:] == (1, 1):
        w = w[:, :, 0, 0]
    given = dict(x=x, w=w, bias=bias)
    x, w, bias = arrays.take_floats(function, **given, optional=("bias",), also=also)
    refuse_half_on_cpu(function, given["x"], x)
    g = _geometry(function, x, w, stride)
    table = _table(function, shifts, x, g)
    launch.check_kernel(function, kernel, x=x)

    def on_cpu(kernels, x, w, bias, out, stride, *_):
        weights = for_kernels(function, packed, w)
        getattr(kernels, function)(x, weights, table, bias, out, stride)

    def on_device(device, x, w, bias, out, g, kernel):
        launcher(device, x, w, table, bias, out, g.stride, kernel=kernel)

    return forward(function, on_device, on_cpu, g, x, w, bias, out, x.dtype, given, kernel=kernel)


def _backward(function, launcher, on_cpu, grad, x, w, shifts, stride, also):
    given = x
    grad, x, w = take_for_backward(function, grad, x, w, also)
    refuse_half_on_cpu(function, given, x)
    g = _geometry(function, x, w, stride)
    table = _table(function, shifts, x, g)

    def cpu(kernels, grad, x, w, grad_x, grad_w, stride, *_):
        on_cpu(kernels, grad, x, w, table, grad_x, grad_w, stride)

    def device(device, grad, x, w, grad_x, grad_w, g):
        launcher(device, grad, x, w, table, grad_x, grad_w, g.stride)

    return backward(function, device, cpu, g, grad, x, w)
