"""The variables shared by the kernels of a module, on the host."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np

from mulfree_cupy.launch.emulator.compiler import compile_variables
from mulfree_cupy.launch.emulator.variables import initial_values, symbols_of


class Globals:
    """The ``__device__`` and ``__constant__`` memory of a module.

    Every kernel, checked or not, is a separate library with its own copy of the variables: they are
    copied in before a launch and out after it.
    """

    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        values = initial_values(compile_variables(code, options))
        self._memory = {s: np.frombuffer(bytearray(v), np.uint8) for s, v in values.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        for symbol in symbols_of(name):
            if symbol in self._memory:
                return self._memory[symbol]
        known = ", ".join(sorted(s for s in self._memory if not s.startswith("_Z"))) or "none"
        raise ValueError(
            f"no variable named {name!r} in the module that the host can fill: expected a "
            "__device__ or __constant__ variable that is not const and holds no addresses; "
            f"there are at file scope: {known}"
        )

    @contextlib.contextmanager
    def lent(self, places: dict[str, int]) -> Iterator[None]:
        """Context: copy the values into a library's variables, by symbol, and back."""
        shared = [(m, places[s]) for s, m in self._memory.items() if s in places]
        for memory, place in shared:
            ctypes.memmove(place, memory.ctypes.data, memory.nbytes)
        try:
            yield
        finally:
            for memory, place in shared:
                ctypes.memmove(memory.ctypes.data, place, memory.nbytes)
