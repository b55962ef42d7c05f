"""One table of derivative rules: every operation as (its answer, its pullback).

A row takes arrays (NumPy or CuPy) and options and returns the answer with a function that carries
the answer's gradient back to one gradient an input, or None. A pullback need not mind broadcasting:
the tape sums its gradients down to the shapes of the inputs.
"""

from __future__ import annotations

import numpy as np

from mulfree_cupy.arrays import namespace
from mulfree_cupy.ops import adder, convolution


def absolute(a):
    return abs(a), lambda g: (g * namespace(a).sign(a),)


def exp(a):
    y = namespace(a).exp(a)
    return y, lambda g: (g * y,)


def sqrt(a):
    y = namespace(a).sqrt(a)
    return y, lambda g: (g / (2 * y),)


def maximum(a, b):
    return namespace(a).maximum(a, b), lambda g: (g * (a > b), g * (a <= b))


def relu(a):
    y = namespace(a).maximum(a, 0)
    return y, lambda g: (g * (y > 0),)


def matmul(a, b):
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(
            f"matmul: both tensors must have at least 2 dimensions, got {a.shape} and {b.shape}"
        )

    def pullback(g):
        return g @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ g

    return a @ b, pullback


def sum_(a, *, axis, keepdims):
    y = a.sum(axis=axis, keepdims=keepdims)

    def pullback(g):
        g = g if keepdims or axis is None else namespace(a).expand_dims(g, axis)
        return (namespace(a).broadcast_to(g, a.shape),)

    return y, pullback


def mean(a, *, axis, keepdims):
    y, spread = sum_(a, axis=axis, keepdims=keepdims)
    share = y.size / a.size
    return y * y.dtype.type(share), lambda g: spread(g * y.dtype.type(share))


def getitem(a, *, index):
    def pullback(g):
        gradient = namespace(a).zeros_like(a)
        namespace(a).add.at(gradient, index, g)
        return (gradient,)

    return a[index], pullback


def transpose(a, *, axes):
    back = None if axes is None else np.argsort(axes)
    return a.transpose(axes), lambda g: (g.transpose(back),)


def dropout(a, *, mask):
    """`mask` is 0 or 1/(share kept), drawn by the layer."""
    return a * mask, lambda g: (g * mask,)


def conv(x, w, bias=None, **options):
    y = convolution.conv(x, w, bias, **options)
    return y, _with_bias(convolution.conv_backward, x, w, bias, options)


def adder_conv(x, w, bias=None, **options):
    y = adder.adder_conv(x, w, bias, **options)
    return y, _with_bias(adder.adder_conv_backward, x, w, bias, options)


def _with_bias(backward, x, w, bias, options):
    def pullback(g):
        gradients = backward(g, x, w, **options)
        return gradients if bias is None else (*gradients, g.sum(axis=(0, 2, 3)))

    return pullback


def cross_entropy(logits, *, labels):
    """Mean over the batch of -log softmax(logits)[label]; logits (N, classes), labels (N,)."""
    xp = namespace(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = xp.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    rows = xp.arange(len(labels))
    loss = (xp.log(total[:, 0]) - shifted[rows, labels]).mean()

    def pullback(g):
        gradient = exponentials / total
        gradient[rows, labels] -= 1
        return (gradient * (g / len(labels)),)

    return loss, pullback


RULES = {
    "absolute": absolute,
    "add": lambda a, b: (a + b, lambda g: (g, g)),
    "adder_conv": adder_conv,
    "conv": conv,
    "cross_entropy": cross_entropy,
    "divide": lambda a, b: (a / b, lambda g: (g / b, -g * a / (b * b))),
    "dropout": dropout,
    "exp": exp,
    "getitem": getitem,
    "log": lambda a: (namespace(a).log(a), lambda g: (g / a,)),
    "matmul": matmul,
    "maximum": maximum,
    "mean": mean,
    "multiply": lambda a, b: (a * b, lambda g: (g * b, g * a)),
    "negative": lambda a: (-a, lambda g: (-g,)),
    "power": lambda a, *, exponent: (
        a**exponent,
        lambda g: (g * (exponent * a ** (exponent - 1)),),
    ),
    "relu": relu,
    "reshape": lambda a, *, shape: (a.reshape(shape), lambda g: (g.reshape(a.shape),)),
    "sqrt": sqrt,
    "subtract": lambda a, b: (a - b, lambda g: (g, -g)),
    "sum": sum_,
    "transpose": transpose,
}

SURROGATES = {
    "adder_conv": "AdderNet trains on x - w and clip(w - x, -1, 1) in the place of their signs",
}
