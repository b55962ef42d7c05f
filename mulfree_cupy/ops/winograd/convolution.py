"""Winograd convolution with dense or sparse weights, and its gradients."""

from __future__ import annotations

import functools

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.geometry import PaddingLike
from mulfree_cupy.launch import numpy_winograd, select
from mulfree_cupy.launch import winograd as launchers
from mulfree_cupy.ops.winograd.matrices import matrices
from mulfree_cupy.ops.winograd.weights import WinogradWeights

__all__ = ["KERNELS", "winograd_conv", "winograd_conv_backward"]

KERNELS = ("dense", "sparse", "blocks", "scipy")


@arrays.on_device_of_arguments
@np.errstate(invalid="ignore", over="ignore")  # NaN and Inf propagate without warnings
def winograd_conv(
    x: Array,
    weights: WinogradWeights,
    bias: Array | None = None,
    *,
    padding: PaddingLike = 1,
    relu: bool = False,
    out: Array | None = None,
    kernel: str | None = None,
) -> Array:
    """Winograd convolution, or the Winograd-ReLU layer, with weights in the Winograd domain.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        float32 or float64, in any memory order. Weights of another dtype are converted in each
        call.
    weights : WinogradWeights, shape (t, t, K, C)
    bias : array, shape (K,), optional
    padding : int, pair of ints, two pairs of ints, "same" or "valid"
        Zeros around the image, as in `conv`; the first tile begins at their first row and column.
        Tiles may extend past the other end, over zeros, and their outputs are cropped.
    relu : bool
        Apply a ReLU to the transformed input. The layer is then not a convolution: it depends on
        where the tiles begin, and on the signs of the transform.
    out : array, shape (N, K, OH, OW), optional
        Receives the result; must not overlap an input.
    kernel : str, optional
        On the CPU ``"dense"``, ``"sparse"``, ``"blocks"`` (four filters share a sparsity pattern)
        or ``"scipy"``. The default is the fastest for the weights' density. On a GPU a rung of
        ``cuda/winograd``: ``"1_dense"``, ``"2_sparse"``, and for m = 2 ``"3_fused"`` or
        ``"4_frozen"``; by default the last after `WinogradWeights.freeze`, else the second up to a
        density of 1/10 and the first above.

    Returns
    -------
    array, shape (N, K, OH, OW)
        float32, or float64 if an input is; ``OH = H + above + below - 2``.

    Raises
    ------
    ValueError
        If shapes, padding or `out` do not fit, or there is no such kernel.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    ``AT @ (sum_c U * V) @ AT.T`` for each tile d of t x t pixels, m pixels apart, with
    ``V = BT @ d @ BT.T``, or ``max(V, 0)`` for the Winograd-ReLU layer [1]_, and the matrices of
    `winograd_matrices`. An infinite or NaN pixel may affect any output of its tiles, but no others.
    At a pruned weight a kernel may multiply it by zero, or skip it.

    References
    ----------
    .. [1] X. Liu et al., "Efficient Sparse-Winograd Convolutional Neural Networks", ICLR 2018.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> weights = mf.WinogradWeights.from_spatial(np.ones((1, 2, 3, 3)))
    >>> mf.winograd_conv(np.ones((1, 2, 3, 3)), weights)[0, 0]
    array([[ 8., 12.,  8.],
           [12., 18., 12.],
           [ 8., 12.,  8.]])
    """
    name = "winograd_conv"
    x, bias, weights, g, given = _checked(name, x, weights, padding, bias=bias)
    device = launch.device_for(x)
    if device is not None or kernel in select.names(name):
        launch.check_kernel(name, kernel, x=x)
    elif kernel is not None and kernel not in KERNELS:
        raise ValueError(f"{name}: no kernel named {kernel!r}; there are {', '.join(KERNELS)}")
    if bias is not None:
        geometry.check_shape(name, "bias", bias.shape, (g.filters,), "(K,)")
    out = arrays.output_array(name, out, g.out_shape, x.dtype, **given)
    result = arrays.answer(out, g.out_shape, x.dtype, like=x)
    if not result.size or not g.channels:
        result[...] = 0 if bias is None else bias[:, None, None]
    elif device is not None:
        launchers.winograd_conv(
            device, arrays.contiguous(x), weights, matrices(weights.m, weights.points),
            arrays.contiguous(bias), result, g, bool(relu), kernel,
        )  # fmt: skip
    else:
        kernel = kernel or fastest(weights)
        arguments = arrays.contiguous(bias), result, g.padding, bool(relu)
        if kernel == "scipy":
            BT, _, AT = matrices(weights.m, weights.points)
            numpy_winograd.forward(x, _scipy_product(weights), *arguments, (BT, AT))
        else:
            plan = weights.plan(kernel)
            launch.cpu_kernels().winograd_conv(x, plan, *arguments, transforms_for_kernels(weights))
    return arrays.deliver(result, out)


