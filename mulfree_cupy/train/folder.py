"""Folders of runs: locking, and cleaning up after killed runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import warnings
from collections.abc import Container, Iterator
from pathlib import Path

from mulfree_cupy.files import CHECKPOINT, UNFINISHED, reason

# The file that identifies each kind of run, and its description in errors.
RECORDS = {
    CHECKPOINT: "a training run; resume it with --resume {}, or",
    "plan.json": "a pruning run; resume it, or",
    "comparison.json": "a comparison; resume it with mulfree compare, or",
    "ablation.csv": "an ablation;",
}
_LOCK = ".mulfree.lock"  # removed at the end, so the name must be unique to this program


@contextlib.contextmanager
def taken(out: str | os.PathLike, *, resumed: str | None = None) -> Iterator[Path]:
    """The folder `out` for one run, created if needed and locked against all others.

    The operating system releases the lock when the process ends, however it ends. Unfinished files
    of a killed run are removed; so is the folder, if it is new and empty.

    Parameters
    ----------
    out : path
    resumed : str, optional
        The file of the run in it that is resumed.

    Raises
    ------
    ValueError
        If it holds a run other than the resumed one, or another process has locked it.
    OSError
        If it cannot be created or written to.
    """
    out = Path(out)
    with _held(out, _made(out), {resumed}) as folder:
        yield folder


@contextlib.contextmanager
def next_free(name: str) -> Iterator[Path]:
    """As `taken`, of the first of the folders `name`, `name`-2, ... that does not exist."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    with _held(next(out for out in map(Path, names) if _made(out)), True) as folder:
        yield folder


@contextlib.contextmanager
def of_file(path: str | os.PathLike) -> Iterator[Path]:
    """As `taken`, of the folder of a file to write, whatever runs it holds."""
    out = Path(path).parent
    with _held(out, _made(out), RECORDS) as folder:
        yield folder


def _made(out: Path) -> bool:
    """Create a folder; returns whether it is new, True in only one of several processes."""
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise OSError(f"out: {out} cannot be the folder of a run: {reason(error)}") from error
    return True


@contextlib.contextmanager
def _held(out: Path, new: bool, welcome: Container[str | None] = ()) -> Iterator[Path]:
    try:
        lock = _locked(out / _LOCK)
    except OSError as error:
        raise OSError(f"out: {out} cannot be the folder of a run: {reason(error)}") from error
    if lock is None:
        raise ValueError(f"another run is active in {out}; choose another folder")
    try:
        for record, found in RECORDS.items():
            if record not in welcome and (out / record).exists():
                raise ValueError(f"{out} holds {found.format(out / record)} choose another folder")
        for file in out.iterdir():
            if UNFINISHED.fullmatch(file.name):
                file.unlink()
        yield out
    finally:
        with contextlib.suppress(OSError):  # Windows cannot remove an open file
            (out / _LOCK).unlink()
        os.close(lock)
        if new:
            with contextlib.suppress(OSError):  # usually it is not empty
                out.rmdir()


def _locked(path: Path) -> int | None:
    """A file descriptor that holds the lock, or None if another process does."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError as error:  # some network file systems have no locks
            warnings.warn(
                f"{path.parent} cannot be locked, so two runs in it would not be noticed: "
                f"{reason(error)}",
                RuntimeWarning,
                stacklevel=2,
            )
            return descriptor
        # The previous owner may have removed the file after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
