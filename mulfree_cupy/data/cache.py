"""Disk cache of data sets from archives, as plain arrays."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mulfree_cupy.data.dataset import Dataset

_VERSION = 3
_UNFINISHED = ".part"
_DAY = 24 * 60 * 60

Parts = tuple[Dataset, Dataset]


def cached(sources: list[Path], image_size: object, read: Callable[[], Parts]) -> Parts:
    """The result of `read`, from the cache if the sources have not changed.

    An entry belongs to the sources' paths and the image size, and is replaced when a source's size
    or one of its times has changed, or when the entry is damaged.
    """
    paths = [str(source.resolve()) for source in sources]
    # The second time detects a replaced archive of the same size and modification time.
    stamps = [[s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in map(os.stat, sources)]
    key = json.dumps([_VERSION, paths, stamps, image_size])
    digest = hashlib.sha256(json.dumps([paths, image_size]).encode()).hexdigest()[:16]
    name = f"{digest}.npz"
    parts = _read(name, key)
    if parts is None:
        parts = read()
        try:
            _write(name, key, parts)
        except (OSError, RuntimeError) as error:  # RuntimeError if there is no home folder
            warnings.warn(
                f"load: cannot cache {sources[0]}: {error}; set MULFREE_CACHE_DIR to a folder "
                "that can be written, or pass cache=False",
                RuntimeWarning,
                stacklevel=3,
            )
    return parts


def _folder() -> Path:
    chosen = os.environ.get("MULFREE_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mulfree_cupy"


def _read(name: str, key: str) -> Parts | None:
    # NumPy and zipfile raise almost anything on damaged input.
    try:
        with (_folder() / name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            classes, name = tuple(map(str, arrays["classes"])), str(arrays["name"])
            train, test = (
                Dataset(arrays[f"{part}_images"], arrays[f"{part}_labels"], classes, name)
                for part in ("train", "test")
            )
            return train, test
    except Exception:
        return None


def _write(name: str, key: str, parts: Parts) -> None:
    """Write atomically: a reader sees the old entry or the new one."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"*{_UNFINISHED}"):  # by a process that was killed
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _DAY:
                left.unlink()
    handle, unfinished = tempfile.mkstemp(suffix=_UNFINISHED, dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                key=key,
                classes=parts[0].classes,
                name=parts[0].name,
                **{
                    f"{part}_{field}": getattr(dataset, field)
                    for part, dataset in zip(("train", "test"), parts, strict=True)
                    for field in ("images", "labels")
                },
            )
        os.replace(unfinished, folder / name)
    except BaseException:
        os.unlink(unfinished)
        raise
