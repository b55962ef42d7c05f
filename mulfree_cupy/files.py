"""Atomic file writes, and reading of untrusted npz files."""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

CHECKPOINT = "checkpoint.npz"  # of a training run, in its folder

# Names of the temporary files of `replaced`.
UNFINISHED = re.compile(r"\..+\.(npz|safetensors|onnx|json|csv|png|md|html)\.\d+")


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Context: a file to write, which replaces `path` on success.

    It is written next to `path`, synced to disk and renamed, so that `path` is always complete: the
    new file, the old one, or none.

    Raises
    ------
    OSError
        If it cannot be written: the disk is full, or the folder not writable.
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


def existing(path: str | os.PathLike, what: str) -> Path:
    """The path of a file that is to be read; `what` names its kind.

    Raises
    ------
    FileNotFoundError
        If there is none.
    IsADirectoryError
        If it is a folder; the message names the checkpoint in it, if there is one.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / CHECKPOINT
        remedy = f"; the checkpoint in it is {inside}" if inside.is_file() else f", no {what}"
        raise IsADirectoryError(f"{path} is a folder{remedy}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {what} {path}")
    return path


def reason(error: OSError) -> str:
    """The operating system's message, without number and path."""
    return error.strerror or str(error)


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of an npz file, by name; nothing in it is ever executed.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be opened.
    ValueError
        If it is not an npz file, is damaged or contains Python objects; the message does not name
        the file.
    """
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no npz file, or is cut short")
        file.seek(0)
        # NumPy and zipfile raise almost anything on damaged input, and advise to unpickle it.
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
