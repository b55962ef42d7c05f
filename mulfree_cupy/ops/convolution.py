"""Ordinary convolution, im2col and col2im: the baseline."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.geometry import PaddingLike
from mulfree_cupy.launch import convolution as launchers
from mulfree_cupy.ops import spatial
from mulfree_cupy.ops.packing import for_kernels, unpack

__all__ = ["col2im", "conv", "conv_backward", "im2col"]


@arrays.on_device_of_arguments
def im2col(
    x: Array,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
) -> Array:
    """Arrange every window of an image as a column, so that a convolution becomes a matrix product.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        NumPy, CuPy or ``__dlpack__``; any real dtype.
    kernel_size, stride : int or pair of ints
        The window (kh, kw), and its step.
    padding : int, pair of ints, two pairs of ints, "same" or "valid"
        Zeros around the image, as in `conv`.
    dilation : int or pair of ints
        The distance between taps.

    Returns
    -------
    array, shape (N, C*kh*kw, OH*OW), dtype of x
        Rows in (c, i, j) order; with the rows of padding above the image and below it,
        ``OH = (H + above + below - dilation*(kh - 1) - 1) // stride + 1``.

    Raises
    ------
    ValueError
        If x is not 4-D, a parameter is out of range, or the kernel exceeds the padded image.
    TypeError
        If x does not hold real numbers, or a parameter has the wrong type.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> mf.im2col(x, 2)[0]
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.],
           [3., 4., 6., 7.],
           [4., 5., 7., 8.]])
    """
    (x,) = arrays.take("im2col", x=x)
    g = geometry.window(
        "im2col", x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation
    )
    cols = arrays.empty_beside(x, g.cols_shape, x.dtype)
    if cols.size == 0:
        return cols
    device = launch.device_for(x)
    if device is None:
        launch.cpu_kernels().im2col(x, cols, g.kernel, g.stride, g.padding, g.dilation)
    else:
        launchers.im2col(device, arrays.contiguous(x), cols, g)
    return cols


@arrays.on_device_of_arguments
def col2im(
    cols: Array,
    x_shape: tuple[int, int, int, int],
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
) -> Array:
    """Accumulate columns into an image: the adjoint of `im2col`.

    Parameters
    ----------
    cols : array, shape (N, C*kh*kw, OH*OW)
        float32 or float64, rows in (c, i, j) order.
    x_shape : tuple of 4 ints
        (N, C, H, W) of the result.
    kernel_size, stride, padding, dilation
        As given to `im2col`.

    Returns
    -------
    array, shape (N, C, H, W), dtype of cols
        Where windows overlap their entries are summed; pixels outside all windows are zero.

    Raises
    ------
    ValueError
        If `cols` does not have the shape that `im2col` gives for these parameters.
    TypeError
        If `cols` is not float32 or float64.

    Notes
    -----
    ``(im2col(x) * y).sum() == (x * col2im(y)).sum()`` for all x and y.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.col2im(np.ones((1, 4, 4)), (1, 1, 3, 3), 2)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    (cols,) = arrays.take_floats("col2im", cols=cols)
    shape = geometry.shape4("col2im", "x_shape", x_shape)
    g = geometry.window(
        "col2im", shape, kernel_size, stride=stride, padding=padding, dilation=dilation
    )
    geometry.check_shape("col2im", "cols", cols.shape, g.cols_shape, "(N, C*kh*kw, OH*OW)")
    x = arrays.empty_beside(cols, shape, cols.dtype)
    if x.size == 0:
        return x
    device = launch.device_for(cols)
    if device is None:
        launch.cpu_kernels().col2im(cols, x, g.kernel, g.stride, g.padding, g.dilation)
    else:
        launchers.col2im(device, arrays.contiguous(cols), x, g)
    return x


