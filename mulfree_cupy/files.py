"""Files that are whole or absent, and npz files read without trust in what they hold."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

# As `replaced` names its files.
UNFINISHED = re.compile(r"\..+\.(npz|safetensors|onnx|json|csv|png|md|html)\.\d+")


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` if all went well.

    It is written beside it, brought to disk and renamed, so that whatever happens `path` is whole:
    the new file, the old one, or none.

    Raises
    ------
    OSError
        If it cannot be written: the disk is full, or the place not to be written to.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"{path} cannot be written, and is as it was: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def reason(error: OSError) -> str:
    """What the operating system says, without its number and the path."""
    return error.strerror or str(error)


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of an npz file, by name; nothing in it is ever executed.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be opened.
    ValueError
        If it is no npz file, is damaged or holds Python objects; the message says which, and leaves
        it to the caller to say of which file.
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no npz file, or is cut short")
        file.seek(0)
        # NumPy and zipfile raise nearly everything on damaged input, and advise to unpickle it.
        try:
            entries = np.load(file, allow_pickle=False)
        except Exception as error:
            raise ValueError("its table of contents is damaged") from error
        return {name: _entry(entries, name) for name in entries.files}


def _entry(entries: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = entries[name]
    except Exception as error:
        raise ValueError(f"{name} in it is damaged, or no array of numbers or text") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} in it is no array")
    return array
