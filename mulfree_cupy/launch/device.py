"""The interface of a device, and the choice of an array's device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.launch import emulator


class Device(Protocol):
    """Where CUDA kernels run: a GPU or the emulator."""

    @property
    def xp(self) -> Any:
        """The module of its arrays."""

    @property
    def architecture(self) -> int:
        """Its compute capability, 90 for 9.0."""

    def constant(self, values: np.ndarray) -> Array:
        """A small NumPy array's values on the device, read-only, copied at most once."""

    def launch(
        self,
        path: str,
        entry: str,
        defines: Mapping[str, object],
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
    ) -> None:
        """Queue the kernel `entry` of ``cuda/<path>``, compiled with the macros `defines`.

        Arguments are arrays, None for a null pointer, and NumPy scalars, structs among them.
        """


def device_for(array: Array) -> Device | None:
    """The device whose CUDA kernels serve this array, or None for the CPU kernels."""
    if namespace(array) is not np:
        from mulfree_cupy.launch import cuda

        return cuda.device
    return emulator.device if emulator.active() is not None else None


def on_device_of_arrays(launcher: Callable) -> Callable:
    """Decorator: run the launcher with its first array's GPU as the current device."""

    @functools.wraps(launcher)
    def launch(device: Device, first, *args, **options):
        with contextlib.nullcontext() if device.xp is np else first.device:
            return launcher(device, first, *args, **options)

    return launch
