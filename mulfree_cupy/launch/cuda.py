"""Run the files of ``cuda/`` on the current CUDA device and stream, through ``cupy.RawModule``."""

from __future__ import annotations

import functools
import threading

import numpy as np

from mulfree_cupy.launch import arguments, limits, source

_MOST_CONSTANTS = 1024

_constants: dict[tuple, object] = {}
_constants_lock = threading.Lock()


class Device:
    """The current CUDA device; the launchers make it that of their arrays. Imports CuPy late."""

    @property
    def xp(self):
        import cupy

        return cupy

    @property
    def architecture(self) -> int:
        return int(self.xp.cuda.Device().compute_capability)

    def constant(self, values: np.ndarray):
        """A small NumPy array's values on the current device, read-only.

        The first call copies them and waits for the copy, so that any stream may read them; later
        calls with equal values do neither, and so can be captured in a CUDA graph. A graph's arrays
        must not move: nothing is evicted, and values beyond the cache's capacity are copied in
        every call.
        """
        xp = self.xp
        key = xp.cuda.Device().id, values.dtype.str, values.shape, values.tobytes()
        if key not in _constants:
            with _constants_lock:
                if len(_constants) >= _MOST_CONSTANTS and key not in _constants:
                    return xp.asarray(values)
                if key not in _constants:
                    there = xp.asarray(values)
                    xp.cuda.get_current_stream().synchronize()
                    _constants[key] = there
        return _constants[key]

    def launch(self, path, entry, defines, grid, block, args, shared_mem=0):
        """Queue one kernel on the current stream; nothing is synchronised.

        Parameters
        ----------
        path, entry : str
            The file below ``cuda/`` and the kernel in it.
        defines : dict
            Its macros.
        grid, block : tuple of int
            One to three sizes each.
        args : tuple
            CuPy arrays, None for a null pointer, and NumPy scalars, among them structs
            (`arguments`). CuPy checks neither count nor types, and passes a Python int as 64 bits,
            so Python numbers are rejected here.
        shared_mem : int
            Bytes of dynamic shared memory.
        """
        args = tuple(np.uintp(0) if a is None else a for a in args)
        for position, value in enumerate(args):
            if not isinstance(value, (self.xp.ndarray, np.generic)):
                raise TypeError(
                    f"{entry}: argument {position} must be a CuPy array or a NumPy scalar, "
                    f"got {type(value).__name__}"
                )
        args = tuple(
            arguments.with_addresses(value, lambda array: array.data.ptr)
            if arguments.is_struct(value)
            else value
            for value in args
        )
        kernel = _kernel(self.xp.cuda.Device().id, path, entry, tuple(sorted(defines.items())))
        if shared_mem > limits.STATIC_SHARED:
            kernel.max_dynamic_shared_size_bytes = shared_mem
        kernel(grid, block, args, shared_mem=shared_mem)


@functools.cache
def _kernel(device_id, path, entry, defines):
    """One compiled kernel; its shared-memory limit is set per device."""
    import cupy

    module = cupy.RawModule(code=source.read(path, dict(defines)), options=("--std=c++17",))
    return module.get_function(entry)


device = Device()
