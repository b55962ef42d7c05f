"""Array arguments: NumPy, CuPy or anything that exports DLPack; dtypes and ``out=``."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, ParamSpec, TypeVar

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray
P = ParamSpec("P")
R = TypeVar("R")

DLPACK_CPU, _DLPACK_CUDA = 1, 2


def _cupy() -> ModuleType | None:
    """CuPy if it has been imported: otherwise no argument can be a CuPy array."""
    return sys.modules.get("cupy")


def namespace(array: Array) -> ModuleType:
    """The array's module, NumPy or CuPy."""
    if isinstance(array, np.ndarray):
        return np
    cupy = _cupy()
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else np


def real_numbers(function: str, name: str, array: Array) -> None:
    """Raise unless the array holds real numbers."""
    if array.dtype.kind not in "biuf":
        # Of objects, or of another package's numbers, such as bfloat16.
        other = array.dtype.kind in "OV" and array.dtype.names is None
        remedy = f"; {conversion(array)}" if other else ""
        raise TypeError(
            f"{function}: {name} must hold real numbers, got dtype {array.dtype} and "
            f"shape {array.shape}{remedy}"
        )


def real_or_complex_numbers(function: str, name: str, array: Array) -> None:
    """Raise unless the array holds numbers."""
    if array.dtype.kind != "c":
        real_numbers(function, name, array)


def plain_bits(function: str, name: str, array: Array) -> None:
    """Raise unless elements can be copied as 1, 2, 4, 8 or 16 bytes, with 0 as all-zero bytes."""
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
    """The arguments as NumPy or CuPy arrays of one device; only what is not `aligned` is copied.

    Arrays of other libraries are imported through ``__dlpack__``; sequences of numbers and labelled
    arrays become NumPy arrays; arguments named in `optional` may be None, and None is returned for
    them.

    Raises
    ------
    TypeError
        If arrays are on different devices, an argument is not an array, is masked or not yet
        computed, or `check` rejects its dtype.
    """
    taken = take_in_place(function, optional=optional, check=check, **arguments)
    return [None if array is None else aligned(array) for array in taken]


def take_one(
    function: str, name: str, value: Any, check: Callable[[str, str, Array], None] = real_numbers
) -> Array:
    """As `take` for one argument, in half the time."""
    array = _adopt(function, name, value)
    check(function, name, array)
    return aligned(array)


def take_in_place(
    function: str,
    *,
    optional: tuple[str, ...] = (),
    check: Callable[[str, str, Array], None] | None = real_numbers,
    **arguments: Any,
) -> list[Array]:
    """As `take`, but arrays are never copied, so that the caller sees what is written to them; and
    without a `check` they may hold anything."""
    for name, value in arguments.items():
        if value is not None or name not in optional:
            arguments[name] = array = _adopt(function, name, value)
            if check is not None:
                check(function, name, array)
    _check_device(function, arguments)
    return list(arguments.values())


def _adopt(function: str, name: str, value: Any) -> Array:
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return value
    if namespace(value) is not np:
        return value
    if _is_masked(value):
        raise TypeError(f"{function}: {name} is a masked array; pass its .data or .filled(value)")
    _refuse_lazy(function, name, value)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(function, name, value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # the last of PyTorch's tensors in lists
        raise TypeError(f"{function}: {name} is no array: {error}") from None
    if array.dtype == object and array.ndim == 0:  # as NumPy takes what it does not know
        remedy = "; pass its .toarray()" if hasattr(value, "toarray") else ""
        raise TypeError(f"{function}: {name} is no array, got a {_type_name(value)}{remedy}")
    return array


def _is_masked(value: Any) -> bool:
    """Also a sequence with a masked array in it, whose mask NumPy would drop."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_masked, value))
    return isinstance(value, np.ma.MaskedArray)


def _refuse_lazy(function: str, name: str, value: Any) -> None:
    """What stands for numbers that are still to be computed is computed by its library's rules."""
    if isinstance(value, (list, tuple)):
        for part in value:
            if not isinstance(part, (int, float)):
                _refuse_lazy(function, name, part)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{function}: {name} is a traced JAX array, whose numbers are not known yet, of shape "
            f"{value.shape}; the functions of mulfree_cupy.compat.jax take it"
        )
    if type(value).__name__ == "FakeTensor":  # DLPack would have what lies in memory
        raise TypeError(
            f"{function}: {name} is a tensor without numbers, a {_type_name(value)}; PyTorch's "
            "compiler takes a call of ours inside a torch.library.custom_op"
        )
    if getattr(value, "__dask_graph__", lambda: None)() is not None:
        raise TypeError(
            f"{function}: {name}, a {_type_name(value)}, is lazy; the functions of "
            "mulfree_cupy.compat.dask take Dask arrays, or pass its .compute()"
        )


