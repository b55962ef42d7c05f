"""What was read from an archive, kept on disk as plain arrays."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mulfree_cupy.data.dataset import Dataset

_VERSION = 2

Parts = tuple[Dataset, Dataset]


def cached(sources: list[Path], image_size: object, read: Callable[[], Parts]) -> Parts:
    """What `read` returns, from the cache if the sources are those it was read from.

    An entry belongs to the sources' paths and the image size, and is replaced when a source's size
    or modification time has changed, or when the entry is damaged.
    """
    paths = [str(source.resolve()) for source in sources]
    stamps = [[s.st_size, s.st_mtime_ns] for s in (source.stat() for source in sources)]
    key = json.dumps([_VERSION, paths, stamps, image_size])
    digest = hashlib.sha256(json.dumps([paths, image_size]).encode()).hexdigest()[:16]
    entry = _folder() / f"{digest}.npz"
    parts = _read(entry, key)
    if parts is None:
        parts = read()
        try:
            _write(entry, key, parts)
        except OSError as error:
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


def _read(entry: Path, key: str) -> Parts | None:
    # NumPy and zipfile raise nearly everything on damaged input.
    try:
        with entry.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
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


def _write(entry: Path, key: str, parts: Parts) -> None:
    """Write beside the entry, then rename: a reader sees the old entry or the new one."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(suffix=".part", dir=entry.parent)
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
        os.replace(unfinished, entry)
    except BaseException:
        os.unlink(unfinished)
        raise
