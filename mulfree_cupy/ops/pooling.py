"""Max and average pooling, and the mean of each plane.

NumPy arrays of float32, float64 and, except for `avg_pool`, uint8 use compiled kernels; all others,
and installations without a compiler, array expressions.
"""

from __future__ import annotations

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.geometry import PaddingLike

__all__ = ["avg_pool", "global_average_pool", "max_pool"]


@arrays.on_device_of_arguments
def max_pool(
    x: Array,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: PaddingLike = 0,
    out: Array | None = None,
) -> Array:
    """Largest value of each window, or NaN if it holds one.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Real numbers, in any memory order.
    kernel_size : int or pair of ints
    stride : int or pair of ints, optional
        By default `kernel_size`.
    padding : int, pair of ints, two pairs of ints, "same" or "valid"
        As in `conv`. Must be smaller than `kernel_size`, so that no window is all padding.
    out : array, shape (N, C, OH, OW), dtype of x, optional
        Receives the result; must not overlap x.

    Returns
    -------
    array, shape (N, C, OH, OW), dtype of x

    Raises
    ------
    ValueError
        If shapes, parameters or `out` do not fit.
    TypeError
        If x does not hold real numbers, or a parameter has the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.pooling import max_pool
    >>> max_pool(np.arange(16.0).reshape(1, 1, 4, 4), 2)[0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    given, x = x, arrays.take_one("max_pool", "x", x)
    g = window("max_pool", x, kernel_size, stride, padding)
    if any(max(p) >= k for p, k in zip(g.padding, g.kernel, strict=True)):
        raise ValueError(
            f"max_pool: padding {g.padding} must be smaller than the kernel {g.kernel}: a window "
            "would see nothing of the image"
        )
    out = arrays.output_array("max_pool", out, g.out_shape, x.dtype, x=given)
    kernels = launch.compiled_kernels(x, np.float32, np.float64, np.uint8)
    if kernels is not None:
        return _pooled(kernels.max_pool, x, g, out)
    padded, (first, *others) = bordered(x, lowest(x.dtype), g), windows(g)
    y = padded[first].copy()
    for seen in others:
        namespace(x).maximum(y, padded[seen], out=y)
    return arrays.deliver(y, out)


@arrays.on_device_of_arguments
def avg_pool(
    x: Array,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: PaddingLike = 0,
    out: Array | None = None,
) -> Array:
    """Mean of each window, zero padding included.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Real numbers, in any memory order.
    kernel_size : int or pair of ints
    stride : int or pair of ints, optional
        By default `kernel_size`.
    padding : int, pair of ints, two pairs of ints, "same" or "valid"
        As in `conv`.
    out : array, shape (N, C, OH, OW), optional
        Receives the result; must not overlap x.

    Returns
    -------
    array, shape (N, C, OH, OW)
        Of the dtype of x, or float64 if x holds integers. float16 is summed in float32.

    Raises
    ------
    ValueError
        If shapes, parameters or `out` do not fit.
    TypeError
        If x does not hold real numbers, or a parameter has the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.pooling import avg_pool
    >>> avg_pool(np.arange(16).reshape(1, 1, 4, 4), 2)[0, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    given, x = x, arrays.take_one("avg_pool", "x", x)
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    g = window("avg_pool", x, kernel_size, stride, padding)
    out = arrays.output_array("avg_pool", out, g.out_shape, x.dtype, x=given)
    kernels = launch.compiled_kernels(x, np.float32, np.float64)
    if kernels is not None:
        return _pooled(kernels.avg_pool, x, g, out)
    padded, (first, *others) = bordered(summable(x), 0, g), windows(g)
    total = padded[first].copy()
    for seen in others:
        total += padded[seen]
    return arrays.deliver((total * share(g, x.dtype)).astype(x.dtype, copy=False), out)


@arrays.on_device_of_arguments
def global_average_pool(x: Array, *, out: Array | None = None) -> Array:
    """Mean of each plane.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Real numbers, in any memory order.
    out : array, shape (N, C), optional
        Receives the result; must not overlap x.

    Returns
    -------
    array, shape (N, C)
        Of the dtype of x; float32 for uint8, whose sums are exact, and float64 for other integers.

    Raises
    ------
    ValueError
        If a plane has no pixels, or `out` does not fit.
    TypeError
        If x does not hold real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.pooling import global_average_pool
    >>> global_average_pool(np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2))
    array([[1.5, 5.5]], dtype=float32)
    """
    given, x = x, arrays.take_one("global_average_pool", "x", x)
    geometry.window("global_average_pool", x.shape, 1)  # which checks it
    integers = np.float32 if x.dtype == np.uint8 else np.float64
    dtype, shape = x.dtype if x.dtype.kind == "f" else np.dtype(integers), x.shape[:2]
    out = arrays.output_array("global_average_pool", out, shape, dtype, x=given)
    kernels = launch.compiled_kernels(x, np.float32, np.float64, np.uint8)
    if kernels is not None:
        y = arrays.answer(out, shape, dtype, x)
        kernels.plane_means(arrays.contiguous(x), y)
    else:
        y = summable(x).mean(axis=(2, 3)).astype(dtype, copy=False)  # of integers, in float64
    return arrays.deliver(y, out)


def _pooled(kernel, x, g, out):
    y = arrays.answer(out, g.out_shape, x.dtype, x)
    kernel(arrays.contiguous(x), y, g.kernel, g.stride, g.padding)
    return arrays.deliver(y, out)


# Used by the array expressions and the gradients (autograd/rules.py).


def window(function, x, kernel_size, stride, padding) -> geometry.ConvGeometry:
    """The checked geometry of a pooling."""
    stride = kernel_size if stride is None else stride
    geometry.check_rank(function, "x", x.shape, "N, C, H, W")
    options = {"filters": x.shape[1], "stride": stride, "padding": padding}
    return geometry.window(function, x.shape, kernel_size, **options)


def windows(g) -> list[tuple]:
    """Index into the padded image for each position of the window."""
    taps = geometry.windows(g.kernel, g.stride, g.dilation, g.out_shape[2:])
    return [(..., *slices) for _, _, slices in taps]


def bordered(image, outside, g):
    shape = *image.shape[:-2], *g.padded_size
    padded = namespace(image).full(shape, outside, image.dtype)
    inside(padded, g)[...] = image
    return padded


def inside(padded, g):
    """View of the image inside the padded image."""
    (top, left), (height, width) = g.before, g.size
    return padded[..., top : top + height, left : left + width]


def lowest(dtype):
    """The smallest value of the dtype."""
    return -np.inf if dtype.kind == "f" else False if dtype.kind == "b" else np.iinfo(dtype).min


def share(g, dtype):
    """Each number's term in the mean of its window; float32 for float16."""
    return np.promote_types(dtype, np.float32).type(1 / (g.kernel[0] * g.kernel[1]))


def summable(a):
    """The array, converted from float16 to float32, because sums overflow float16."""
    return a.astype(np.float32) if a.dtype == np.float16 else a