def _from_dlpack(function: str, name: str, value: Any) -> Array:
    # PyTorch negates lazily with a flag of the tensor, which DLPack cannot express.
    if getattr(value, "is_neg", bool)():
        raise TypeError(
            f"{function}: {name}, a {_type_name(value)}, has its negative bit set, which DLPack "
            "would drop; pass .resolve_neg()"
        )
    try:
        if value.__dlpack_device__()[0] == DLPACK_CPU:
            return np.from_dlpack(value)
        import cupy

        return cupy.from_dlpack(value)
    except Exception as error:  # every library has its own
        remedy = f"; {conversion(value)}" if "dtype" in str(error).lower() else ""
        raise TypeError(
            f"{function}: {name}, a {_type_name(value)}, cannot be taken in through DLPack: "
            f"{error}{remedy}"
        ) from error


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def conversion(value: Any, dtype: str = "float32") -> str:
    """How the caller's library converts its arrays."""
    library = type(value).__module__.partition(".")[0]
    if library == "torch":
        return f"convert with .to(torch.{dtype})"
    if library == "tensorflow":
        return f"convert with tf.cast(..., tf.{dtype})"
    return f"convert with .astype(np.{dtype})"


def _check_device(function: str, arrays: dict[str, Array | None]) -> None:
    if _cupy() is None:
        return
    devices = {name: _device(array) for name, array in arrays.items() if array is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise TypeError(f"{function}: all arrays must be on one device, got {where}")


def _device(array: Array) -> str:
    return "the CPU (NumPy)" if namespace(array) is np else f"GPU {array.device.id} (CuPy)"


def take_floats(
    function: str,
    *,
    optional: tuple[str, ...] = (),
    also: tuple[type, ...] = (),
    check: Callable[[str, str, Array], None] = real_numbers,
    **arguments: Any,
) -> list[Array]:
    """As `take`, all in their common dtype, which must be float32, float64 or one of `also`."""
    arrays = take(function, optional=optional, check=check, **arguments)
    return common_floats(function, arguments, arrays, also)


def common_floats(
    function: str,
    given: Mapping[str, Any],
    taken: Sequence[Array | None],
    also: tuple[type, ...] = (),
) -> list[Array | None]:
    """What `take` made of these arguments, in their common dtype as in `take_floats`."""
    served = np.float32, np.float64, *also
    dtype = np.result_type(*[array.dtype for array in taken if array is not None])
    if dtype not in served:
        named = {name: array for name, array in zip(given, taken, strict=True) if array is not None}
        listed = ", ".join(f"{name} {array.dtype}" for name, array in named.items())
        other = next(name for name, array in named.items() if array.dtype not in served)
        *first, last = (np.dtype(t).name for t in served if t is not np.float16)
        names = f"{', '.join(first)} or {last}"
        raise TypeError(
            f"{function}: the common dtype must be {names}, got {listed}; "
            f"{conversion(given[other])}"
        )
    return [None if a is None else a.astype(dtype, copy=False) for a in taken]


def address(array: Array) -> int:
    """Address of the first element."""
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return interface["data"][0]


def is_aligned(array: Array) -> bool:
    """Whether every element's address is a multiple of its size, as kernels and GPUs require."""
    size = array.itemsize
    if isinstance(array, np.ndarray) and array.dtype.alignment == size:
        return array.flags.aligned
    return size == 1 or (
        address(array) % size == 0
        and all(
            stride % size == 0
            for stride, length in zip(array.strides, array.shape, strict=True)
            if length > 1
        )
    )


def aligned(array: Array) -> Array:
    """The array itself if it `is_aligned`, else a copy."""
    if is_aligned(array):
        return array
    if namespace(array) is np:
        return array.copy()
    copied = namespace(array).ascontiguousarray(_bytes(array))
    return copied.view(array.dtype).reshape(array.shape)


def _bytes(array: Array) -> Array:
    """The bytes of a CuPy array along an additional last axis: a GPU cannot load unaligned
    elements."""
    shape, strides = (*array.shape, array.itemsize), (*array.strides, 1)
    return namespace(array).ndarray(shape, np.uint8, array.data, strides)


def contiguous(array: Array | None) -> Array | None:
    """The array in C order and `aligned`, without a copy if it is already; None stays None."""
    return None if array is None else namespace(array).ascontiguousarray(aligned(array))


def output_array(
    function: str, out: Any, shape: tuple, dtype: np.dtype, **inputs: Any
) -> Array | None:
    """The array to write to, of this shape and dtype; None stays None.

    `inputs` are the arrays as the caller passed them: converted copies cannot overlap `out`.

    Raises
    ------
    TypeError
        If `out` is not an array, or on another device.
    ValueError
        If it has another shape or dtype, is read-only, or overlaps an input or itself.
    """
    if out is None:
        return None
    if isinstance(out, (list, tuple)) or not hasattr(out, "__dlpack__"):
        raise TypeError(f"{function}: out must be an array, got {type(out).__name__}")
    out = _adopt(function, "out", out)
    inputs = {name: _adopt(function, name, a) for name, a in inputs.items() if a is not None}
    _check_device(function, {**inputs, "out": out})
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"{function}: out must have shape {shape} and dtype {np.dtype(dtype)}, "
            f"got shape {out.shape} and dtype {out.dtype}"
        )
    if namespace(out) is np and not out.flags.writeable:
        raise ValueError(f"{function}: out is read-only, shape {out.shape}")
    if _overlaps_itself(out):
        raise ValueError(
            f"{function}: elements of out share memory, shape {out.shape}, strides {out.strides}"
        )
    for name, array in inputs.items():
        if _overlap(out, array):
            raise ValueError(
                f"{function}: out, of shape {out.shape}, overlaps the memory of {name}, "
                f"of shape {array.shape}"
            )
    return out