@arrays.on_device_of_arguments
@np.errstate(invalid="ignore", over="ignore")
def winograd_conv_backward(
    grad: Array,
    x: Array,
    weights: WinogradWeights,
    *,
    padding: PaddingLike = 1,
    relu: bool = False,
) -> tuple[Array, Array]:
    """Gradients of ``(winograd_conv(x, weights) * grad).sum()`` with respect to x and the weights.

    Parameters
    ----------
    grad : array, shape (N, K, OH, OW)
    x : array, shape (N, C, H, W)
    weights : WinogradWeights, shape (t, t, K, C)
    padding, relu
        As given to `winograd_conv`.

    Returns
    -------
    grad_x, grad_u : arrays, shapes (N, C, H, W) and (t, t, K, C)
        grad_u is zero where the weights are pruned.

    Raises
    ------
    ValueError
        If shapes or padding do not fit.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    With ``dM = A @ grad @ A.T`` for each tile: ``grad_u = mask * sum dM * V`` over the tiles, and
    each tile's ``B @ (sum_k U * dM) @ B.T`` (with relu: masked to V > 0) is accumulated into
    grad_x, as tiles overlap.

    Examples
    --------
    >>> import numpy as np, mulfree_cupy as mf
    >>> weights = mf.WinogradWeights.from_spatial(np.ones((1, 1, 3, 3)))
    >>> grad_x, grad_u = mf.winograd_conv_backward(
    ...     np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)), weights)
    >>> grad_x[0, 0]
    array([[4., 4.],
           [4., 4.]])
    >>> grad_u.shape
    (4, 4, 1, 1)
    """
    name = "winograd_conv_backward"
    x, grad, weights, g, _ = _checked(name, x, weights, padding, grad=grad)
    geometry.check_shape(name, "grad", grad.shape, g.out_shape, "(N, K, OH, OW)")
    grad_x = arrays.empty_beside(x, g.x_shape, x.dtype)
    grad_u = arrays.empty_beside(x, weights.shape, x.dtype)
    device = launch.device_for(x)
    if not grad.size or not g.channels:
        grad_x[...], grad_u[...] = 0, 0
    elif device is not None:
        launchers.winograd_conv_backward(
            device, arrays.contiguous(grad), arrays.contiguous(x), weights,
            matrices(weights.m, weights.points), grad_x, grad_u, g, bool(relu),
        )  # fmt: skip
    else:
        options = g.padding, bool(relu), transforms_for_kernels(weights)
        launch.cpu_kernels().winograd_conv_grad_x(grad, x, weights.dense, grad_x, *options)
        launch.cpu_kernels().winograd_conv_grad_u(grad, x, grad_u, *options)
    arrays.namespace(x).copyto(grad_u, 0, where=~weights.mask)
    return grad_x, grad_u


def _checked(function, x, weights, padding, **other):
    """x, the other array and the weights in one dtype; the geometry; the arrays as given."""
    if not isinstance(weights, WinogradWeights):
        raise TypeError(
            f"{function}: weights must be WinogradWeights, such as "
            f"WinogradWeights.from_spatial(w), got {type(weights).__name__}"
        )
    given = dict(x=x, weights=weights.dense, **other)
    taken = arrays.take(function, **given, optional=("bias",))
    x, _, array = arrays.common_floats(function, given, taken)
    geometry.check_rank(function, "x", x.shape, "N, C, H, W")
    filters, channels = weights.shape[2:]
    if x.shape[1] != channels:
        raise ValueError(
            f"{function}: x must have the {channels} channels of weights, got {x.shape[1]}: x has "
            f"shape {x.shape}, weights have shape {weights.shape}"
        )
    g = geometry.window(function, x.shape, 3, filters=filters, padding=padding)
    return x, array, weights.astype(x.dtype), g, given


def fastest(weights: WinogradWeights) -> str:
    """The compiled kernel with the lowest cost, by number and time of its products."""
    costs = _costs(launch.cpu_kernels().features(), weights.dtype.name)
    return min(costs, key=lambda form: costs[form] * weights.products[form])


@functools.cache
def _costs(features: str, dtype: str) -> dict[str, float]:
    """Seconds per product for each form, measured once per process, instruction set and dtype.

    The choice does not affect results: all forms sum the same products in the same order, or skip
    those by zero.
    """
    forms = "dense", "sparse", "blocks"
    return dict(zip(forms, launch.cpu_kernels().winograd_costs(dtype), strict=True))


def transforms_for_kernels(weights: WinogradWeights) -> tuple | None:
    """The transform as an argument of the CPU kernels, which have Lavin's built in."""
    BT, _, AT = matrices(weights.m, weights.points)
    return None if weights.points == "lavin" else (BT, AT)


def _scipy_product(weights):
    return lambda seen: np.stack([u @ v for u, v in zip(weights.matrices, seen, strict=True)])
