"""Operations on arrays whose numbers come later: their arguments told apart, checked at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mulfree_cupy.arrays import Array

# What lies in memory of the caller's, or is for study on a GPU.
_NOT_DEFERRED = "out", "kernel"


def operation(function: Callable, library: str, deferred: Callable) -> Callable:
    """`function` on the arrays of a library: its name and signature, and a docstring.

    Parameters
    ----------
    function : callable
        One of `mulfree_cupy`'s.
    library : str
        As its users call its arrays.
    deferred : callable
        Takes `function` and all its arguments, by name, and answers with an array of the library.
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
    Those of `mulfree_cupy.{0}`, but for ``out`` and ``kernel``.

Returns
-------
array
    A {1} array of the shape and dtype that `mulfree_cupy.{0}` answers with.

Raises
------
TypeError, ValueError
    As `mulfree_cupy.{0}`, before anything is computed.

See Also
--------
mulfree_cupy.{0}
"""


def answer_form(
    function: Callable, arrays: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of what a function of images answers with, and all its checks.

    `arrays` have shapes and dtypes, x those of the images; nothing else of them is looked at.
    `options` are the other arguments.

    Raises
    ------
    TypeError, ValueError
        As the function.
    """
    shape = arrays["x"].shape

    def answer(*shape: int) -> Array:
        zeros = {name: np.zeros(a.shape, a.dtype) for name, a in arrays.items() if name != "x"}
        x = np.broadcast_to(np.zeros((), arrays["x"].dtype), shape)  # which takes no memory
        return function(x, **zeros, **options)

    try:
        empty = answer(*(0, *shape[1:])[: len(shape)])
    except (TypeError, ValueError):
        answer(*shape)  # whose error has the shape that x has
        raise
    return (shape[0], *empty.shape[1:]), empty.dtype
