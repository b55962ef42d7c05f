"""The table of derivative rules: every operation as (result, pullback).

A rule takes arrays (NumPy or CuPy) and options and returns the result and a function from the
result's gradient to one gradient, or None, per input. A pullback may ignore broadcasting: the tape
sums its gradients down to the shapes of the inputs. It need not copy: it may return its argument,
views of it, or one array twice; any other array that is not a view is owned by the tape.

Where a function is not differentiable, its rule follows PyTorch: 0 for `absolute` and `relu` at 0,
half the gradient each for equal arguments of `maximum`, infinity where a slope is unbounded.
`relu`, `maximum` and `max_pool` propagate NaN, and pass the gradient to it.
"""

from __future__ import annotations

import numpy as np

from mulfree_cupy.arrays import namespace
from mulfree_cupy.communicator import ALONE
from mulfree_cupy.ops import adder, binary, convolution, pooling, winograd
from mulfree_cupy.ops import batch_norm as normalisation
from mulfree_cupy.ops import cross_entropy as losses
from mulfree_cupy.ops import shift as shifting


def absolute(a):
    return abs(a), lambda g: (g * namespace(a).sign(a),)


def exp(a):
    y = namespace(a).exp(a)
    return y, lambda g: (g * y,)


def sqrt(a):
    y = namespace(a).sqrt(a)
    return y, lambda g: (g / (2 * y),)


def maximum(a, b):
    xp = namespace(a)

    def pullback(g):
        share = xp.where(a == b, g / 2, g)
        return xp.where(a < b, 0, share), xp.where(b < a, 0, share)

    return xp.maximum(a, b), pullback


def relu(a):
    xp = namespace(a)
    y = xp.maximum(a, 0)
    return y, lambda g: (xp.where(y <= 0, 0, g),)


def divide(a, b):
    y = a / b
    return y, lambda g: (g / b, -g * (y / b))


def power(a, *, exponent):
    def pullback(g):
        if exponent == 0:  # also where a ** -1 is infinite
            return (namespace(a).zeros_like(a),)
        return (g * (exponent * a ** (exponent - 1)),)

    return a**exponent, pullback


def masked(a, *, mask):
    """a where the mask is true, and zero elsewhere, even for NaN and infinity."""
    xp = namespace(a)
    return xp.where(mask, a, a.dtype.type(0)), lambda g: (xp.where(mask, g, g.dtype.type(0)),)


def matmul(a, b):
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(
            f"matmul: both tensors must have at least 2 dimensions, got {a.shape} and {b.shape}"
        )

    return convolution.matmul(a, b), lambda g: convolution.matmul_backward(g, a, b)


def sum_(a, *, axis, keepdims):
    y = a.sum(axis=axis, keepdims=keepdims)

    def pullback(g):
        g = g if keepdims or axis is None else namespace(a).expand_dims(g, axis)
        return (namespace(a).broadcast_to(g, a.shape),)

    return y, pullback


def mean(a, *, axis, keepdims):
    y, spread = sum_(pooling.summable(a), axis=axis, keepdims=keepdims)
    share = y.size / a.size if a.size else np.nan
    # Multiplied after broadcasting: a broadcast view would cost the next rule a copy, in another
    # launch.
    return _as_given(y * share, a), lambda g: (spread(g)[0] * share,)


def _as_given(y, a):
    return y.astype(a.dtype) if a.dtype == np.float16 else y


def getitem(a, *, index):
    def pullback(g):
        gradient = namespace(a).zeros_like(a)
        namespace(a).add.at(gradient, index, g)
        return (gradient,)

    return a[index], pullback


def transpose(a, *, axes):
    back = None if axes is None else np.argsort([axis % a.ndim for axis in axes])
    return a.transpose(axes), lambda g: (g.transpose(back),)


def concatenate(*parts, axis):
    ends = np.cumsum([part.shape[axis] for part in parts])
    xp = namespace(parts[0])
    return xp.concatenate(parts, axis=axis), lambda g: xp.split(g, ends[:-1].tolist(), axis=axis)


def dropout(a, *, mask):
    """`mask` is 0 or 1 / (1 - share), drawn by the layer."""
    return a * mask, lambda g: (g * mask,)


# A layer may pass its weights w in packed form as well.


def conv(x, w, bias=None, *, packed=None, **options):
    y = convolution.conv(x, packed or w, bias, **options)
    return y, _with_bias(convolution.conv_backward, x, w, bias, options)


def adder_conv(x, w, bias=None, *, packed=None, sign=False, **options):
    """With `sign` the gradient of the filters is the true derivative, as in AdderNet's ablation."""
    y = adder.adder_conv(x, packed or w, bias, **options)
    backward = adder.adder_conv_sign_backward if sign else adder.adder_conv_backward
    return y, _with_bias(backward, x, w, bias, options)


def binary_conv(x, w, *, packed=None, **options):
    y = binary.binary_conv(x, packed or w, **options)
    return y, lambda g: binary.binary_conv_backward(g, x, w, **options)


