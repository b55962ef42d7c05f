"""Whose array is this: NumPy, CuPy, or anything else that speaks DLPack; dtypes and ``out=``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray

_DLPACK_CPU = 1


def _cupy() -> ModuleType | None:
    """CuPy if somebody has imported it: without that, no argument can be a CuPy array."""
    return sys.modules.get("cupy")


def namespace(array: Array) -> ModuleType:
    """The module, NumPy or CuPy, whose array this is."""
    cupy = _cupy()
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


def real_numbers(function: str, name: str, array: Array) -> None:
    """Refuse what is no array of real numbers."""
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{function}: {name} must hold real numbers, got dtype {array.dtype} and "
            f"shape {array.shape}"
        )


def plain_bits(function: str, name: str, array: Array) -> None:
    """Refuse elements that cannot be moved as 1, 2, 4, 8 or 16 bytes, all zero for zero."""
    if array.dtype.hasobject or array.dtype.itemsize not in (1, 2, 4, 8, 16):
        raise TypeError(
            f"{function}: {name} must have elements of 1, 2, 4, 8 or 16 plain bytes, "
            f"got dtype {array.dtype} and shape {array.shape}"
        )


def take(
    function: str,
    *,
    optional: tuple[str, ...] = (),
    check: Callable[[str, str, Array], None] = real_numbers,
    **arguments: Any,
) -> list[Array]:
    """The arguments as NumPy or CuPy arrays of one device, without a copy.

    Arrays of other libraries come in through ``__dlpack__``, sequences of numbers as NumPy arrays;
    those named in `optional` may be None, and stay it.

    Raises
    ------
    TypeError
        For arrays of different devices, or what is no array, or whose dtype `check` refuses.
    """
    arrays = {
        name: None if value is None and name in optional else _adopt(function, name, value)
        for name, value in arguments.items()
    }
    for name, array in arrays.items():
        if array is not None:
            check(function, name, array)
    devices = {name: _device(array) for name, array in arrays.items() if array is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise TypeError(f"{function}: all arrays must be on one device, got {where}")
    return list(arrays.values())


def take_out(
    function: str,
    out: Any,
    beside: Array,
    check: Callable[[str, str, Array], None] = real_numbers,
) -> Array | None:
    """The array to write to, which must be one, on the device of `beside`; None stays None."""
    if out is None:
        return None
    if isinstance(out, (list, tuple)) or not hasattr(out, "__dlpack__"):
        raise TypeError(f"{function}: out must be an array, got {type(out).__name__}")
    return take(function, check=check, input=beside, out=out)[1]


def _adopt(function: str, name: str, value: Any) -> Array:
    cupy = _cupy()
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{function}: {name} is a masked array; pass its .data or .filled(value)")
    if isinstance(value, np.ndarray) or (cupy is not None and isinstance(value, cupy.ndarray)):
        array = value
    elif hasattr(value, "__dlpack__"):
        array = _from_dlpack(function, name, value)
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise TypeError(f"{function}: {name} is no array: {error}") from None
    return array


def _from_dlpack(function: str, name: str, value: Any) -> Array:
    try:
        if value.__dlpack_device__()[0] == _DLPACK_CPU:
            return np.from_dlpack(value)
        import cupy

        return cupy.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError, ImportError) as error:
        raise TypeError(
            f"{function}: {name}, a {type(value).__module__}.{type(value).__name__}, "
            f"cannot be taken in through DLPack: {error}"
        ) from error


def _device(array: Array) -> str:
    return "the CPU (NumPy)" if namespace(array) is np else f"GPU {array.device.id} (CuPy)"


def take_floats(
    function: str,
    *,
    optional: tuple[str, ...] = (),
    also: tuple[type, ...] = (),
    **arguments: Any,
) -> list[Array]:
    """As `take`, all in their common dtype, which must be float32, float64 or one of `also`."""
    arrays = take(function, optional=optional, **arguments)
    given = {
        name: array.dtype
        for name, array in zip(arguments, arrays, strict=True)
        if array is not None
    }
    dtype = np.result_type(*given.values())
    if dtype not in (np.float32, np.float64, *also):
        listed = ", ".join(f"{name} {dtype}" for name, dtype in given.items())
        raise TypeError(
            f"{function}: the common dtype must be float32 or float64, got {listed}; "
            "convert with .astype(np.float32)"
        )
    return [None if a is None else a.astype(dtype, copy=False) for a in arrays]


def contiguous(array: Array | None) -> Array | None:
    """The array in C order, itself if it is so already; None stays None."""
    return None if array is None else namespace(array).ascontiguousarray(array)


def check_out(
    function: str, out: Array | None, shape: tuple, dtype: np.dtype, **inputs: Array | None
) -> None:
    """Refuse an `out` of another shape or dtype, read-only, or overlapping an input or itself.

    The inputs are the caller's own arrays: a converted copy shares no memory that could be spoilt.
    """
    if out is None:
        return
    if out.shape != tuple(shape) or out.dtype != dtype:
        raise ValueError(
            f"{function}: out must have shape {tuple(shape)} and dtype {np.dtype(dtype)}, "
            f"got shape {out.shape} and dtype {out.dtype}"
        )
    if namespace(out) is np and not out.flags.writeable:
        raise ValueError(f"{function}: out is read-only, shape {out.shape}")
    if _overlaps_itself(out):
        raise ValueError(
            f"{function}: elements of out share memory, shape {out.shape}, strides {out.strides}"
        )
    for name, array in inputs.items():
        if array is not None and _overlap(out, array):
            raise ValueError(
                f"{function}: out, of shape {out.shape}, overlaps the memory of {name}, "
                f"of shape {array.shape}"
            )


def _overlap(a: Array, b: Array) -> bool:
    try:
        return namespace(a).shares_memory(a, b, max_work=10_000)
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array: Array) -> bool:
    """Whether the strides of an axis step within what the shorter-stepping axes span."""
    span = array.itemsize
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)
    ):
        if size > 1 and stride < span:
            return True
        span += (size - 1) * stride
    return False


def empty_beside(like: Array, shape: tuple, dtype: np.dtype) -> Array:
    """A new array on the device of `like`, which need not be the current one."""
    if namespace(like) is np:
        return np.empty(shape, dtype)
    with like.device:
        return namespace(like).empty(shape, dtype)


def answer(out: Array | None, shape: tuple, dtype: np.dtype, like: Array) -> Array:
    """Where a kernel writes: `out` if it lies in C order, else a new array beside `like`."""
    if out is not None and out.flags.c_contiguous:
        return out
    return empty_beside(like, shape, dtype)


def deliver(result: Array, out: Array | None) -> Array:
    """`result`, copied into `out` if that is another array."""
    if out is None or out is result:
        return result
    out[...] = result
    return out
