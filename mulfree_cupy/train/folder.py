"""The folder of a run: who has it, and what a killed run left in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import warnings
from collections.abc import Container, Iterator
from pathlib import Path

from mulfree_cupy.files import UNFINISHED, reason

# The file by which each kind of run is known, and what to say of it.
RECORDS = {
    "checkpoint.npz": "a training run; go on with it by --resume {}, or",
    "plan.json": "a pruning run; resume it, or",
    "comparison.json": "a comparison; go on with it by mulfree compare, or",
    "ablation.csv": "an ablation;",
}
_LOCK = ".mulfree.lock"  # removed at the end, so of a name that no other program uses


@contextlib.contextmanager
def taken(out: str | os.PathLike, *, resumed: str | None = None) -> Iterator[Path]:
    """The folder `out` for one run, made if need be and locked against all others.

    The lock is the operating system's and ends with the process, however that ends. What a killed
    run left unfinished is removed; so is the folder, if it is new and nothing was written.

    Parameters
    ----------
    out : path
    resumed : str, optional
        The file of a run in it that is to be gone on with.

    Raises
    ------
    ValueError
        If it holds a run, and not only the one to be gone on with, or another process has it.
    OSError
        If it cannot be made or written to.
    """
    out = Path(out)
    with _held(out, _made(out), {resumed}) as folder:
        yield folder


@contextlib.contextmanager
def next_free(name: str) -> Iterator[Path]:
    """The first of the folders `name`, `name`-2, ... that is not there, as by `taken`."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    with _held(next(out for out in map(Path, names) if _made(out)), True) as folder:
        yield folder


@contextlib.contextmanager
def of_file(path: str | os.PathLike) -> Iterator[Path]:
    """The folder of a file that is to be written, as by `taken`, whatever runs it holds."""
    out = Path(path).parent
    with _held(out, _made(out), RECORDS) as folder:
        yield folder


def _made(out: Path) -> bool:
    """Make a folder; whether it is new. Of several processes only one is told that it is."""
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
        raise ValueError(f"another run is going on in {out}; take another folder")
    try:
        for record, found in RECORDS.items():
            if record not in welcome and (out / record).exists():
                raise ValueError(f"{out} holds {found.format(out / record)} take another folder")
        for file in out.iterdir():
            if UNFINISHED.fullmatch(file.name):
                file.unlink()
        yield out
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            (out / _LOCK).unlink()
        os.close(lock)
        if new:
            with contextlib.suppress(OSError):  # as a rule it is not empty
                out.rmdir()


def _locked(path: Path) -> int | None:
    """A descriptor of the file that holds a lock on it, or None if another one does."""
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
        # Who held the lock before may have removed the file since it was opened here.
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
