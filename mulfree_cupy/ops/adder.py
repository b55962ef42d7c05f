"""The adder convolution of AdderNet: minus the L1 distance between each window and each filter."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.geometry import PaddingLike
from mulfree_cupy.launch import adder as launchers
from mulfree_cupy.launch import binary
from mulfree_cupy.ops.convolution import PLAIN, backward, forward, take_for_backward
from mulfree_cupy.ops.packing import check_bits, for_device, for_kernels, kernel_name, unpack

__all__ = [
    "adaptive_rate",
    "adder_conv",
    "adder_conv_backward",
    "adder_conv_sign_backward",
    "adder_matmul",
]

INTEGERS = np.uint8, np.int8, np.int16  # summed exactly, in int32


@arrays.on_device_of_arguments
def adder_matmul(
    a: Array, b: Array, *, out: Array | None = None, kernel: str | None = None
) -> Array:
    """Matrix product with ``-abs(a - b)`` instead of ``a * b``.

    Parameters
    ----------
    a : array, shape (M, L)
        float32, float64, uint8, int8 or int16; float16 only for ``kernel="7_half2"``.
    b : array, shape (L, P)
        Mixed dtypes are promoted as by NumPy; integers with integers are exact.
    out : array, shape (M, P), optional
        Receives the result; must not overlap an input.
    kernel : str, optional
        Name of a CUDA kernel such as ``"2_shared_tile"``, for study; see `kernels`.

    Returns
    -------
    array, shape (M, P)
        float32 or float64; int32, exact, for integers; float32 for float16, see `adder_conv`.

    Raises
    ------
    ValueError
        If shapes or `out` do not fit, or there is no such kernel.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    ``y[m,p] = -sum_l abs(a[m,l] - b[l,p])``.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.adder_matmul(np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, -1.0], [5.0, 2.0]]))
    array([[-3., -2.],
           [-6., -3.]])
    """
    given = dict(a=a, b=b, bias=None)
    a, b, bias = arrays.take("adder_matmul", **given, optional=("bias",))
    geometry.check_rank("adder_matmul", "a", a.shape, "M, L")
    geometry.check_rank("adder_matmul", "b", b.shape, "L, P")
    if a.shape[1] != b.shape[0]:
        raise ValueError(
            f"adder_matmul: the columns of a must match the rows of b, "
            f"got a of shape {a.shape} and b of shape {b.shape}"
        )
    (a, b, _), dtype = _supported("adder_matmul", a.shape[1], kernel, given, a, b, bias)
    shape = a.shape[0], b.shape[1]
    out = arrays.output_array("adder_matmul", out, shape, dtype, **given)
    launch.check_kernel("adder_matmul", kernel, a=a)
    result = arrays.answer(out, shape, dtype, like=a)
    device = launch.device_for(a)
    if not (result.size and a.shape[1]):
        result[...] = 0
    elif device is None:
        # b is an image of P pixels in one row with L channels, a is M filters of one tap.
        launch.cpu_kernels().adder_conv(
            b[None, :, None, :],
            arrays.contiguous(a)[:, :, None, None],
            None,
            result[None, :, None, :],
            *PLAIN,
        )
    else:
        a, b = arrays.contiguous(a), arrays.contiguous(b)
        _launch(launchers.adder_matmul, device, a, b, out=result, kernel=kernel)
    return arrays.deliver(result, out)


@arrays.on_device_of_arguments
def adder_conv(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bits: int | None = None,
    out: Array | None = None,
    kernel: str | None = None,
) -> Array:
    """Adder convolution: minus the L1 distance between each window of x and each filter.

    Parameters
    ----------
    x : array, shape (N, C, H, W), (N, C, L) or (N, C, D, H, W)
        float32, float64, uint8, int8 or int16, in any memory order; float16 only for
        ``kernel="7_half2"``. A GPU computes int8 and int16 in float64, also exactly.
    w : array, shape (K, C/groups, kh, kw), or with the axes of x, or PackedWeights
        Mixed dtypes are promoted as by NumPy; integers with integers are exact. See `pack`.
    bias : array, shape (K,), optional
        Added to each filter's plane. When x and w are integers, of an integer dtype that fits
        int32; the sum must fit int32 too, which is checked on the CPU but not on a GPU. When they
        are float16, of float32 or a dtype that fits it.
    stride, padding, dilation
        As in `conv`.
    groups : int
        Divides C and K; ``groups=C`` is the depthwise form.
    bits : int, optional
        From 1 to 4, for x and w of uint8: numbers are clamped to ``2**bits - 1``, so that a
        distance can be computed as a population count, where that is faster. 1 for binary networks.
    out : array, shape (N, K, OH, OW), optional
        Receives the result; must not overlap an input.
    kernel : str, optional
        Name of a CUDA kernel such as ``"2_shared_tile"``, for study; see `kernels`. The default is
        the fastest with the accuracy of its dtype. ``"7_half2"`` takes x and w in float16 and is
        less accurate: see Notes.

    Returns
    -------
    array, shape (N, K, OH, OW), or with the axes of x
        float32, or float64 if an input is; int32, exact, for integers; float32 for float16.

    Raises
    ------
    ValueError
        If shapes, parameters or `out` do not fit, or there is no such kernel.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    ``y[n,k,h,w] = bias[k] - sum_cij abs(x[n, c, h*stride - padding + i*dilation, ...] -
    w[k,c,i,j])``. Padding is x = 0 and does count: it adds ``-abs(w)``.

    With `bits` a number is represented by its thermometer code, v as v ones out of ``2**bits - 1``
    bits, and a distance is the population count of the XOR of two codes.

    Outputs are large and close together (about -670 +- 26 for 576 taps of unit variance), so they
    must not be stored in a 16-bit float before their batch normalisation.

    ``"7_half2"`` computes differences and sums of 16 terms in float16. With u = 2**-11 the relative
    error of ``sum_cij abs(x - w)`` is at most ``16 * u * (1 + 16 * u)``, 0.8 %, plus the rounding
    of float32; converting x and w from float32 to float16 adds ``u * sum_cij (abs(x) + abs(w))``. A
    difference or a sum of 16 above 65504 overflows, and the result is -inf; this cannot happen if
    no number exceeds 2000.

    References
    ----------
    .. [1] H. Chen et al., "AdderNet: Do We Really Need Multiplications in Deep Learning?",
       CVPR 2020.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.adder_conv(np.ones((1, 1, 2, 2)), np.full((1, 1, 2, 2), 3.0), padding=1)[0, 0]
    array([[-11., -10., -11.],
           [-10.,  -8., -10.],
           [-11., -10., -11.]])
    """
    w, packed = unpack("adder_conv", w, "adder", groups, bits)
    given = dict(x=x, w=w, bias=bias)
    x, w, bias = arrays.take("adder_conv", **given, optional=("bias",))
    bits = check_bits("adder_conv", bits, x=x, w=w)
    g = geometry.convolution(
        "adder_conv",
        x.shape,
        w.shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    (x, w, bias), dtype = _supported("adder_conv", g.taps, kernel, given, x, w, bias)
    ladder = "adder_conv" if bits is None else "adder_conv with bits"
    launch.check_kernel(ladder, kernel, x=x)

    def on_cpu(kernels, x, w, bias, out, *options):
        run = getattr(kernels, kernel_name("adder", bits))
        run(x, for_kernels("adder_conv", packed, w), bias, out, *options)

    def on_device(device, x, w, bias, out, g):
        if bits is not None:
            w = for_device("adder_conv", packed, w, kernel)
            binary.adder_conv(device, x, w, bias, out, g, bits, kernel)
            return
        _launch(launchers.adder_conv, device, x, w, bias, out=out, geometry=g, kernel=kernel)

    return forward("adder_conv", on_device, on_cpu, g, x, w, bias, out, dtype, given)


@arrays.on_device_of_arguments
def adder_conv_backward(
    grad: Array,
    x: Array,
    w: Array,
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> tuple[Array, Array]:
    """AdderNet's surrogate gradients of the adder convolution.

    These are the published training signals and not derivatives: the true derivative of the L1
    distance is a sign, which AdderNet replaces by the full difference for w and by the clipped
    difference for x. A finite-difference check must therefore fail.

    Parameters
    ----------
    grad : array, shape (N, K, OH, OW)
    x : array, shape (N, C, H, W)
    w : array, shape (K, C/groups, kh, kw)
        Or all of them in 1-D or 3-D.
    stride, padding, dilation, groups
        As given to `adder_conv`.

    Returns
    -------
    grad_x, grad_w : arrays, shapes of x and w
        AdderNet's per-layer scaling of grad_w is separate: see `adaptive_rate`.

    Raises
    ------
    ValueError
        If shapes or parameters do not fit.
    TypeError
        If a dtype is not served (uint8 has no gradient), or the arrays are on different devices.

    Notes
    -----
    ``grad_w[k,c,i,j] = sum_nhw (x - w) * grad`` and
    ``grad_x = sum_kij clip(w - x, -1, 1) * grad``, scattered back to the pixel of each tap. The
    former is computed as an ordinary weight gradient minus ``w * sum(grad)``.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> x, w = np.array([[[[0.0, 0.5]]]]), np.array([[[[3.0]]]])
    >>> grad_x, grad_w = mf.adder_conv_backward(np.ones((1, 1, 1, 2)), x, w)
    >>> grad_x.ravel(), grad_w.ravel()
    (array([1., 1.]), array([-5.5]))
    """
    grad, x, w = take_for_backward("adder_conv_backward", grad, x, w)
    g = geometry.convolution(
        "adder_conv_backward",
        x.shape,
        w.shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )

    def on_cpu(kernels, grad, x, w, grad_x, grad_w, *options):
        kernels.adder_conv_grad_x(grad, x, w, grad_x, *options)
        kernels.adder_conv_grad_w(grad, x, w, grad_w, *options)

    return backward("adder_conv_backward", launchers.adder_conv_backward, on_cpu, g, grad, x, w)


@arrays.on_device_of_arguments
def adder_conv_sign_backward(
    grad: Array,
    x: Array,
    w: Array,
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> tuple[Array, Array]:
    """`adder_conv_backward` with the true derivative by w, for comparison with AdderNet's.

    A sum of signs is not a matrix product: on the CPU grad_w is plain array code, for study and not
    for speed.

    Parameters
    ----------
    grad, x, w, stride, padding, dilation, groups
        As in `adder_conv_backward`.

    Returns
    -------
    grad_x, grad_w : arrays, shapes of x and w

    Raises
    ------
    ValueError, TypeError
        As `adder_conv_backward`.

    Notes
    -----
    ``grad_w[k,c,i,j] = sum_nhw sign(x - w) * grad``.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.adder import adder_conv_sign_backward
    >>> x, w = np.array([[[[0.0, 0.5, 4.0]]]]), np.array([[[[3.0]]]])
    >>> adder_conv_sign_backward(np.ones((1, 1, 1, 3)), x, w)[1].item()
    -1.0
    """
    name = "adder_conv_sign_backward"
    grad, x, w = take_for_backward(name, grad, x, w)
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    g = geometry.convolution(name, x.shape, w.shape, **options)

    def on_cpu(kernels, grad, x, w, grad_x, grad_w, *options):
        kernels.adder_conv_grad_x(grad, x, w, grad_x, *options)
        _sign_gradient(grad, x, w, grad_w, *options)

    launcher = launchers.adder_conv_sign_backward
    return backward(name, launcher, on_cpu, g, grad, x, w)


def _sign_gradient(grad, x, w, grad_w, stride, padding, dilation, groups):
    grad, x = arrays.contiguous(grad), arrays.contiguous(x)  # NumPy adds in memory order
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    channels, filters = w.shape[1], len(w) // groups
    for i, j, window in geometry.windows(w.shape[2:], stride, dilation, grad.shape[2:]):
        seen = padded[(..., *window)]
        for k in range(len(w)):
            first = k // filters * channels
            sign = np.sign(seen[:, first : first + channels] - w[k, :, i, j, None, None])
            grad_w[k, :, i, j] = (sign * grad[:, k, None]).sum(axis=(0, 2, 3))


@arrays.on_device_of_arguments
def adaptive_rate(grad_w: Array, eta: float = 0.2) -> Array:
    """AdderNet's adaptive learning rate: a layer's gradient scaled to a fixed root mean square.

    Parameters
    ----------
    grad_w : array
        A layer's weight gradient, float32 or float64, any shape.
    eta : float
        The root mean square of the result.

    Returns
    -------
    array, shape and dtype of grad_w
        ``grad_w * eta * sqrt(grad_w.size) / norm2(grad_w)``; zeros stay zeros.

    Raises
    ------
    TypeError
        If `grad_w` is not float32 or float64.
    ValueError
        If `eta` is negative or not finite.

    Notes
    -----
    The result does not depend on the scale of grad_w, so accumulate or all-reduce gradients before
    calling it, not after.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.adaptive_rate(np.array([3.0, -4.0]))
    array([ 0.16970563, -0.22627417])
    """
    (grad_w,) = arrays.take_floats("adaptive_rate", grad_w=grad_w)
    eta = geometry.number("adaptive_rate", "eta", eta)
    if grad_w.size == 0:
        return grad_w.copy()
    xp = arrays.namespace(grad_w)
    # Scaled by the largest entry, so that squares neither overflow nor underflow.
    largest = xp.maximum(grad_w.max(), -grad_w.min())
    with np.errstate(invalid="ignore"):
        answer = xp.asarray(grad_w / xp.where(largest == 0, xp.ones_like(largest), largest))
    # In C order for any layout, and not by BLAS, whose sums depend on its threads.
    norm = xp.sqrt(xp.square(answer.ravel()).sum())
    answer *= eta * np.sqrt(grad_w.size) / xp.where(norm == 0, xp.ones_like(norm), norm)
    return answer


def _launch(launcher, device, *inputs, out, **options):
    """int8 and int16 have no CUDA kernel: they are computed in float64, also exactly."""
    if inputs[0].dtype not in (np.int8, np.int16):
        launcher(device, *inputs, out=out, **options)
        return
    wide = arrays.empty_beside(out, out.shape, np.float64)
    inputs = [None if array is None else array.astype(np.float64) for array in inputs]
    launcher(device, *inputs, out=wide, **options)
    out[...] = wide


def _supported(function, taps, kernel, given, a, b, bias):
    """The arrays in a dtype of the adder kernels, and the dtype of the result."""
    first, second, *_ = given
    if a.dtype.kind in "iub" and (common := np.result_type(a, b)) in INTEGERS:
        largest = np.iinfo(common).max - np.iinfo(common).min
        if bias is not None and not np.can_cast(bias.dtype, np.int32):
            raise TypeError(
                f"{function}: bias must be of an integer dtype that fits int32 when {first} is "
                f"{a.dtype}, got {bias.dtype}; {arrays.conversion(given['bias'], 'int32')}"
            )
        most = (2**31 - 1) // largest  # taps of the largest difference that fit int32
        if taps > most:
            raise ValueError(
                f"{function}: a sum over {taps} taps of {common} can exceed int32; "
                f"{most} is the most, {first} has shape {a.shape} and "
                f"{second} has shape {b.shape}"
            )
        if isinstance(bias, np.ndarray) and bias.size and bias.min() < largest * taps - 2**31:
            raise ValueError(
                f"{function}: bias goes down to {bias.min()}, and with {taps} taps of {common} the "
                "answer could fall below int32"
            )
        a, b = a.astype(common, copy=False), b.astype(common, copy=False)
        return [a, b, None if bias is None else bias.astype(np.int32, copy=False)], np.int32
    if kernel == "7_half2" and a.dtype == b.dtype == np.float16:
        if bias is not None and not np.can_cast(bias.dtype, np.float32):
            raise TypeError(
                f"{function}: bias must be of a dtype that fits float32 when {first} is float16, "
                f"got {bias.dtype}; {arrays.conversion(given['bias'])}"
            )
        return [a, b, None if bias is None else bias.astype(np.float32, copy=False)], np.float32
    converted = arrays.common_floats(function, given, [a, b, bias])
    return converted, converted[0].dtype
