"""The C structures of ``cpu/emulator`` (state.h, memory.h, trace.h, launch.h) for ctypes."""

from __future__ import annotations

import ctypes
import functools
import mmap
from pathlib import Path

import numpy as np

from mulfree_cupy.launch import limits
from mulfree_cupy.launch.emulator.variables import read_variables, shared_size

STACK_SIZE = 128 << 10


class Parameter(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char),
        ("size", ctypes.c_int),
        ("pointee_kind", ctypes.c_char),
        ("pointee_size", ctypes.c_int),
        ("pointee_const", ctypes.c_bool),
    ]


class Kernel(ctypes.Structure):
    _fields_ = [
        ("run", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(Parameter)),
        ("parameter_count", ctypes.c_int),
    ]


class Array(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("origin", ctypes.c_void_p),
        ("pointer", ctypes.c_void_p),
        ("name", ctypes.c_int),
        ("writable", ctypes.c_int),
    ]


class Variable(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("offset", ctypes.c_uint64),
        ("size", ctypes.c_size_t),
        ("writable", ctypes.c_int),
    ]


class Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
        ("check", ctypes.c_int),
        ("trace", ctypes.c_int),
        ("followed", ctypes.c_int64),
        ("stacks", ctypes.c_void_p),
        ("stack_size", ctypes.c_size_t),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("arrays", ctypes.POINTER(Array)),
        ("array_count", ctypes.c_int),
        ("variables", ctypes.POINTER(Variable)),
        ("variable_count", ctypes.c_int),
        ("guide", ctypes.c_int),
        ("cooperative", ctypes.c_int),
        ("seconds", ctypes.c_double),
    ]


class Place(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("line", ctypes.c_int)]


class Piece(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("allocated", ctypes.c_uint64),
        ("freed", ctypes.c_uint64),
    ]


class Finding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int),
        ("access", ctypes.c_int),
        ("other_access", ctypes.c_int),
        ("size", ctypes.c_int),
        ("pc", ctypes.c_uint64),
        ("other_pc", ctypes.c_uint64),
        ("file", ctypes.c_char_p),
        ("other_file", ctypes.c_char_p),
        ("text", ctypes.c_char_p),
        ("line", ctypes.c_int),
        ("other_line", ctypes.c_int),
        ("column", ctypes.c_int),
        ("thread", ctypes.c_uint32),
        ("other_thread", ctypes.c_uint32),
        ("block", ctypes.c_uint64),
        ("other_block", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("piece", Piece),
        ("region", ctypes.c_int),
        ("count", ctypes.c_int),
        ("passed", Place),
        ("atomic_between", ctypes.c_int),
        ("guard", ctypes.c_int),
        ("call_count", ctypes.c_int),
        ("calls", ctypes.c_uint64 * 16),
    ]


class Region(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("origin", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_int32),
        ("array", ctypes.c_int32),
        ("shared", ctypes.c_int32),
        ("writable", ctypes.c_int32),
        ("counted", ctypes.c_int32),
        ("shadow", ctypes.c_int32),
        ("element", ctypes.c_size_t),
        ("rank", ctypes.c_int),
        ("extents", ctypes.c_size_t * 4),
    ]


class Site(ctypes.Structure):
    _fields_ = [
        ("pc", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
        ("shared", ctypes.c_int32),
        ("accesses", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("requests", ctypes.c_uint64),
        ("sectors", ctypes.c_uint64),
        ("wavefronts", ctypes.c_uint64),
        ("conflicts", ctypes.c_uint64),
    ]


class BarrierSite(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("line", ctypes.c_int64), ("count", ctypes.c_uint64)]


_TABLES = {
    "regions": Region,
    "sites": Site,
    "barriers": BarrierSite,
    "guards": ctypes.c_uint32,
}
_EVENT = np.dtype(
    [(name, np.uint32) for name in ("site", "warp", "interval", "lanes", "size")]
    + [("region", np.uint32, 32), ("address", np.int64, 32)],
    align=True,
)


def bind(library: ctypes.CDLL) -> Kernel:
    """Give the library's functions their types; return the kernel's description."""
    library.mulfree_kernel.restype = ctypes.POINTER(Kernel)
    library.mulfree_launch.argtypes = [ctypes.POINTER(Kernel), ctypes.POINTER(Launch)]
    library.mulfree_findings.restype = ctypes.POINTER(Finding)
    for name, kind in _TABLES.items():
        getattr(library, f"mulfree_{name}").restype = ctypes.POINTER(kind)
    library.parameter_names = _names(library, "mulfree_parameters")
    constants = set(_names(library, "mulfree_constants"))
    file = Path(library._name).read_bytes()
    library.shared_size = shared_size(file)
    found = read_variables(file, constants)
    library.mulfree_base.restype = ctypes.c_size_t
    library.places = {v.symbol: library.mulfree_base() + v.offset for v in found if not v.fixed}
    library.variables = (Variable * len(found))(
        *(Variable(v.name and v.name.encode(), v.offset, v.size, v.writable) for v in found)
    )
    return library.mulfree_kernel().contents


def _names(library: ctypes.CDLL, symbol: str) -> list[str]:
    text = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, symbol)))
    return text.decode().split(",")


def table(library: ctypes.CDLL, name: str) -> list:
    """The rows of one of the runtime's tables: regions, sites, barriers or guards."""
    count = ctypes.c_int()
    rows = getattr(library, f"mulfree_{name}")(ctypes.byref(count))
    return rows[: count.value]


def events(library: ctypes.CDLL) -> np.ndarray:
    """The requests of the block that was followed, in the order of each warp."""
    count = ctypes.c_int()
    library.mulfree_events.restype = ctypes.c_void_p
    first = library.mulfree_events(ctypes.byref(count))
    return np.frombuffer(ctypes.string_at(first, count.value * _EVENT.itemsize), _EVENT)


@functools.cache
def stacks() -> int:
    """The address of one stack a thread, each above a page that must not be touched."""
    memory = mmap.mmap(-1, limits.BLOCK_THREADS * STACK_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _kept.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None).mprotect
    for i in range(limits.BLOCK_THREADS):
        protect(ctypes.c_void_p(base + i * STACK_SIZE), ctypes.c_size_t(mmap.PAGESIZE), 0)
    return base


_kept: list[mmap.mmap] = []
