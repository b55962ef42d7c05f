"""Kernel launches: compiled for the CPU, through CuPy on a GPU, or emulated.

The compiled CPU kernels and their NumPy equivalents are one set of functions, `cpu_kernels`. CUDA
kernels are launched on a *device* (`device`), a GPU or the emulator: the launchers, one module per
operation, work with either. `select` chooses the kernel of a call, `tiling` its tiles and grid,
`limits` has the limits of GPUs.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np

from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.launch.device import device_for
from mulfree_cupy.launch.select import check_kernel

__all__ = ["check_kernel", "compiled_kernels", "cpu_kernels", "device_for"]


@functools.cache
def cpu_kernels() -> ModuleType:
    """The compiled CPU kernels, or their NumPy equivalents where there was no C++ compiler.

    Raises
    ------
    ValueError
        If MULFREE_CPU_FEATURES names a feature that this machine lacks.
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


def compiled_kernels(x: Array, *dtypes: type) -> ModuleType | None:
    """The compiled kernels for x, or None for an array expression instead: where they do not serve
    it, as it is empty, on a device or of none of these dtypes, or where there are none.
    """
    if namespace(x) is not np or x.dtype not in dtypes or not x.size:
        return None
    kernels = cpu_kernels()
    return kernels if kernels.__name__ == "mulfree_cupy._cpu" else None


def _remedy() -> str:
    checkout = Path(__file__).parents[2]
    if (checkout / "setup.py").is_file():
        return f"This is the source tree {checkout}: run pip install -e . there, or leave it."
    return "Install a C++17 compiler and reinstall mulfree_cupy."
