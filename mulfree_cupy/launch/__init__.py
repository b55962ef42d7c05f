"""How a kernel gets to run: compiled for the CPU, through CuPy on a GPU, or emulated.

The compiled CPU kernels and their NumPy twins are one set of functions, `cpu_kernels`. CUDA kernels
go through a *device* (`device`): the launchers, one module an operation, take one and do not ask
which it is. `select` says which kernel serves a call, `tiling` how a launch is cut, `limits` what a
GPU can take.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from types import ModuleType

from mulfree_cupy.launch.device import device_for
from mulfree_cupy.launch.select import check_kernel

__all__ = ["check_kernel", "cpu_kernels", "device_for"]


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
