"""Batch normalisation fused with the residual and the ReLU that follow it.

On the CPU a pass is a compiled kernel, or an array expression without a compiler; the GPU's are in
cuda/batch_norm.
"""

from __future__ import annotations

import math

import numpy as np

from mulfree_cupy import arrays, geometry, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.communicator import ALONE, Communicator
from mulfree_cupy.launch import batch_norm as launchers

__all__ = ["batch_norm", "batch_norm_backward"]


@arrays.on_device_of_arguments
def batch_norm(
    x: Array,
    weight: Array,
    bias: Array,
    residual: Array | None = None,
    *,
    relu: bool = False,
    eps: float = 1e-5,
    mean: Array | None = None,
    variance: Array | None = None,
    running: tuple[Array, Array] | None = None,
    momentum: float = 0.1,
    kernel: str | None = None,
    communicator: Communicator = ALONE,
) -> tuple[Array, Array, Array]:
    """Normalise each channel over the batch and the pixels.

    Parameters
    ----------
    x : array, shape (N, C, H, W) or (N, C)
        float32 or float64.
    weight, bias : arrays, shape (C,)
    residual : array, shape of x, optional
        Added before the ReLU.
    relu : bool
        Whether a ReLU follows.
    eps : float
        Added to the variance.
    mean, variance : arrays, shape (C,), optional
        Used instead of the batch's own.
    running : pair of arrays, shape (C,), optional
        A running mean and variance, updated in place: ``running = (1 - momentum) * running +
        momentum * batch``, the batch's variance unbiased.
    momentum : float
    kernel : str, optional
        A CUDA kernel for the batch's own statistics: "1_three_passes", "2_parts" or "3_registers".
    communicator : Communicator
        The batch's own statistics are those of the batches of all its ranks together.

    Returns
    -------
    y : array, shape of x
    mean, variance : arrays, shape (C,)
        The statistics used; the variance is the biased one.

    Raises
    ------
    ValueError
        If shapes do not fit, or a number is negative or not finite; if only one of mean and
        variance is given, or they are given with running or kernel; if a batch is empty, or has a
        single value per channel and so no unbiased variance; for an unknown kernel.
    TypeError
        If a dtype is not served, or the arrays are on different devices.

    Notes
    -----
    ``y = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)``.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization", ICML 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.batch_norm import batch_norm
    >>> y, mean, variance = batch_norm(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), eps=0)
    >>> y.ravel(), mean, variance
    (array([-1.,  1.]), array([2.]), array([1.]))
    """
    x, weight, bias, residual, mean, variance = arrays.take_floats(
        "batch_norm",
        optional=("residual", "mean", "variance"),
        x=x,
        weight=weight,
        bias=bias,
        residual=residual,
        mean=mean,
        variance=variance,
    )
    _check("batch_norm", x, weight=weight, bias=bias, mean=mean, variance=variance)
    if (mean is None) != (variance is None):
        raise ValueError("batch_norm: mean and variance must be given together")
    if residual is not None:
        geometry.check_shape("batch_norm", "residual", residual.shape, x.shape, "like x")
    launch.check_kernel("batch_norm", kernel, x=x)
    eps = geometry.number("batch_norm", "eps", eps)
    momentum = geometry.number("batch_norm", "momentum", momentum)
    if mean is not None and (running is not None or kernel is not None):
        raise ValueError("batch_norm: running and kernel are for the batch's own mean and variance")
    if mean is None and x.size == 0:
        raise ValueError(f"batch_norm: x of shape {x.shape} has no statistics")
    if communicator.size > 1 and kernel is not None:
        raise ValueError("batch_norm: kernel is for a single rank")
    if running is not None:
        running = _check_running(x, *running, communicator.size)
    weight, bias, mean, variance = map(arrays.contiguous, (weight, bias, mean, variance))
    device = launch.device_for(x) if x.size else None
    if mean is None and communicator.size > 1:
        mean, variance, count = _moments_of_all(device, x, communicator)
        if running is not None:
            _follow(running, mean, variance, count, momentum)
        mean, variance = mean.astype(x.dtype), variance.astype(x.dtype)
    if device is not None:
        return _launched(
            device, x, weight, bias, residual, mean, variance, running, relu, eps, momentum, kernel
        )
    kernels = launch.compiled_kernels(x, np.float32, np.float64)
    planes, added = _planes(x), _planes(residual)
    if mean is None:
        mean, variance = (kernels.batch_norm_moments if kernels else _moments)(planes)
        if running is not None:
            _follow(running, mean, variance, x.size // len(weight), momentum)
    scale = scale_of(weight, variance, eps)
    # Relative to the mean: x * scale + shift would cancel where the mean is many deviations from
    # zero.
    run = kernels.batch_norm if kernels else _normalise
    y = run(planes, mean, scale, bias, added, relu)
    return y.reshape(x.shape), mean, variance


def scale_of(weight: Array, variance: Array, eps: float) -> Array:
    """Factor of a channel after its mean is subtracted."""
    return weight / np.sqrt(variance + variance.dtype.type(eps))


def _launched(
    device, x, weight, bias, residual, mean, variance, running, relu, eps, momentum, kernel
):
    planes = _planes(x)
    y = arrays.empty_beside(x, planes.shape, x.dtype)
    given = device, planes, weight, bias, _planes(residual), y
    if mean is None:
        mean, variance = (arrays.empty_beside(x, weight.shape, x.dtype) for _ in range(2))
        moved = running and [arrays.contiguous(a) for a in running]
        launchers.batch_norm(*given, mean, variance, moved, relu, eps, momentum, kernel)
        for result, out in zip(moved or (), running or (), strict=True):
            arrays.deliver(result, out)
    else:
        launchers.batch_norm_given(*given, mean, variance, relu, eps)
    return y.reshape(x.shape), mean, variance


def _check_running(x, mean, variance, ranks):
    """The arrays to update in place, so nothing is converted."""
    running = {"running mean": mean, "running variance": variance}
    _, mean, variance = arrays.take_in_place("batch_norm", x=x, **running)
    _check("batch_norm", x, **running)
    if mean.dtype != variance.dtype or mean.dtype not in (np.float32, np.float64):
        raise TypeError(
            "batch_norm: running must be two arrays of float32 or two of float64, got "
            f"{mean.dtype} and {variance.dtype}"
        )
    if ranks * x.size // x.shape[1] < 2:
        raise ValueError(
            f"batch_norm: one value per channel has no variance, x of shape {x.shape}; "
            "use a larger batch"
        )
    return mean, variance


def _moments_of_all(device, x, communicator):
    """Mean and variance of the batches of all ranks, and their number of values, in float64."""
    planes, channels = _planes(x), x.shape[1]
    count = x.size // channels
    if device is not None:
        means, variances, counts = launchers.batch_norm_moments(device, planes)
    else:
        kernels = launch.compiled_kernels(x, np.float32, np.float64)
        means, variances = (kernels.batch_norm_moments if kernels else _moments)(planes)
        means, variances, counts = means[:, None], variances[:, None], np.array([count])
    means, variances = means.astype(np.float64), variances.astype(np.float64)
    sums = arrays.namespace(x).empty(channels + 1)
    sums[:-1], sums[-1] = (counts * means).sum(axis=1), count
    communicator.sum(sums)
    mean, total = sums[:-1] / sums[-1], sums[-1]
    # About the mean of all: the squares themselves would cancel where the mean is large.
    squares = (counts * (variances + np.square(means - mean[:, None]))).sum(axis=1)
    communicator.sum(squares)
    return mean, squares / total, total


def _follow(running, mean, variance, count, momentum):
    for moved, batch in zip(running, (mean, variance * (count / (count - 1))), strict=True):
        moved[...] = (1 - momentum) * moved + momentum * batch


@arrays.on_device_of_arguments
def batch_norm_backward(
    grad: Array,
    x: Array,
    y: Array,
    weight: Array,
    mean: Array,
    variance: Array,
    *,
    relu: bool = False,
    eps: float = 1e-5,
    fixed: bool = False,
    residual: bool = False,
    communicator: Communicator = ALONE,
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of `batch_norm` with respect to x, weight, bias and residual.

    Parameters
    ----------
    grad, x, y : arrays, shape (N, C, H, W) or (N, C)
        The gradient of the output, the input and the output.
    weight, mean, variance : arrays, shape (C,)
        As given to and returned by `batch_norm`.
    relu, eps
        As given to `batch_norm`.
    fixed : bool
        Whether mean and variance were given, and so do not depend on x.
    residual : bool
        Whether to return the residual's gradient.
    communicator : Communicator
        As given to `batch_norm`.

    Returns
    -------
    grad_x, grad_weight, grad_bias, grad_residual : arrays
        The last is None unless `residual` is set. With several ranks those of weight and bias are
        a rank's share, and have to be summed over the ranks.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.batch_norm import batch_norm, batch_norm_backward
    >>> x, ones = np.array([[1.0], [2.0], [6.0]]), np.ones(1)
    >>> y, mean, variance = batch_norm(x, ones, 0 * ones)
    >>> gradients = batch_norm_backward(np.ones((3, 1)), x, y, ones, mean, variance)
    >>> gradients[0].ravel().round(6) + 0, gradients[2]
    (array([0., 0., 0.]), array([3.]))
    """
    grad, x, y, weight, mean, variance = arrays.take_floats(
        "batch_norm_backward", grad=grad, x=x, y=y, weight=weight, mean=mean, variance=variance
    )
    _check("batch_norm_backward", x, weight=weight, mean=mean, variance=variance)
    for name, array in (("grad", grad), ("y", y)):
        geometry.check_shape("batch_norm_backward", name, array.shape, x.shape, "like x")
    eps = geometry.number("batch_norm_backward", "eps", eps)
    weight, mean, variance = map(arrays.contiguous, (weight, mean, variance))
    device = launch.device_for(x) if x.size else None
    if device is not None:
        return _launched_backward(
            device, grad, x, y, weight, mean, variance, relu, eps, fixed, residual, communicator
        )
    kernels = launch.compiled_kernels(x, np.float32, np.float64)
    inverse = 1 / np.sqrt(variance + x.dtype.type(eps))
    answer = _planes(y) if relu else None
    given = _planes(grad), _planes(x), answer, mean
    sums, dots = (kernels.batch_norm_sums if kernels else _sums)(*given)
    if communicator.size > 1 and not fixed:
        sums, dots = _share_of_all(np.stack([sums, dots]), x, communicator)
    grad_weight = dots * inverse
    count = x.size // len(weight)
    slope = weight * inverse
    if fixed:
        constant = along_x = np.zeros_like(slope)
    else:
        constant, along_x = slope * sums / count, slope * grad_weight * inverse / count
    run = kernels.batch_norm_grad if kernels else _grad
    # Without a ReLU the residual's gradient is the output's, unchanged.
    grad_x, flow = run(*given, slope, constant, along_x, residual and relu)
    grad_residual = (flow.reshape(x.shape) if relu else grad) if residual else None
    return grad_x.reshape(x.shape), grad_weight, sums, grad_residual


def _share_of_all(sums, x, communicator):
    """The sums (2, C) over all ranks, times this rank's share of the values.

    Divided by the rank's own number of values they are means over all ranks.
    """
    count = x.size // x.shape[1]
    xp = arrays.namespace(x)
    of_all = xp.empty((2, x.shape[1] + 1))
    of_all[:, :-1], of_all[:, -1] = sums, count
    communicator.sum(of_all)
    return (of_all[:, :-1] * (count / of_all[0, -1])).astype(sums.dtype)


def _launched_backward(
    device, grad, x, y, weight, mean, variance, relu, eps, fixed, residual, communicator
):
    planes = [_planes(a) for a in (grad, x, y)]
    grad_x = arrays.empty_beside(x, planes[1].shape, x.dtype)
    grad_weight, grad_bias = (arrays.empty_beside(x, weight.shape, x.dtype) for _ in range(2))
    flow = arrays.empty_beside(x, grad_x.shape, x.dtype) if residual and relu else None
    reduced = None
    if communicator.size > 1 and not fixed:
        reduced = lambda sums: _share_of_all(sums, x, communicator)  # noqa: E731
    launchers.batch_norm_backward(
        *(device, *planes, weight, mean, variance),
        *(grad_x, grad_weight, grad_bias, flow, relu, eps, fixed, reduced),
    )
    grad_residual = (grad if flow is None else flow.reshape(x.shape)) if residual else None
    return grad_x.reshape(x.shape), grad_weight, grad_bias, grad_residual


def _check(function, x, **channels):
    if x.ndim not in (2, 4):
        raise ValueError(
            f"{function}: x must have 4 dimensions (N, C, H, W) or 2 (N, C), got shape {x.shape}"
        )
    for name, array in channels.items():
        if array is not None:
            geometry.check_shape(function, name, array.shape, (x.shape[1],), "(C,)")


def _planes(x):
    """x as (N, C, pixels) in C order."""
    return None if x is None else arrays.contiguous(x).reshape(*x.shape[:2], math.prod(x.shape[2:]))


# The same passes as array expressions.


def _moments(x):
    mean = x.mean(axis=(0, 2))
    return mean, np.square(x - mean[:, None]).mean(axis=(0, 2))


def _normalise(x, mean, scale, bias, residual, relu):
    y = (x - mean[:, None]) * scale[:, None] + bias[:, None]
    if residual is not None:
        y += residual
    return np.maximum(y, 0, out=y) if relu else y


def _flow(grad, answer):
    """The gradient after the ReLU's backward pass."""
    return grad if answer is None else np.where(answer <= 0, 0, grad)


def _sums(grad, x, answer, mean):
    """sum(flow) and sum(flow * (x - mean)) by channel."""
    flow = _flow(grad, answer)
    return flow.sum(axis=(0, 2)), (flow * (x - mean[:, None])).sum(axis=(0, 2))


def _grad(grad, x, answer, mean, slope, constant, along_x, wants_flow):
    """flow * slope - constant - (x - mean) * along_x, and the flow itself if requested."""
    flow = _flow(grad, answer)
    centred = (x - mean[:, None]) * along_x[:, None]
    grad_x = flow * slope[:, None] - constant[:, None] - centred
    return grad_x, flow if wants_flow else None
