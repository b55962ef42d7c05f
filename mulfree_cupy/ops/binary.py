"""The binary convolution of BNN and XNOR-Net: signs instead of numbers, XNOR instead of
products."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.geometry import PaddingLike
from mulfree_cupy.launch import binary as launchers
from mulfree_cupy.ops import spatial
from mulfree_cupy.ops.convolution import (
    conv_backward,
    forward,
    refuse_half_on_cpu,
    take_for_backward,
)
from mulfree_cupy.ops.packing import filter_scale, for_device, for_kernels, unpack

__all__ = ["binary_conv", "binary_conv_backward", "pack_signs"]


@arrays.on_device_of_arguments
def pack_signs(x: Array) -> Array:
    """Pack signs into words of 64 channels.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        Any real dtype and memory order.

    Returns
    -------
    array of uint64, shape (N, ceil(C/64), ...)
        Bit ``c % 64`` of word ``c // 64``, counted from the least, is set where ``x >= 0``: for
        -0.0, and not for NaN. Bits beyond C are not set.

    Raises
    ------
    ValueError
        If x has fewer than 2 dimensions.
    TypeError
        If x does not hold real numbers.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.pack_signs(np.array([[1.0, -2.0, 0.0, 0.5]]))
    array([[13]], dtype=uint64)
    """
    (x,) = arrays.take("pack_signs", x=x)
    if x.ndim < 2:
        raise ValueError(f"pack_signs: x must have shape (N, C, ...), got {x.shape}")
    xp, channels = arrays.namespace(x), x.shape[1]
    words = -(-channels // 64)
    device = launch.device_for(x)
    if device is not None and x.size and x.dtype in (np.float16, np.float32, np.float64):
        packed = arrays.empty_beside(x, (len(x), words, *x.shape[2:]), np.uint64)
        planes = arrays.contiguous(x).reshape(*x.shape[:2], 1, -1)
        launchers.pack_signs(device, planes, packed.reshape(len(x), words, 1, -1))
        return packed
    with arrays.device_of(x):
        positive = xp.zeros((x.shape[0], *x.shape[2:], 64 * words), bool)
        positive[..., :channels] = xp.moveaxis(x, 1, -1) >= 0
        packed = xp.packbits(positive, bitorder="little").view(np.dtype("<u8"))
        packed = packed.reshape(*positive.shape[:-1], words)
        return xp.ascontiguousarray(xp.moveaxis(packed, -1, 1).astype(np.uint64, copy=False))


@arrays.on_device_of_arguments
def binary_conv(
    x: Array,
    w: Array,
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    scale: bool = True,
    out: Array | None = None,
    kernel: str | None = None,
) -> Array:
    """Convolution of the sign of x with the sign of w, by XNOR and population count.

    Parameters
    ----------
    x : array, shape (N, C, H, W) or (N, C, L)
        float32 or float64, in any memory order; on a GPU float16 too.
    w : array, shape (K, C/groups, kh, kw), or with the axes of x, or PackedWeights
        See `pack`.
    stride, padding, dilation
        As in `conv`.
    groups : int
        Divides C and K.
    scale : bool
        Multiply by each filter's mean ``abs(w)``, as XNOR-Net does.
    out : array, shape (N, K, OH, OW), optional
        Receives the result; must not overlap an input.
    kernel : str, optional
        Name of a CUDA kernel such as ``"1_naive"``, for study; see `kernels`. The default is the
        fastest that the GPU supports.

    Returns
    -------
    array, shape (N, K, OH, OW)
        float32, or float64 if an input is, or float16 if both are. Without `scale` the values are
        integers, exact up to 2**24 taps in float32 and 2**11 in float16.

    Raises
    ------
    ValueError
        If shapes, parameters or `out` do not fit, or there is no such kernel.
    TypeError
        If a dtype is not served, the arrays are on different devices, or `scale` is not a bool.

    Notes
    -----
    ``y[n,k,h,w] = scale[k] * sum_cij sign(x[n, c, h*stride - padding + i*dilation, ...]) *
    sign(w[k,c,i,j])`` with ``sign(v) = 1`` where ``v >= 0``, else -1, for NaN too. Padding counts
    as 0, which is neither sign.

    XNOR-Net [1]_ multiplies by the mean of ``abs(x)`` over each window as well, which its authors
    found to matter little; here only the sign of x is used.

    References
    ----------
    .. [1] M. Rastegari et al., "XNOR-Net: ImageNet Classification Using Binary Convolutional
       Neural Networks", ECCV 2016.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> x, w = np.full((1, 2, 3, 3), 0.3), np.full((1, 2, 3, 3), -0.5)
    >>> mf.binary_conv(x, w, padding=1)[0, 0]
    array([[-4., -6., -4.],
           [-6., -9., -6.],
           [-4., -6., -4.]])
    """
    _check_scale("binary_conv", scale)
    w, packed = unpack("binary_conv", w, "binary", groups)
    given = dict(x=x, w=w)
    x, w = arrays.take_floats("binary_conv", also=(np.float16,), **given)
    refuse_half_on_cpu("binary_conv", given["x"], x)
    g = geometry.convolution(
        "binary_conv",
        x.shape,
        w.shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        most_axes=2,
    )
    launch.check_kernel("binary_conv", kernel, x=x)
    factor = None
    if scale and g.taps:
        made = packed is not None and packed.dtype == w.dtype
        # Rounded to float16 once, after the scale.
        wide = w.astype(np.float32) if w.dtype == np.float16 else w
        factor = packed.scale if made else filter_scale(wide)

    def on_cpu(kernels, x, w, factor, out, *options):
        kernels.binary_conv(x, for_kernels("binary_conv", packed, w), factor, out, *options)

    def on_device(device, x, w, factor, out, g):
        w = for_device("binary_conv", packed, w, kernel)
        launchers.binary_conv(device, x, w, factor, out, g, kernel)

    return forward("binary_conv", on_device, on_cpu, g, x, w, factor, out, x.dtype, given)


def signs(a: Array) -> Array:
    """1 where ``a >= 0``, else -1, in the dtype of a."""
    sign = (a >= 0).astype(a.dtype)  # NumPy's `where` takes twenty times as long
    sign *= 2
    sign -= 1
    return sign


@arrays.on_device_of_arguments
def binary_conv_backward(
    grad: Array,
    x: Array,
    w: Array,
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    scale: bool = True,
) -> tuple[Array, Array]:
    """Gradients of the binary convolution by the straight-through estimator.

    The sign has no useful derivative: it is replaced by 1 where the argument is in [-1, 1], and 0
    elsewhere. A finite-difference check must therefore fail.

    Parameters
    ----------
    grad : array, shape (N, K, OH, OW)
    x : array, shape (N, C, H, W)
    w : array, shape (K, C/groups, kh, kw)
    stride, padding, dilation, groups, scale
        As given to `binary_conv`.

    Returns
    -------
    grad_x, grad_w : arrays, shapes of x and w

    Raises
    ------
    ValueError
        If shapes or parameters do not fit.
    TypeError
        If a dtype is not served, the arrays are on different devices, or `scale` is not a bool.

    Notes
    -----
    With the effective filters b = scale * sign(w) and G the gradient by b of the ordinary
    convolution of sign(x), ``grad_x`` is its gradient by sign(x) where ``abs(x) <= 1``, and

    ``grad_w = scale * (abs(w) <= 1) * G + sign(w) * mean(sign(w) * G)``,

    with the mean over each filter: the chain rule through the sign and the scale. XNOR-Net's text
    has ``(1/n + scale * (abs(w) <= 1)) * G``, which takes the mean for G of the one weight.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> x, w = np.array([[[[-3.0, 0.5]]]]), np.array([[[[2.0]]]])
    >>> grad_x, grad_w = mf.binary_conv_backward(np.ones((1, 1, 1, 2)), x, w)
    >>> grad_x.ravel(), grad_w.ravel()
    (array([0., 2.]), array([0.]))
    """
    _check_scale("binary_conv_backward", scale)
    grad, x, w = take_for_backward("binary_conv_backward", grad, x, w)
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    g = geometry.convolution("binary_conv_backward", x.shape, w.shape, **options, most_axes=2)
    geometry.check_shape("binary_conv_backward", "grad", grad.shape, g.out_shape, "(N, K, OH, OW)")
    sign = signs(w)
    factor = w.dtype.type(1)
    if scale and g.taps:
        factor = spatial.by_channel(filter_scale(w), w.ndim - 1)
    grad_x, grad_filter = conv_backward(grad, signs(x), factor * sign, **options)
    grad_w = _straight_through(factor * grad_filter, w)
    if scale and g.taps:
        grad_w += sign * (sign * grad_filter).mean(axis=tuple(range(1, w.ndim)), keepdims=True)
    return _straight_through(grad_x, x), grad_w


def _check_scale(function: str, scale: bool) -> None:
    if not isinstance(scale, (bool, np.bool_)):
        raise TypeError(
            f"{function}: scale must be True (each filter's mean absolute weight) or False, got "
            f"{type(scale).__name__}"
        )


def _straight_through(grad, a):
    inside = a <= 1
    inside &= a >= -1
    return arrays.namespace(a).where(inside, grad, grad.dtype.type(0))
