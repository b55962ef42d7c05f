"""Convolutions with no multiplications, or far fewer, as plain functions on arrays."""

import importlib
from typing import TYPE_CHECKING

from mulfree_cupy.config import get_num_threads, keep_freed_memory, set_num_threads, show_config
from mulfree_cupy.inference import load
from mulfree_cupy.launch import emulator
from mulfree_cupy.launch.emulator import EmulationFault, emulated_cuda
from mulfree_cupy.launch.source import kernels
from mulfree_cupy.ops.adder import adaptive_rate, adder_conv, adder_conv_backward, adder_matmul
from mulfree_cupy.ops.binary import binary_conv, binary_conv_backward, pack_signs
from mulfree_cupy.ops.convolution import col2im, conv, conv_backward, im2col
from mulfree_cupy.ops.distances import match_template_l1, nearest_l1, pairwise_l1
from mulfree_cupy.ops.packing import PackedWeights, pack
from mulfree_cupy.ops.shift import (
    group_shifts,
    modulo_shifts,
    shift,
    shift_adder_conv,
    shift_adder_conv_backward,
    shift_backward,
    shift_conv,
    shift_conv_backward,
)
from mulfree_cupy.ops.winograd import (
    WinogradWeights,
    winograd_conv,
    winograd_conv_backward,
    winograd_matrices,
)
from mulfree_cupy.version import __version__

if TYPE_CHECKING:
    from mulfree_cupy import (  # noqa: F401
        autograd,
        compat,
        data,
        formulas,
        lessons,
        models,
        nn,
        optim,
        report,
        train,
    )

# Imported when first asked for.
_SUBMODULES = (
    *("autograd", "compat", "data", "formulas", "lessons", "models", "nn", "optim", "report"),
    "train",
)

__all__ = [
    "EmulationFault",
    "PackedWeights",
    "WinogradWeights",
    "__version__",
    "adaptive_rate",
    "adder_conv",
    "adder_conv_backward",
    "adder_matmul",
    "binary_conv",
    "binary_conv_backward",
    "col2im",
    "conv",
    "conv_backward",
    "emulated_cuda",
    "emulator",
    "get_num_threads",
    "group_shifts",
    "im2col",
    "keep_freed_memory",
    "kernels",
    "load",
    "match_template_l1",
    "modulo_shifts",
    "nearest_l1",
    "pack",
    "pack_signs",
    "pairwise_l1",
    "set_num_threads",
    "shift",
    "shift_adder_conv",
    "shift_adder_conv_backward",
    "shift_backward",
    "shift_conv",
    "shift_conv_backward",
    "show_config",
    "winograd_conv",
    "winograd_conv_backward",
    "winograd_matrices",
]


if not TYPE_CHECKING:  # a checker would take any name for one of the package

    def __getattr__(name: str):
        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