@arrays.on_device_of_arguments
def conv(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    out: Array | None = None,
    kernel: str | None = None,
) -> Array:
    """Ordinary convolution (cross-correlation, as in every network) in 1-D, 2-D or 3-D.

    Parameters
    ----------
    x : array, shape (N, C, H, W), (N, C, L) or (N, C, D, H, W)
        float32, float64, complex64 or complex128, in any memory order.
    w : array, shape (K, C/groups, kh, kw), or with the axes of x, or PackedWeights
        See `pack`, which is for real numbers.
    bias : array, shape (K,), optional
    stride : int, or one for each axis
    padding : int, one for each axis, a pair of ints for each axis, "same" or "valid"
        Zeros around the image: the same number before and after each axis, or pairs
        (before, after) as in `numpy.pad` and JAX. ``"same"``, only for stride 1, keeps the size: it
        adds ``dilation*(kh - 1)`` rows, half of them before and half after, the odd one after, as
        in PyTorch. ``"valid"`` is 0.
    dilation : int, or one for each axis
    groups : int
        Divides C and K; ``groups=C`` is the depthwise convolution.
    out : array, shape (N, K, OH, OW), or with the axes of x, optional
        Receives the result; must not overlap an input.
    kernel : str, optional
        Name of a CUDA kernel, ``"1_im2col"`` or ``"2_implicit_conv"``, for study. The default is
        the second, or a special kernel for a depthwise convolution; the first is a matrix product,
        by cuBLAS on a GPU.

    Returns
    -------
    array, shape (N, K, OH, OW), or with the axes of x
        In the common dtype of the inputs.

    Raises
    ------
    ValueError
        If shapes, parameters or `out` do not fit, or there is no such kernel.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    ``y[n,k,h,w] = bias[k] + sum_cij x[n, c, h*stride - padding + i*dilation, ...] * w[k,c,i,j]``,
    x being zero outside the image. Complex weights are not conjugated, as in PyTorch;
    `scipy.signal.correlate` conjugates them.

    A 1-D convolution copies nothing. A 3-D convolution copies the input planes of the depth taps,
    for a few output depths at a time. A complex convolution is a real one with twice the channels
    and filters, equivalent to four real ones; three, by Gauss's trick, are less accurate where real
    and imaginary parts differ in magnitude.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> mf.conv(np.ones((1, 2, 3, 3)), np.ones((1, 2, 3, 3)), padding=1)[0, 0]
    array([[ 8., 12.,  8.],
           [12., 18., 12.],
           [ 8., 12.,  8.]])
    """
    w, packed = unpack("conv", w, "conv", groups)
    given = dict(x=x, w=w, bias=bias)
    x, w, bias = arrays.take_floats("conv", **given, optional=("bias",), **_COMPLEX_TOO)
    g = geometry.convolution(
        "conv", x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )

    launch.check_kernel("conv", kernel, x=x)
    if x.dtype.kind == "c":
        return _complex_conv(g, x, w, bias, out, given, kernel)

    def on_cpu(kernels, x, w, bias, out, *options):
        kernels.conv(x, for_kernels("conv", packed, w), bias, out, *options)

    return forward(
        "conv", launchers.conv, on_cpu, g, x, w, bias, out, x.dtype, given, kernel=kernel
    )


