"""How a kernel gets to run: compiled for the CPU, through CuPy on a GPU, or emulated.

The compiled CPU kernels and their NumPy twins are one set of functions, `cpu_kernels`. CUDA kernels
go through a *device*, an object with ``xp`` and
``launch(path, entry, defines, grid, block, args)``;
the launchers in `adder` and `convolution` take one and do not ask which it is.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.launch import emulator


def device_for(array: Array) -> Any | None:
    """The device whose CUDA kernels serve this array, or None for the CPU kernels."""
    if namespace(array) is not np:
        from mulfree_cupy.launch import cuda

        return cuda.device
    return emulator.device if emulator.active() is not None else None


def check_kernel(
    function: str, kernel: str | None, names: tuple[str, ...], **argument: Array
) -> None:
    """Refuse the name of a CUDA kernel that is none of `names`, or one for a NumPy array.

    The array stands under the name of the argument it is.
    """
    if kernel is None:
        return
    if kernel not in names:
        raise ValueError(f"{function}: no kernel named {kernel!r}; there are {', '.join(names)}")
    ((name, array),) = argument.items()
    if device_for(array) is None:
        raise ValueError(
            f"{function}: kernel={kernel!r} is a CUDA kernel and {name} a NumPy array: pass "
            "CuPy arrays, or call inside `with mulfree_cupy.emulated_cuda():`"
        )


@functools.cache
def cpu_kernels() -> ModuleType:
    """The compiled CPU kernels, or their NumPy twins where the install had no C++ compiler.

    Raises
    ------
    ValueError
        If MULFREE_CPU_FEATURES names what this machine has not.
    """
    try:
        from mulfree_cupy import _cpu as kernels
    except ImportError as error:
        if "CPU features" in str(error):
            raise ValueError(f"MULFREE_CPU_FEATURES: {error}") from error
        from mulfree_cupy.launch import numpy_kernels as kernels

        warnings.warn(
            f"mulfree_cupy runs on its slow NumPy kernels, without the compiled ones ({error}). "
            f"{_remedy()}",
            RuntimeWarning,
            stacklevel=4,
        )
    return kernels


def _remedy() -> str:
    checkout = Path(__file__).parents[2]
    if (checkout / "setup.py").is_file():
        return f"This is the source tree {checkout}: run pip install -e . there, or leave it."
    return "Install a C++17 compiler and reinstall mulfree_cupy."