def shift(x, *, shifts, stride):
    shape = x.shape
    y = shifting.shift(x, shifts, stride=stride)
    return y, lambda g: (shifting.shift_backward(g, shifts, shape, stride=stride),)


def shift_conv(x, w, bias=None, *, packed=None, **options):
    y = shifting.shift_conv(x, packed or w, bias=bias, **options)
    return y, _with_bias(shifting.shift_conv_backward, x, w, bias, options)


def shift_adder_conv(x, w, bias=None, *, packed=None, **options):
    y = shifting.shift_adder_conv(x, packed or w, bias=bias, **options)
    return y, _with_bias(shifting.shift_adder_conv_backward, x, w, bias, options)


def winograd_conv(x, u, bias=None, *, weights, kernel=None, **options):
    """`weights` are derived from u, which receives their gradient."""
    y = winograd.winograd_conv(x, weights, bias, kernel=kernel, **options)
    return y, _with_bias(winograd.winograd_conv_backward, x, weights, bias, options)


def _with_bias(backward, x, w, bias, options):
    def pullback(g):
        gradients = backward(g, x, w, **options)
        return gradients if bias is None else (*gradients, g.sum(axis=(0, *range(2, g.ndim))))

    return pullback


def batch_norm(
    x, weight, bias, residual=None,
    *, relu, eps, mean=None, variance=None, communicator=ALONE, **following,
):  # fmt: skip
    """`following` are the running statistics and their momentum."""
    fixed = mean is not None
    if fixed:  # running statistics, which a later step updates in place
        mean, variance = mean.copy(), variance.copy()
    y, mean, variance = normalisation.batch_norm(
        *(x, weight, bias, residual),
        relu=relu,
        eps=eps,
        mean=mean,
        variance=variance,
        communicator=communicator,
        **following,
    )

    def pullback(g):
        gradients = normalisation.batch_norm_backward(
            *(g, x, y, weight, mean, variance),
            relu=relu,
            eps=eps,
            fixed=fixed,
            residual=residual is not None,
            communicator=communicator,
        )
        return gradients if residual is not None else gradients[:3]

    return y, pullback


def max_pool(x, *, kernel_size, stride, padding):
    """The first of the largest numbers in a window gets the gradient."""
    y = pooling.max_pool(x, kernel_size, stride=stride, padding=padding)

    def pullback(gradient):
        xp = namespace(x)
        g = pooling.window("max_pool", x, kernel_size, stride, padding)
        padded = pooling.bordered(x, pooling.lowest(x.dtype), g)
        image = pooling.bordered(xp.ones(x.shape[2:], bool), False, g)
        total = xp.zeros_like(padded)
        left = xp.ones(y.shape, bool)  # outputs whose gradient is not assigned yet
        for window in pooling.windows(g):
            value = padded[window]
            taken = left & image[window] & ((value == y) | (value != value))
            total[window] += xp.where(taken, gradient, 0)
            left &= ~taken
        return (pooling.inside(total, g),)

    return y, pullback


def avg_pool(x, *, kernel_size, stride, padding):
    y = pooling.avg_pool(x, kernel_size, stride=stride, padding=padding)

    def pullback(gradient):
        g = pooling.window("avg_pool", x, kernel_size, stride, padding)
        total = pooling.bordered(namespace(gradient).zeros(x.shape, gradient.dtype), 0, g)
        for window in pooling.windows(g):
            total[window] += gradient * pooling.share(g, x.dtype)
        return (pooling.inside(total, g),)

    return y, pullback


def cross_entropy(logits, *, labels):
    loss, _, gradient = losses.cross_entropy(logits, labels)
    return loss, lambda g: (gradient * g,)


RULES = {
    "absolute": absolute,
    "add": lambda a, b: (a + b, lambda g: (g, g)),
    "adder_conv": adder_conv,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "binary_conv": binary_conv,
    "concatenate": concatenate,
    "conv": conv,
    "cross_entropy": cross_entropy,
    "divide": divide,
    "dropout": dropout,
    "exp": exp,
    "getitem": getitem,
    "log": lambda a: (namespace(a).log(a), lambda g: (g / a,)),
    "matmul": matmul,
    "maximum": maximum,
    "masked": masked,
    "max_pool": max_pool,
    "mean": mean,
    "multiply": lambda a, b: (a * b, lambda g: (g * b, g * a)),
    "negative": lambda a: (-a, lambda g: (-g,)),
    "power": power,
    "relu": relu,
    "reshape": lambda a, *, shape: (a.reshape(shape), lambda g: (g.reshape(a.shape),)),
    "shift": shift,
    "shift_adder_conv": shift_adder_conv,
    "shift_conv": shift_conv,
    "sqrt": sqrt,
    "subtract": lambda a, b: (a - b, lambda g: (g, -g)),
    "sum": sum_,
    "transpose": transpose,
    "winograd_conv": winograd_conv,
}

_ADDER = "AdderNet trains on x - w and clip(w - x, -1, 1) instead of their signs"
SURROGATES = {
    "adder_conv": _ADDER,
    "binary_conv": "the derivative of sign is taken as 1 on [-1, 1] and 0 elsewhere",
    "shift_adder_conv": _ADDER,
}
