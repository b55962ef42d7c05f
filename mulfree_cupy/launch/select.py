"""Kernel selection: the CUDA kernels of each operation, and the calls each supports.

Ladders are listed from first rung to last. Without ``kernel=`` the last kernel that supports the
call and is a default for it runs; with it that kernel runs, or the error says why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mulfree_cupy.arrays import Array
from mulfree_cupy.geometry import ConvGeometry, Pair
from mulfree_cupy.launch import limits, tiling
from mulfree_cupy.launch.device import device_for

SHIFT_SIDE = 16  # of the tile of shift's first two rungs, which compute the shifts from the channel


@dataclass(frozen=True)
class Call:
    """The properties of a call on which the choice of its kernel depends."""

    function: str
    dtype: np.dtype
    geometry: ConvGeometry | None = None
    shifts: np.ndarray | None = None
    size: Pair = (0, 0)  # of the shifted image
    stride: Pair = (1, 1)
    weights: Any = None  # WinogradWeights
    elements: int = 0  # per channel of batch normalisation
    architecture: int = 90  # of the device, as in sm_90


Refusal = str | None  # as in "kernel '4_frozen' takes m=2"


class Kernel(NamedTuple):
    """A kernel, a function that says why it cannot serve a call (or None), and one for whether it
    is a default."""

    name: str
    refusal: Callable[[Call], Refusal] = lambda call: None
    by_default: Callable[[Call], bool] = lambda call: True


def can_use(kernel: str, call: Call) -> tuple[bool, str]:
    """The reason why a kernel cannot serve a call, such as "takes at most 8192 weights", or
    None."""
    check_name(call.function, kernel)
    (found,) = (k for k in KERNELS[call.function] if k.name == kernel)
    reason = found.refusal(call)
    return reason is None, reason or ""


def choose(call: Call, kernel: str | None = None) -> str:
    """The kernel that serves a call: the requested one, if any.

    Raises
    ------
    ValueError
        If there is no such kernel, or it cannot serve the call.
    """
    if kernel is None:
        return next(
            k.name
            for k in reversed(KERNELS[call.function])
            if k.by_default(call) and k.refusal(call) is None
        )
    can, reason = can_use(kernel, call)
    if not can:
        able = (name for name in names(call.function) if can_use(name, call)[0])
        raise ValueError(
            f"{call.function}: kernel {kernel!r} {reason}; {', '.join(able) or 'none'} can"
        )
    return kernel


def names(function: str) -> tuple[str, ...]:
    """The kernels of an operation, which ``kernel=`` takes."""
    return tuple(kernel.name for kernel in KERNELS[function])


def check_name(function: str, kernel: str) -> None:
    """Raise for an unknown kernel name."""
    if kernel not in names(function):
        raise ValueError(
            f"{function}: no kernel named {kernel!r}; there are {', '.join(names(function))}"
        )


def check_kernel(function: str, kernel: str | None, **argument: Array) -> None:
    """Raise for an unknown kernel name, or for a NumPy array.

    The array is given under the name of its argument.
    """
    if kernel is None:
        return
    check_name(function, kernel)
    ((name, array),) = argument.items()
    if device_for(array) is None:
        raise ValueError(
            f"{function}: kernel={kernel!r} is a CUDA kernel and {name} a NumPy array: pass "
            "CuPy arrays, or call inside `with mulfree_cupy.emulated_cuda():`"
        )


def _takes(*dtypes: str) -> Callable[[Call], Refusal]:
    def refusal(call: Call) -> Refusal:
        return None if call.dtype.name in dtypes else f"does not take {call.dtype}"

    return refusal


def _all_of(*conditions: Callable[[Call], Refusal]) -> Callable[[Call], Refusal]:
    return lambda call: next(filter(None, (refusal(call) for refusal in conditions)), None)


def _groups_of_a_grid(call: Call) -> Refusal:
    """For matrix products, with one group per block along grid z."""
    groups = call.geometry.groups if call.geometry else 1
    if groups > limits.GRID_LIMIT:
        return f"takes at most {limits.GRID_LIMIT} groups, got {groups}"


def _depthwise(call: Call) -> Refusal:
    """For few filters per channel, which would not fill a tile, and windows small enough to
    unroll."""
    g = call.geometry
    if g.channels != g.groups or g.filters > 4 * g.groups:
        return (
            f"takes one channel per group and at most 4 filters, got {g.channels} channels and "
            f"{g.filters} filters in {g.groups} groups"
        )
    if max(g.kernel) > 7 or max(*g.stride, *g.dilation) > 4:
        return (
            f"takes windows of at most 7x7, strides and dilations of at most 4, got "
            f"{g.kernel}, {g.stride} and {g.dilation}"
        )


def modulo_mapping(shifts: np.ndarray, size: Pair) -> tuple[int, int] | None:
    """Kernel size and dilation of a modulo table whose halo fits the tile."""
    limit = np.array(size)
    for k in (3, *range(1, int(len(shifts) ** 0.5) + 1)):
        for dilation in range(1, (SHIFT_SIDE // 2 - 1) // max(1, k // 2) + 1):
            table = modulo_table(len(shifts), k, dilation)
            if np.array_equal(np.clip(table, -limit, limit), shifts):
                return k, dilation
    return None


def modulo_table(channels: int, kernel_size: int, dilation: int) -> np.ndarray:
    """The shifts of rungs 1 and 2: all zeros where there are fewer channels than shifts."""
    c = np.arange(channels)
    table = np.stack([c // kernel_size % kernel_size, c % kernel_size], axis=1) - kernel_size // 2
    table[channels // kernel_size**2 * kernel_size**2 :] = 0
    return dilation * table


def _modulo_of_3x3(call: Call) -> Refusal:
    if call.stride != (1, 1) or modulo_mapping(call.shifts, call.size) != (3, 1):
        return "takes only stride 1 and the modulo shifts of 3x3 with dilation 1"


def _modulo(call: Call) -> Refusal:
    if call.stride != (1, 1) or not modulo_mapping(call.shifts, call.size):
        return "takes only stride 1 and modulo shifts with dilation * (kernel_size // 2) at most 7"


def _small_tiles(call: Call) -> Refusal:
    if call.weights.m != 2:
        return f"takes m=2, got {call.weights!r}"


def _few_weights(call: Call) -> Refusal:
    if call.weights.nnz > limits.FROZEN_ENTRIES:
        return (
            f"takes at most {limits.FROZEN_ENTRIES} weights that are not pruned, got "
            f"{call.weights.nnz} in {call.weights!r}"
        )


def _held_by_registers(call: Call) -> Refusal:
    most = tiling.channel_capacity(call.dtype.itemsize)
    if call.elements > most:
        return f"takes at most {most} elements per channel, got {call.elements}"


def _multiplies_bits(call: Call) -> bool:
    """Whether tensor cores have binary products: from sm_100 on they are emulated by 8 of bytes."""
    return 80 <= call.architecture < 100


_FLOATS = _takes("float32", "float64")
_PRODUCT = _all_of(_FLOATS, _groups_of_a_grid)
_ADDER = (
    Kernel("1_naive", _PRODUCT),
    Kernel("2_shared_tile", _PRODUCT),
    Kernel("3_register_tile", _PRODUCT),
    Kernel("4_vectorised_loads", _PRODUCT),
    Kernel("5_implicit_conv", _FLOATS),
    Kernel("6_uint8", _takes("uint8")),
    Kernel("7_half2", _takes("float16")),
)
_DEPTHWISE = Kernel("depthwise", _all_of(_FLOATS, _depthwise))
_BINARY = (
    Kernel("1_naive"),
    Kernel("2_register_tile"),
    Kernel("3_tensor_cores", by_default=_multiplies_bits),
)
_SHIFT = (
    Kernel("1_tiled_modulo", _modulo_of_3x3),
    Kernel("2_tiled_generic", _modulo),
    Kernel("3_table"),
)
_SHIFT_CONV = (*_SHIFT, Kernel("4_fused_conv"))

KERNELS: dict[str, tuple[Kernel, ...]] = {
    "adder_matmul": tuple(
        # A matrix product has no windows to gather.
        k._replace(by_default=lambda call: False) if k.name == "5_implicit_conv" else k
        for k in _ADDER
    ),
    "adder_conv": (*_ADDER, _DEPTHWISE),
    "conv": (Kernel("1_im2col"), Kernel("2_implicit_conv", _FLOATS), _DEPTHWISE),
    "adder_conv with bits": _BINARY,
    "binary_conv": _BINARY,
    "shift": _SHIFT,
    "shift_backward": _SHIFT,
    "shift_conv": _SHIFT_CONV,
    "shift_adder_conv": _SHIFT_CONV,
    "winograd_conv": (  # defaults from timings on an H100 (docs/cuda.md)
        Kernel("1_dense"),
        Kernel("2_sparse", by_default=lambda call: call.weights.density <= 0.1),
        Kernel("3_fused", _small_tiles, by_default=lambda call: False),
        Kernel(
            "4_frozen",
            _all_of(_small_tiles, _few_weights),
            by_default=lambda call: call.weights.frozen,
        ),
    ),
    "batch_norm": (
        Kernel("1_three_passes"),
        Kernel("2_parts"),
        Kernel("3_registers", _held_by_registers),
    ),
}
