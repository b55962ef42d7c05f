"""Checkpoints: one npz file with all a run needs to go on, which no crash can spoil."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1


def save(path: str | os.PathLike, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write arrays and facts (what JSON can hold) to `path`.

    The file appears under its name only when it is whole: it is written beside it and renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            np.savez(file, **arrays, facts=np.array(json.dumps({"format": FORMAT, **facts})))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts of a checkpoint; nothing in it is ever executed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no checkpoint, cut short, or of a later format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    # NumPy and zipfile raise nearly everything on damaged input.
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entries:
            arrays = {name: entries[name] for name in entries.files}
        facts = json.loads(str(arrays.pop("facts")))
        version = int(facts["format"])
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint of mulfree, or is damaged: {error}") from error
    if version > FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {version}; this version reads up to {FORMAT}"
        )
    return arrays, facts
