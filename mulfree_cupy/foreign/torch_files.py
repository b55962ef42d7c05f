"""Tensors from files of ``torch.save``, without PyTorch and without executing anything in them.

Since PyTorch 1.6 such a file is a zip, whose ``data.pkl`` describes the tensors and whose other
entries are their storages. Before that it was five pickles, followed by the storages.
"""

from __future__ import annotations

import functools
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mulfree_cupy.foreign import pickles

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_DIMENSIONS = 8

_DTYPES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}


@dataclass(frozen=True)
class _Storage:
    """Numbers in the file."""

    dtype: np.dtype
    key: str
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor: a strided view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self):
        if type(self.storage) is not _Storage:
            raise ValueError("a tensor in it has no storage")
        if not (type(self.shape) is type(self.strides) is tuple):
            raise ValueError("a tensor in it has no shape or no strides")
        if not len(self.shape) == len(self.strides) <= _MOST_DIMENSIONS:
            raise ValueError(f"a tensor in it has {len(self.shape)} dimensions")
        for number in (self.offset, *self.shape, *self.strides):
            if type(number) is not int or not 0 <= number < 2**63:
                raise ValueError("a tensor in it has a size, a stride or an offset that is none")
        steps = (s * (n - 1) for n, s in zip(self.shape, self.strides, strict=True))
        last, elements = self.offset + sum(steps), math.prod(self.shape)
        # Overlapping elements, as from `expand`, could exceed any memory.
        if elements and max(last, elements - 1) >= self.storage.count:
            raise ValueError(
                f"a tensor of shape {self.shape}, strides {self.strides} and offset {self.offset} "
                f"in it goes beyond its {self.storage.count} numbers"
            )

    def of(self, numbers: np.ndarray) -> np.ndarray:
        if math.prod(self.shape) == 0:
            return np.empty(self.shape, numbers.dtype)
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, strides, writeable=False
        )


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None):
    return _View(storage, offset, shape, strides)


def _rebuild_parameter(tensor, requires_grad, hooks):
    return tensor


def _ordered_dict():
    return {}


_NAMES = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    **{f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()},
}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a state dict written by ``torch.save``, as read-only arrays.

    If there is an entry ``state_dict``, as in many training programs, that is used.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not such a file, is damaged, was written on a big-endian machine, or asks for a
        name that tensors do not need, such as a module's class.
    """
    with open(path, "rb") as file:
        whole = io.BytesIO(file.read())
    kind = _zipped if zipfile.is_zipfile(whole) else _in_a_row
    whole.seek(0)
    top, numbers = kind(whole)
    state = top.get("state_dict", top) if type(top) is dict else top
    if type(state) is not dict or not state:
        raise ValueError(f"it holds no state dict but {_called(state)}")
    for name, value in state.items():
        if type(name) is not str or type(value) is not _View:
            raise ValueError(
                f"it holds no state dict: its entry {name!r:.100} is no tensor but {_called(value)}"
            )
    return {name: view.of(numbers(view.storage)) for name, view in state.items()}


def _called(value: Any) -> str:
    return "a tensor" if type(value) is _View else f"a {type(value).__name__}"


def _storage(found: Any) -> _Storage:
    """A pickle's persistent id of a storage: type, key, location, length, and in old files a
    view."""
    if type(found) is not tuple or len(found) < 5:
        raise ValueError("it refers to something that is no storage")
    word, dtype, key, _, count, *view = found
    if word != "storage" or not isinstance(dtype, np.dtype) or type(key) is not str:
        raise ValueError("it refers to something that is no storage")
    if type(count) is not int or count < 0 or view not in ([], [None]):
        raise ValueError(f"its storage {key:.100} has a length or a view that is none")
    return _Storage(dtype, key, count)


def _zipped(whole: io.BytesIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    # zipfile raises almost anything on damaged input.
    try:
        archive = zipfile.ZipFile(whole)
        entries = archive.infolist()
    except Exception as error:
        raise ValueError("its table of contents is damaged") from error
    roots = [e.filename.removesuffix("data.pkl") for e in entries if _is_description(e.filename)]
    if len(roots) != 1:
        raise ValueError("it is a zip, but not of torch.save: it has no data.pkl, or several")
    names = {entry.filename for entry in entries}

    def entry(name: str, size: int | None = None) -> bytes:
        if roots[0] + name not in names:
            raise ValueError(f"it has no entry {name:.100}")
        info = archive.getinfo(roots[0] + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {name:.100} is compressed, which torch.save never does")
        if size not in (None, info.file_size):
            raise ValueError(
                f"its entry {name:.100} has {info.file_size} bytes, {size} were announced"
            )
        try:
            return archive.read(info)
        except Exception as error:
            raise ValueError(f"its entry {name:.100} is damaged") from error

    if roots[0] + "byteorder" in names and entry("byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine, which is not read")

    @functools.cache
    def numbers(storage: _Storage) -> np.ndarray:
        size = storage.count * storage.dtype.itemsize
        return np.frombuffer(entry(f"data/{storage.key}", size), storage.dtype)

    return pickles.described(io.BytesIO(entry("data.pkl")), _NAMES, _storage), numbers


def _is_description(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _in_a_row(whole: io.BytesIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    if pickles.described(whole, {}) != _MAGIC or pickles.described(whole, {}) != _PROTOCOL:
        raise ValueError("it is no file of torch.save")
    system = pickles.described(whole, {})
    if type(system) is not dict or system.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine, which is not read")
    storages: dict[str, _Storage] = {}

    def stored(found: Any) -> _Storage:
        storage = _storage(found)
        if storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"its storage {storage.key:.100} is described twice, and differently")
        return storage

    top, keys = pickles.described(whole, _NAMES, stored), pickles.described(whole, {})
    if type(keys) is not list or any(type(k) is not str or k not in storages for k in keys):
        raise ValueError("its list of storages is damaged")
    found = {}
    for key in keys:
        storage = storages[key]
        size = storage.count * storage.dtype.itemsize
        head, body = whole.read(8), whole.read(size)
        if len(head) < 8 or struct.unpack("<q", head) != (storage.count,) or len(body) < size:
            raise ValueError(f"its storage {key:.100} is cut short or damaged")
        found[key] = np.frombuffer(body, storage.dtype)

    def numbers(storage: _Storage) -> np.ndarray:
        if storage.key not in found:
            raise ValueError(f"it has no storage {storage.key:.100}")
        return found[storage.key]

    return top, numbers
