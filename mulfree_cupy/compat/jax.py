"""The operations on JAX arrays, eager or traced: under ``jit``, ``grad`` and ``vmap``.

Compiled code calls back to the CPU kernels, which read JAX's memory and write into it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import mulfree_cupy as mf
from mulfree_cupy import arrays
from mulfree_cupy.compat.deferred import answer_form, operation

__all__ = [
    "adder_conv",
    "binary_conv",
    "conv",
    "shift",
    "shift_adder_conv",
    "shift_conv",
    "winograd_conv",
]

_OPERANDS = "x", "w", "u", "bias"  # arguments that may be traced, and have gradients


def _winograd_conv(x, u, bias=None, *, padding=1, relu=False, out=None):
    """Winograd convolution, or the Winograd-ReLU layer, with weights in the Winograd domain."""
    weights = mf.WinogradWeights.from_dense(u)
    return mf.winograd_conv(x, weights, bias, padding=padding, relu=relu, out=out)


_winograd_conv.__name__ = "winograd_conv"


def _winograd_conv_backward(grad, x, u, **options):
    return mf.winograd_conv_backward(grad, x, mf.WinogradWeights.from_dense(u), **options)


def _shift_backward(grad, x, *, shifts, **options):
    return (mf.shift_backward(grad, shifts, x.shape, **options),)


_BACKWARD = {
    mf.adder_conv: mf.adder_conv_backward,
    mf.binary_conv: mf.binary_conv_backward,
    mf.conv: mf.conv_backward,
    mf.shift: _shift_backward,
    mf.shift_adder_conv: mf.shift_adder_conv_backward,
    mf.shift_conv: mf.shift_conv_backward,
    _winograd_conv: _winograd_conv_backward,
}


def _traceable(function: Callable, arguments: Mapping[str, Any]) -> Any:
    """The answer of `function` as a JAX array."""
    import jax

    name = function.__name__
    given = {n: a for n, a in arguments.items() if n in _OPERANDS}
    if given.get("bias", 0) is None:
        del given["bias"]
    operands = {n: _jax_array(name, n, a) for n, a in given.items()}
    options = {n: a for n, a in arguments.items() if n not in _OPERANDS}
    for n, option in options.items():
        if isinstance(option, jax.core.Tracer):
            raise TypeError(
                f"{name}: {n} is a traced JAX array, and only {', '.join(given)} may be; pass a "
                "NumPy array or numbers"
            )
    shape, dtype = answer_form(function, operands, options)
    ranks = tuple((n, a.ndim) for n, a in operands.items())
    options = tuple((n, _hashable(a)) for n, a in options.items())
    return _differentiable(function, ranks, options)(shape, dtype, *operands.values())


def _jax_array(function: str, name: str, value: Any) -> Any:
    import jax

    if isinstance(value, jax.Array):
        return value
    return jax.numpy.asarray(arrays.take_one(function, name, value, arrays.plain_bits))


def _hashable(option: Any) -> Any:
    """An option as a cache key that the function accepts in its place."""
    if isinstance(option, (list, tuple)):
        return tuple(map(_hashable, option))
    return _hashable(np.asarray(option).tolist()) if hasattr(option, "__array__") else option


# Cached, so that the same kind of call is the same function, and JAX reuses what it compiled.
@functools.lru_cache(1024)
def _differentiable(function: Callable, ranks: tuple, options: tuple) -> Callable:
    """(shape, dtype of the answer, *operands) -> answer, with a gradient for each operand."""
    import jax
    from jax.experimental.buffer_callback import buffer_callback

    names, ranks, options = [n for n, _ in ranks], [rank for _, rank in ranks], dict(options)
    backward = _BACKWARD[function]
    name = function.__name__

    def forward_callback(context, answer, *operands):
        for y, *given in _merged(ranks[0], *_in_memory(function, answer, *operands)):
            function(**dict(zip(names, given, strict=True)), **options, out=y)

    def backward_callback(context, gradients, grad, *operands):
        gradients = [_in_memory(function, g)[0] for g in gradients]
        grad, *operands = _in_memory(function, grad, *operands)
        axes = grad.ndim - ranks[0]
        for index, given in _one_by_one(axes, grad, *operands):
            for target, gradient in zip(gradients, backward(*given, **options), strict=True):
                target[index] = gradient

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def call(shape, dtype, *operands):
        form = jax.ShapeDtypeStruct(shape, dtype)
        return buffer_callback(forward_callback, form, vmap_method="expand_dims")(*operands)

    def forward(shape, dtype, *operands):
        return call(shape, dtype, *operands), operands

    @jax.custom_vjp
    def gradients(grad, *weighed):
        forms = [jax.ShapeDtypeStruct(a.shape, grad.dtype) for a in weighed]
        callback = buffer_callback(backward_callback, forms, vmap_method="expand_dims")
        # Where numbers are complex, JAX's gradients are the conjugates of ours and PyTorch's.
        return [gradient.conj() for gradient in callback(grad.conj(), *weighed)]

    def no_second_derivative(*_):
        raise TypeError(f"{name}: there is no second derivative, as by grad of grad")

    gradients.defvjp(no_second_derivative, no_second_derivative)

    def pullback(shape, dtype, operands, grad):
        made = gradients(grad, *(a for n, a in zip(names, operands, strict=True) if n != "bias"))
        if "bias" in names:
            made.append(grad.sum(axis=(0, *range(2, grad.ndim))))
        return tuple(map(_gradient_of, operands, made))

    call.defvjp(forward, pullback)
    return jax.jit(call, static_argnums=(0, 1))  # eager calls take a tenth of the time


def _gradient_of(operand: Any, gradient: Any) -> Any:
    """The gradient in the operand's dtype: of a real one its real part, of a whole one none."""
    import jax

    if not jax.numpy.issubdtype(operand.dtype, np.inexact):
        return None
    is_complex = jax.numpy.issubdtype(operand.dtype, np.complexfloating)
    return (gradient if is_complex else gradient.real).astype(operand.dtype)


