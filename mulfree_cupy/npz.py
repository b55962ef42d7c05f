"""npz files, read without trust in what they hold: nothing in them is ever executed."""

from __future__ import annotations

import os
import zipfile

import numpy as np


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of an npz file, by name.

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