@arrays.on_device_of_arguments
def conv_backward(
    grad: Array,
    x: Array,
    w: Array,
    *,
    stride: int | tuple[int, int] = 1,
    padding: PaddingLike = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> tuple[Array, Array]:
    """Gradients of ``(conv(x, w) * grad).sum()`` with respect to x and w.

    Parameters
    ----------
    grad : array, shape (N, K, OH, OW)
    x : array, shape (N, C, H, W)
    w : array, shape (K, C/groups, kh, kw)
        Or all of them in 1-D or 3-D.
    stride, padding, dilation, groups
        As given to `conv`.

    Returns
    -------
    grad_x, grad_w : arrays, shapes of x and w

    Raises
    ------
    ValueError
        If shapes or parameters do not fit.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    For complex numbers, the gradient of a real L with respect to z is
    ``dL/d(re z) + i dL/d(im z)``, as in PyTorch; in JAX it is the conjugate. So these are the
    gradients of the real part of ``(conv(x, w) * conj(grad)).sum()``.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> grad_x, grad_w = mf.conv_backward(
    ...     np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 3)), np.full((1, 1, 2, 2), 2.0))
    >>> grad_x[0, 0]
    array([[2., 4., 2.],
           [4., 8., 4.],
           [2., 4., 2.]])
    >>> grad_w[0, 0]
    array([[4., 4.],
           [4., 4.]])
    """
    grad, x, w = take_for_backward("conv_backward", grad, x, w, **_COMPLEX_TOO)
    g = geometry.convolution(
        "conv_backward",
        x.shape,
        w.shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    if x.dtype.kind == "c":
        return _complex_backward(g, grad, x, w)

    def on_cpu(kernels, grad, x, w, grad_x, grad_w, *options):
        kernels.conv_grad_x(grad, w, grad_x, *options)
        kernels.conv_grad_w(grad, x, grad_w, *options)

    return backward("conv_backward", launchers.conv_backward, on_cpu, g, grad, x, w)


_COMPLEX_TOO = {
    "also": (np.complex64, np.complex128),
    "check": arrays.real_or_complex_numbers,
}


def _complex_conv(g, x, w, bias, out, given, kernel):
    """A real convolution of real and imaginary parts as separate channels and filters."""
    if bias is not None:
        geometry.check_shape("conv", "bias", bias.shape, (g.filters,), "(K,)")
        bias = _parts(bias[None])[0]
    out = arrays.output_array("conv", out, g.out_shape, x.dtype, **given)
    y = conv(_parts(x), _filters_of_parts(w), bias, **_options(g), kernel=kernel)
    result = arrays.answer(out, g.out_shape, x.dtype, like=x)
    return arrays.deliver(_joined(y, result), out)


def _complex_backward(g, grad, x, w):
    geometry.check_shape("conv_backward", "grad", grad.shape, g.out_shape, "(N, K, OH, OW)")
    arguments = _parts(grad), _parts(x), _filters_of_parts(w)
    of_x, of_filters = conv_backward(*arguments, **_options(g))
    grad_x, grad_w = (arrays.empty_beside(x, shape, x.dtype) for shape in (x.shape, w.shape))
    _joined(of_x, grad_x)
    of = of_filters.reshape(len(w), 2, w.shape[1], 2, *w.shape[2:])
    grad_w.real[...] = of[:, 0, :, 0] + of[:, 1, :, 1]
    grad_w.imag[...] = of[:, 1, :, 0] - of[:, 0, :, 1]
    return grad_x, grad_w


def _options(g):
    return dict(stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.groups)


def _parts(a: Array) -> Array:
    """Real and imaginary part of each channel, interleaved: (N, 2*C, ...)."""
    stacked = arrays.namespace(a).stack((a.real, a.imag), 2)
    return stacked.reshape(len(a), 2 * a.shape[1], *a.shape[2:])


def _filters_of_parts(w: Array) -> Array:
    """Real filters that map the `_parts` of x to those of y: (2*K, 2*C/groups, ...)."""
    stack = arrays.namespace(w).stack
    rows = stack((w.real, -w.imag), 2), stack((w.imag, w.real), 2)
    return stack(rows, 1).reshape(2 * len(w), 2 * w.shape[1], *w.shape[2:])


def _joined(parts: Array, answer: Array) -> Array:
    """Fill a complex array from its `_parts`."""
    answer.real[...], answer.imag[...] = parts[:, 0::2], parts[:, 1::2]
    return answer


@arrays.on_device_of_arguments
def matmul(a: Array, b: Array) -> Array:
    """``a @ b`` of floats by the convolution kernels: bit-identical for any number of threads.

    It avoids BLAS, whose rounding may depend on its number of threads, and cuBLAS, which cannot be
    captured in a CUDA graph; on a GPU only for two matrices of one dtype.

    Parameters
    ----------
    a, b : array
        At least 2-D, of one namespace. Fastest if `b` is the transpose of a matrix in C order, such
        as a linear layer's weight.

    Returns
    -------
    array
    """
    if _is_convolution(a, b):
        return conv(*_as_images(a, b))[:, :, 0, 0]
    return _on_cpu(_along_sums if a.shape[-2] < _FEW_ROWS else _along_columns, a, b)


@arrays.on_device_of_arguments
def matmul_backward(grad: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Gradients of ``(matmul(a, b) * grad).sum()`` with respect to a and b."""
    if _is_convolution(a, b):
        grad_a, grad_b = conv_backward(grad[:, :, None, None], *_as_images(a, b))
        return grad_a[:, :, 0, 0], grad_b[:, :, 0, 0].T
    grad_a = _on_cpu(_along_columns, grad, b.swapaxes(-1, -2))
    grad_b = _on_cpu(_along_columns, grad.swapaxes(-1, -2), a)
    return grad_a, grad_b.swapaxes(-1, -2)


def _is_convolution(a: Array, b: Array) -> bool:
    matrices = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]
    floats = a.dtype == b.dtype and a.dtype in (np.float32, np.float64)
    return matrices and floats and launch.device_for(a) is not None


def _as_images(a: Array, b: Array) -> tuple[Array, Array]:
    """The rows of a as images of one pixel, the columns of b as filters of one tap."""
    return a[:, :, None, None], b.T[:, :, None, None]


def _on_cpu(product, a: Array, b: Array) -> Array:
    """The product of two matrices, or of two stacks of them, by a CPU kernel if there is one."""
    dtype, terms = np.result_type(a.dtype, b.dtype), a.shape[-1]
    has_kernel = launch.device_for(a) is None and dtype in (np.float32, np.float64)
    if not has_kernel or terms != b.shape[-2]:
        return a @ b
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    answer = np.zeros((*stack, a.shape[-2], b.shape[-1]), dtype)
    if answer.size == 0 or terms == 0:
        return answer
    a, b = (np.broadcast_to(m.astype(dtype, copy=False), (*stack, *m.shape[-2:])) for m in (a, b))
    for at in np.ndindex(stack):
        product(launch.cpu_kernels(), a[at], b[at], answer[at])
    return answer


_FEW_ROWS = 32  # of a: too few for packing a strided b to pay
PLAIN = (1, 1), ((0, 0), (0, 0)), (1, 1), 1  # stride, padding, dilation, groups


def _along_columns(kernels, a: Array, b: Array, answer: Array) -> None:
    """A 1x1 convolution: the rows of a are filters, the columns of b the pixels of one image."""
    filters = arrays.contiguous(a)[:, :, None, None]
    kernels.conv(b[None, :, None], filters, None, answer[None, :, None], *PLAIN)


def _along_sums(kernels, a: Array, b: Array, answer: Array) -> None:
    """As the weight gradient of a 1x1 convolution, which sums over pixels."""
    kernels.conv_grad_w(a[None, :, None], b.T[None, :, None], answer[:, :, None, None], *PLAIN)


@np.errstate(invalid="ignore", over="ignore")  # NaN and Inf propagate without warnings
def forward(function, launcher, on_cpu, g, x, w, bias, out, dtype, given, **options):
    """Check bias and out, then fill out by the CPU kernel or the launcher.

    `given` holds the arguments x, w and bias as the caller gave them.
    """
    if bias is not None:
        geometry.check_shape(function, "bias", bias.shape, (g.filters,), "(K,)")
    shape = g.out_shape
    out = arrays.output_array(function, out, shape, dtype, **given)
    result = arrays.answer(out, shape, dtype, like=x)
    device = launch.device_for(x)
    if result.size and g.taps:
        w, bias = arrays.contiguous(w), arrays.contiguous(bias)

        def compute(x, w, out, g):
            if device is None:
                window = g.stride, g.padding, g.dilation, g.groups
                on_cpu(launch.cpu_kernels(), x, w, bias, out, *window)
            else:
                launcher(device, arrays.contiguous(x), w, bias, out, g, **options)

        spatial.forward(compute, g, x, w, result)
    else:
        result[...] = 0 if bias is None else spatial.by_channel(bias, len(g.size))
    return arrays.deliver(result, out)


def refuse_half_on_cpu(function, given, x):
    """Raise for float16 on the CPU; `given` is x as the caller passed it."""
    if x.dtype == np.float16 and launch.device_for(x) is None:
        raise TypeError(
            f"{function}: float16 is for GPUs, the CPU has no arithmetic for it; "
            f"{arrays.conversion(given)}"
        )


def take_for_backward(function, grad, x, w, also=(), check=arrays.real_numbers):
    """As `arrays.take_floats`; x and w must have a float dtype before promotion with grad."""
    given = dict(grad=grad, x=x, w=w)
    taken = arrays.take(function, check=check, **given)
    arrays.common_floats(function, dict(x=x, w=w), taken[1:], also)
    return arrays.common_floats(function, given, taken, also)


@np.errstate(invalid="ignore", over="ignore")
def backward(function, launcher, on_cpu, g, grad, x, w):
    """Check grad, then fill grad_x and grad_w by the CPU kernels or the launcher."""
    geometry.check_shape(function, "grad", grad.shape, g.out_shape, "(N, K, OH, OW)")
    grad_x, grad_w = (arrays.empty_beside(x, shape, x.dtype) for shape in (g.x_shape, w.shape))
    device = launch.device_for(x)
    if not (grad.size and g.taps):
        grad_x[...], grad_w[...] = 0, 0
        return grad_x, grad_w

    def compute(grad, x, w, grad_x, grad_w, g):
        if device is None:
            window = g.stride, g.padding, g.dilation, g.groups
            on_cpu(launch.cpu_kernels(), grad, x, w, grad_x, grad_w, *window)
        else:
            launcher(device, *map(arrays.contiguous, (grad, x, w)), grad_x, grad_w, g)

    spatial.backward(compute, g, grad, x, arrays.contiguous(w), grad_x, grad_w)
    return grad_x, grad_w
