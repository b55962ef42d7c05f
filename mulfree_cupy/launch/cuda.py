"""Run the files of ``cuda/`` on the current CUDA device and stream, through ``cupy.RawModule``."""

from __future__ import annotations

import functools

import numpy as np

from mulfree_cupy.launch import source, structs

STATIC_SHARED_LIMIT = 48 * 1024  # bytes; a kernel must ask for more


class Device:
    """The current CUDA device; the launchers make it that of their arrays. Imports CuPy late."""

    @property
    def xp(self):
        import cupy

        return cupy

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
            CuPy arrays, None for a null pointer, and NumPy scalars, among them structs that hold
            arrays (`structs`). CuPy checks neither count nor types, and hands a Python int over as
            64 bits, so a Python number is refused here.
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
            structs.with_addresses(value, lambda array: array.data.ptr)
            if structs.holds_arrays(value)
            else value
            for value in args
        )
        kernel = _kernel(self.xp.cuda.Device().id, path, entry, tuple(sorted(defines.items())))
        if shared_mem > STATIC_SHARED_LIMIT:
            kernel.max_dynamic_shared_size_bytes = shared_mem
        kernel(grid, block, args, shared_mem=shared_mem)


@functools.cache
def _kernel(device_id, path, entry, defines):
    """One compiled kernel; the limit of its shared memory is a property of the device too."""
    import cupy

    module = cupy.RawModule(code=source.read(path, dict(defines)), options=("--std=c++17",))
    return module.get_function(entry)


device = Device()
