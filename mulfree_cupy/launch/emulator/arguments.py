"""Launch arguments: checks against the kernel's parameters, and conversion to C values."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mulfree_cupy.launch import arguments
from mulfree_cupy.launch.emulator.runtime import Array, Parameter

_KINDS = {"i": "an integer", "f": "a floating-point number", "b": "a bool", "s": "a struct"}


@dataclass
class Arguments:
    """Values in C's layout, and the arrays among them."""

    pointers: ctypes.Array
    arrays: list[Array]
    descriptions: list[str]  # of the arrays, by their `name`
    arrays_by_name: list[tuple[str, np.ndarray]]  # and the kernel's parameter names
    values: list[Any]  # keeps alive what the pointers point to


def convert(
    kernel: str, args: Sequence[Any], parameters: list[Parameter], names: list[str]
) -> Arguments:
    """Check and convert the arguments of a launch.

    Raises
    ------
    TypeError
        If their number, or a type, does not match the kernel.
    ValueError
        If an array is not C-contiguous, or is read-only where the kernel may write.
    """
    if len(args) != len(parameters):
        wanted = ", ".join(n or "?" for n in names)
        raise TypeError(
            f"kernel {kernel!r} takes {len(parameters)} arguments ({wanted}), "
            f"{len(args)} were given"
        )
    buffers, arrays, descriptions, by_name = [], [], [], []

    def note(value: Any, label: str, buffer: Any, offset: int = 0) -> None:
        """An array whose address stands in a buffer."""
        if isinstance(value, np.ndarray) and value.nbytes:
            start = (
                buffer.ctypes.data if isinstance(buffer, np.ndarray) else ctypes.addressof(buffer)
            )
            pointer, name = start + offset, len(descriptions)
            where = value.ctypes.data, value.nbytes, _origin(value), pointer
            arrays.append(Array(*where, name, value.flags.writeable))
            descriptions.append(f"{label}, {value.dtype} of shape {value.shape}")
            by_name.append((re.sub(r"argument \d+ \((\w+)\)", r"\1", label), value))

    for i, (value, parameter) in enumerate(zip(args, parameters, strict=True)):
        name = f"argument {i}" + (f" ({names[i]})" if names[i] else "")
        label = f"kernel {kernel!r}, {name}"
        if parameter.kind == b"p" and parameter.pointee_kind == b"p" and value is not None:
            table = _table(label, value)
            buffers.append(ctypes.c_void_p(table.ctypes.data))
            note(table, name, buffers[-1])
            for index, array in enumerate(value.flat):
                note(array, f"{name}[{index}]", table, 8 * index)
        elif parameter.kind == b"p":
            buffers.append(ctypes.c_void_p(_pointer(label, value, parameter)))
            note(value, name, buffers[-1])
        elif arguments.is_struct(value):
            for field, _, array in arguments.pointers(value):
                _check_array(f"{label}.{field}", array)
            plain = arguments.with_addresses(value, lambda array: array.ctypes.data)
            buffers.append(_scalar(label, plain, parameter))
            for field, offset, array in arguments.pointers(value):
                note(array, f"{name}.{field}", buffers[-1], offset)
        else:
            buffers.append(_scalar(label, value, parameter))
    pointers = (ctypes.c_void_p * max(1, len(buffers)))(*(ctypes.addressof(b) for b in buffers))
    arrays.sort(key=lambda a: a.base)
    return Arguments(pointers, arrays, descriptions, by_name, [*args, buffers])


def _pointer(label: str, value: Any, parameter: Parameter) -> int | None:
    _check_array(label, value)
    if value is None:
        return None
    if not value.flags.writeable and not parameter.pointee_const:
        raise ValueError(f"{label}: the array is read-only and the kernel's pointer is not const")
    kind, size, dtype = parameter.pointee_kind.decode(), parameter.pointee_size, value.dtype
    wrong = (kind == "f" and dtype.itemsize != {"f": size, "c": 2 * size}.get(dtype.kind, 0)) or (
        # Narrow integers may be read as words; wide ones not in pieces.
        kind == "i" and size > 1 and (dtype.kind not in "iubV" or dtype.itemsize > size)
    )
    if wrong:
        raise TypeError(
            f"{label}: the kernel takes a pointer to {_KINDS[kind]} of {size} bytes, "
            f"got an array of {dtype}"
        )
    return value.ctypes.data


def _table(label: str, value: Any) -> np.ndarray:
    """The addresses of arrays, for a pointer to pointers; the kernel may only read it."""
    if not isinstance(value, np.ndarray) or value.dtype != object:
        given = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(
            f"{label}: the kernel takes an array of pointers; expected an array of dtype object "
            f"that holds the arrays or None, got {given}: the emulator must know the memory "
            "behind an address"
        )
    for index, array in enumerate(value.flat):
        _check_array(f"{label}[{index}]", array)
    addresses = [0 if array is None else array.ctypes.data for array in value.flat]
    table = np.array(addresses, np.uint64).reshape(value.shape)
    table.flags.writeable = False
    return table


def _check_array(label: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{label}: the kernel takes a pointer; expected a NumPy array or None, "
            f"got {type(value).__name__}"
        )
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{label}: expected a C-contiguous array, got shape {value.shape} with strides "
            f"{value.strides}; a kernel sees memory, not a view: pass numpy.ascontiguousarray of it"
        )


def _origin(array: np.ndarray) -> int:
    """Where the memory begins that the array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.ctypes.data


def _scalar(label: str, value: Any, parameter: Parameter) -> Any:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    kind, note = parameter.kind.decode(), ""
    if isinstance(value, bool):
        value = np.bool_(value)
    elif isinstance(value, int) and kind == "i":
        # CuPy passes a long long, of which the kernel uses the lower bytes.
        bits = 8 * parameter.size
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise ValueError(f"{label}: {value} does not fit an integer of {parameter.size} bytes")
        word = (value % (1 << bits)).to_bytes(parameter.size, "little")
        return ctypes.create_string_buffer(word, parameter.size)
    elif isinstance(value, float):
        value, note = (
            np.float64(value),
            "; CuPy passes a Python float as double, wrap it in numpy.float32",
        )
    if not isinstance(value, np.generic):
        raise TypeError(
            f"{label}: the kernel takes {_KINDS[kind]} of {parameter.size} bytes, "
            f"got {type(value).__name__}"
        )
    given = {"i": "i", "u": "i", "f": "f", "b": "b"}.get(value.dtype.kind, "s")
    fits = given == kind or kind == "s" or (kind in "ib" and given in "ib")
    if value.dtype.itemsize != parameter.size or not fits:
        raise TypeError(
            f"{label}: the kernel takes {_KINDS[kind]} of {parameter.size} bytes, "
            f"got {value.dtype} of {value.dtype.itemsize} bytes{note}"
        )
    return ctypes.create_string_buffer(value.tobytes(), value.dtype.itemsize)
