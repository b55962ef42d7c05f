"""State dicts, i.e. arrays by name, in files of PyTorch or safetensors."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from mulfree_cupy import files
from mulfree_cupy.foreign import torch_files


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a state dict, by name; nothing in the file is ever executed.

    Parameters
    ----------
    path : path
        Of a file that ``torch.save`` wrote, or safetensors.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no such file, or it is a folder.
    ValueError
        If it has another format, is damaged, or asks for code; the message names the file and the
        reason.
    ImportError
        If it is a safetensors file, and that package is not installed.
    """
    path = files.existing(path, "file")
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{":  # after the length of the header
            return _safetensors(path)
        if head[:1] == b"\x80" or zipfile.is_zipfile(path):
            return torch_files.read(path)
        raise ValueError("it is neither of torch.save nor of safetensors, or is damaged")
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported: {error}") from error


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise ImportError(
            f"{path} is read by the package safetensors; pip install 'mulfree_cupy[import]'"
        ) from None
    try:
        return load_file(path)
    except Exception as error:  # one of Rust's, and others where it holds no NumPy dtype
        raise ValueError(f"safetensors says: {error}") from error