def _overlap(a: Array, b: Array) -> bool:
    """Whether they share a byte, or deciding it would take too long."""
    try:
        return np.shares_memory(_extent(a), _extent(b), max_work=10_000)
    except np.exceptions.TooHardError:
        return True


def _extent(array: Array) -> np.ndarray:
    """A NumPy array with the same addresses, not to be read: CuPy's shares_memory is inexact."""
    if namespace(array) is np:
        return array
    interface = {
        "version": 3,
        "data": (array.data.ptr, True),
        "shape": array.shape,
        "strides": array.strides,
        "typestr": f"|V{array.itemsize}",
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def _overlaps_itself(array: Array) -> bool:
    """Whether the strides of an axis step within what the shorter-stepping axes span."""
    if array.flags.c_contiguous:
        return False
    span = array.itemsize
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)
    ):
        if size > 1 and stride < span:
            return True
        span += (size - 1) * stride
    return False


def device_of(*values: Any) -> contextlib.AbstractContextManager:
    """Context in which the GPU of the first CuPy array is the current device.

    CuPy allocates every new array, results of expressions included, on the current device.
    """
    cupy = _cupy()
    if cupy is not None:
        for value in values:
            if isinstance(value, cupy.ndarray):
                return value.device
            if not isinstance(value, np.ndarray) and hasattr(value, "__dlpack_device__"):
                kind, number = _dlpack_device(value)
                if kind == _DLPACK_CUDA and cupy.is_available():
                    return cupy.cuda.Device(number)
    return contextlib.nullcontext()


def _dlpack_device(value: Any) -> tuple[int, int]:
    try:
        return value.__dlpack_device__()
    except Exception:  # `take` reports which argument cannot be imported, and why
        return DLPACK_CPU, 0


def on_device_of_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: call the function inside `device_of` its arguments."""

    @functools.wraps(function)
    def on_device(*arguments: P.args, **options: P.kwargs) -> R:
        with device_of(*arguments, *options.values()):
            return function(*arguments, **options)

    return on_device


def empty_beside(like: Array, shape: tuple, dtype: np.dtype) -> Array:
    """A new array on the device of `like`, which may differ from the current device."""
    with device_of(like):
        return namespace(like).empty(shape, dtype)


def answer(out: Array | None, shape: tuple, dtype: np.dtype, like: Array) -> Array:
    """The array a kernel writes to: `out` if in C order and `aligned`, else a new one on `like`'s
    device."""
    if out is not None and out.flags.c_contiguous and is_aligned(out):
        return out
    return empty_beside(like, shape, dtype)


def deliver(result: Array, out: Array | None) -> Array:
    """`result`, or `out` after copying `result` into it if they differ."""
    if out is None or out is result:
        return result
    if namespace(out) is np or is_aligned(out):
        out[...] = result
    else:
        _bytes(out)[...] = _bytes(result)
    return out
