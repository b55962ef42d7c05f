"""Operations on arrays without values yet, traced or lazy: signatures and checks in advance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mulfree_cupy.arrays import Array

# Memory of the caller's, and the choice of a CUDA kernel.
_NOT_DEFERRED = "out", "kernel"


def operation(function: Callable, library: str, deferred: Callable) -> Callable:
    """`function` for the arrays of another library, with its name, signature and a docstring.

    Parameters
    ----------
    function : callable
        A function of `mulfree_cupy`.
    library : str
        The library's name.
    deferred : callable
        Called with `function` and its arguments by name; returns an array of the library.
    """
    signature = inspect.signature(function)
    kept = [p for name, p in signature.parameters.items() if name not in _NOT_DEFERRED]
    signature = signature.replace(parameters=kept)

    def call(*arguments, **options):
        try:
            given = signature.bind(*arguments, **options).arguments
        except TypeError as error:
            raise TypeError(f"{function.__name__}() {error}") from None  # as Python says it
        return deferred(function, given)

    call.__name__ = call.__qualname__ = function.__name__
    call.__module__ = deferred.__module__
    call.__signature__ = signature
    call.__doc__ = f"{_summary(function)}\n\n{_DOCUMENTATION.format(function.__name__, library)}"
    return call


def _summary(function: Callable) -> str:
    return inspect.getdoc(function).partition("\n\n")[0]


_DOCUMENTATION = """As `mulfree_cupy.{0}`, on {1} arrays.

Parameters
----------
*arguments, **options
    Those of `mulfree_cupy.{0}`, except ``out`` and ``kernel``.

Returns
-------
array
    A {1} array with the shape and dtype that `mulfree_cupy.{0}` returns.

Raises
------
TypeError, ValueError
    As `mulfree_cupy.{0}`, raised before anything is computed.

See Also
--------
mulfree_cupy.{0}
"""


def answer_form(
    function: Callable, arrays: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the answer of a function of images, after all its checks.

    Parameters
    ----------
    function : callable
        A function of `mulfree_cupy`, with the images as its argument x.
    arrays : dict
        Arguments without values: only their shapes and dtypes are used. x is one.
    options : dict
        The other arguments.

    Raises
    ------
    TypeError, ValueError
        As the function.
    """
    shape = arrays["x"].shape

    def answer(*shape: int) -> Array:
        zeros = {name: np.zeros(a.shape, a.dtype) for name, a in arrays.items() if name != "x"}
        x = np.broadcast_to(np.zeros((), arrays["x"].dtype), shape)  # without its memory
        return function(x, **zeros, **options)

    try:
        empty = answer(*(0, *shape[1:])[: len(shape)])
    except (TypeError, ValueError):
        answer(*shape)  # for a message with the actual shape
        raise
    return (shape[0], *empty.shape[1:]), empty.dtype
