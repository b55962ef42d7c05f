"""Which CUDA kernel serves which call: the kernels of each operation, and what each refuses.

A ladder stands from its first rung to its last. Without ``kernel=`` the last that can serve a call
and is meant for such calls runs; with it that kernel runs, or the error says why it cannot.
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

SHIFT_SIDE = 16  # of the tile of the first two rungs of shift, whose shifts they compute themselves


@dataclass(frozen=True)
class Call:
    """What the choice of a kernel looks at; of each operation, what it has."""

    function: str
    dtype: np.dtype
    geometry: ConvGeometry | None = None
    shifts: np.ndarray | None = None
    size: Pair = (0, 0)  # of the image that is shifted
    stride: Pair = (1, 1)
    weights: Any = None  # WinogradWeights
    elements: int = 0  # of a channel of batch normalisation
    architecture: int = 90  # of the device, as in sm_90


Refusal = str | None  # as in "kernel '4_frozen' takes m=2"


class Kernel(NamedTuple):
    """A kernel, why it refuses a call (None if it does not), and whether it is one's default."""

    name: str
    refusal: Callable[[Call], Refusal] = lambda call: None
    by_default: Callable[[Call], bool] = lambda call: True


def can_use(kernel: str, call: Call) -> tuple[bool, str]:
    """Whether a kernel can serve a call, and if not, why: "takes at most 8192 weights"."""
    check_name(call.function, kernel)
    (found,) = (k for k in KERNELS[call.function] if k.name == kernel)
    reason = found.refusal(call)
    return reason is None, reason or ""


def choose(call: Call, kernel: str | None = None) -> str:
    """The kernel that serves a call: the one that is asked for, if any.

    Raises
    ------
    ValueError
        If there is no such kernel, or it cannot.
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
    """Refuse a name that no kernel has."""
    if kernel not in names(function):
        raise ValueError(
            f"{function}: no kernel named {kernel!r}; there are {', '.join(names(function))}"
        )


def check_kernel(function: str, kernel: str | None, **argument: Array) -> None:
    """Refuse the name of no kernel, or one for a NumPy array.

    The array stands under the name of the argument it is.
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
    """Of the products of matrices, a group each along a grid's z."""
    groups = call.geometry.groups if call.geometry else 1
    if groups > limits.GRID_LIMIT:
        return f"takes at most {limits.GRID_LIMIT} groups, got {groups}"


def _depthwise(call: Call) -> Refusal:
    """Few filters a channel, which would not fill a tile, and a window that is written as code."""
    g = call.geometry
    if g.channels != g.groups or g.filters > 4 * g.groups:
        return (
            f"takes a channel a group and at most 4 filters, got {g.channels} channels and "
            f"{g.filters} filters in {g.groups} groups"
        )
    if max(g.kernel) > 7 or max(*g.stride, *g.dilation) > 4:
        return (
            f"takes windows of at most 7x7, strides and dilations of at most 4, got "
            f"{g.kernel}, {g.stride} and {g.dilation}"
        )


def modulo_mapping(shifts: np.ndarray, size: Pair) -> tuple[int, int] | None:
    """The kernel size and dilation whose modulo table this is, where the tile holds its halo."""
    limit = np.array(size)
    for k in (3, *range(1, int(len(shifts) ** 0.5) + 1)):
        for dilation in range(1, (SHIFT_SIDE // 2 - 1) // max(1, k // 2) + 1):
            table = modulo_table(len(shifts), k, dilation)
            if np.array_equal(np.clip(table, -limit, limit), shifts):
                return k, dilation
    return None


def modulo_table(channels: int, kernel_size: int, dilation: int) -> np.ndarray:
    """What rungs 1 and 2 compute: all zeros where there are fewer channels than shifts."""
    c = np.arange(channels)
    table = np.stack([c // kernel_size % kernel_size, c % kernel_size], axis=1) - kernel_size // 2
    table[channels // kernel_size**2 * kernel_size**2 :] = 0
    return dilation * table


def _modulo_of_3x3(call: Call) -> Refusal:
    if call.stride != (1, 1) or modulo_mapping(call.shifts, call.size) != (3, 1):
        return "takes stride 1 and the modulo shifts of 3x3 with dilation 1 alone"


def _modulo(call: Call) -> Refusal:
    if call.stride != (1, 1) or not modulo_mapping(call.shifts, call.size):
        return (
            "takes stride 1 and modulo shifts with dilation * (kernel_size // 2) of 7 at most alone"
        )


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
        return f"takes at most {most} elements a channel, got {call.elements}"


def _multiplies_bits(call: Call) -> bool:
    """Whether tensor cores do: from sm_100 on 8 products of bytes take the place of one."""
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
        # A product of matrices that are there already has no windows to gather.
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
    "winograd_conv": (  # defaults as an H100 timed them (docs/cuda.md)
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