def _in_memory(function: Callable, *buffers: Any) -> list[np.ndarray]:
    """JAX's buffers as NumPy arrays of the same memory."""
    if any(buffer.__dlpack_device__()[0] != arrays.DLPACK_CPU for buffer in buffers):
        raise TypeError(
            f"{function.__name__}: JAX arrays on a GPU are not served; move them by "
            "jax.device_put(x, jax.devices('cpu')[0]), or call mulfree_cupy on CuPy arrays"
        )
    return [np.asarray(buffer) for buffer in buffers]


# Each `vmap` adds a leading axis to all arrays, of length 1 for those that it does not map.


def _merged(rank: int, answer: np.ndarray, x: np.ndarray, *weights: np.ndarray) -> Iterator[list]:
    """Answer and operands of each call: a single one if all images have the same weights."""
    axes = answer.ndim - rank
    mapped = answer.shape[:axes]
    if x.shape[:axes] == mapped and all(w.shape[:axes] == (1,) * axes for w in weights):
        images = (a.reshape(-1, *a.shape[axes + 1 :]) for a in (answer, x))
        yield [*images, *(w.reshape(w.shape[axes:]) for w in weights)]
        return
    for _, given in _one_by_one(axes, answer, x, *weights):
        yield given


def _one_by_one(axes: int, first: np.ndarray, *others: np.ndarray) -> Iterator[tuple[tuple, list]]:
    """Each index of the mapped axes, with the parts of the arrays there."""
    for index in np.ndindex(first.shape[:axes]):
        yield (
            index,
            [
                a[tuple(i if size > 1 else 0 for i, size in zip(index, a.shape, strict=False))]
                for a in (first, *others)
            ],
        )


def _operation(function: Callable) -> Callable:
    return operation(function, "JAX", _traceable)


adder_conv = _operation(mf.adder_conv)
binary_conv = _operation(mf.binary_conv)
conv = _operation(mf.conv)
shift = _operation(mf.shift)
shift_adder_conv = _operation(mf.shift_adder_conv)
shift_conv = _operation(mf.shift_conv)
winograd_conv = _operation(_winograd_conv)
