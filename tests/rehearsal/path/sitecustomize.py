"""On PYTHONPATH in a rehearsal: turns the CUDA runtime inside CuPy's modules over to the fake one.

The wheels link the runtime statically, so each of its functions there gets a jump as its first
instruction. The driver and cuBLAS are shared libraries, and found by their names.
"""

import ctypes
import glob
import importlib.util
import os
import struct
from pathlib import Path

MODULES = "cupy_backends/cuda/api/runtime", "cupy/cuda/cub", "cupy/cuda/thrust"
JUMP = b"\xff\x25\0\0\0\0"  # jmp [rip]: to the address that follows
FUNCTION, SYMBOLS, WRITABLE, PAGE = 2, 2, 7, 4096


def functions(path):
    """(name, offset, size) of the functions in an ELF file's full table of symbols."""
    data = Path(path).read_bytes()
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(count)]
    for _, kind, _, _, at, length, strings, *_ in heads:
        if kind != SYMBOLS:
            continue
        names = heads[strings][4]
        for name, info, _, _, value, extent in struct.iter_unpack(
            "<IBBHQQ", data[at : at + length]
        ):
            if info & 15 == FUNCTION and value:
                yield data[names + name : data.index(b"\0", names + name)].decode(), value, extent


def base_address(path):
    """Where a loaded library begins."""
    with open("/proc/self/maps") as maps:
        return next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(path))


def patch(path, library):
    """Make every function of the CUDA runtime in a module jump to its fake."""
    ctypes.CDLL(path)  # Python's import finds it loaded
    base, libc = base_address(path), ctypes.CDLL(None, use_errno=True)
    for name, offset, size in functions(path):
        if not (name.startswith("cuda") and name[4].isupper()) or size < len(JUMP) + 8:
            continue
        fake = getattr(library, f"fake_{name}", library.fake_otherwise)
        address = base + offset
        page = ctypes.c_void_p(address & -PAGE)
        if libc.mprotect(page, ctypes.c_size_t(2 * PAGE), WRITABLE):
            raise OSError(ctypes.get_errno(), f"cannot write to {path}")
        target = ctypes.cast(fake, ctypes.c_void_p).value
        ctypes.memmove(address, JUMP + struct.pack("<Q", target), len(JUMP) + 8)


def install(library_path):
    spec = importlib.util.find_spec("cupy_backends")
    if spec is None:  # another Python
        return
    packages = Path(spec.origin).parents[1]
    library = ctypes.CDLL(library_path, mode=ctypes.RTLD_GLOBAL)
    for nvrtc in sorted(glob.glob(f"{packages}/nvidia/cu13/lib/libnvrtc*.so*"), reverse=True):
        ctypes.CDLL(nvrtc, mode=ctypes.RTLD_GLOBAL)  # libnvrtc-builtins, after libnvrtc
    for module in MODULES:
        (path,) = glob.glob(f"{packages}/{module}.*.so")
        patch(path, library)


if "REHEARSAL_LIBRARY" in os.environ:
    install(os.environ["REHEARSAL_LIBRARY"])
