"""Run one kernel on its case: correctness, findings and counts."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mulfree_cupy.launch.emulator import Counts, Finding, Report, emulated_cuda
from mulfree_cupy.launch.source import Kernel, kernels, stand_in
from mulfree_cupy.lessons.cases import Case, case_of
from mulfree_cupy.train.evaluation import namespace_of


@dataclass(frozen=True)
class Trial:
    """A kernel, or its replacement, run on its case.

    Attributes
    ----------
    kernel : Kernel
    case : Case
    report : Report
        The emulator's findings and counts; empty on a GPU.
    outputs : int
        Number of outputs of the call.
    error : float
        The largest, relative to the largest expected number.
    wrong : str
        Description of what is wrong with the result, or "".
    seconds : float
        Of the call, compilation included.
    """

    kernel: Kernel
    case: Case
    report: Report
    outputs: int
    error: float
    wrong: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the result is right and no fault was found."""
        return not self.wrong and not self.faults

    @property
    def faults(self) -> list[Finding]:
        """The findings, without notes."""
        return [finding for finding in self.report.findings if finding.level == "error"]

    @property
    def total(self) -> Counts:
        """The sum of the counts of all launched kernels."""
        total = Counts()
        for counts in self.report.counts.values():
            total += counts
        return total

    @property
    def own(self) -> list[str]:
        """Names of the launched functions."""
        launched = self.report.launches
        return list(dict.fromkeys(ln.kernel for ln in launched if ln.path == self.kernel.path))


def find(name: str) -> Kernel:
    """The kernel of a name.

    Parameters
    ----------
    name : str
        ``"adder/2_shared_tile"``, ``"adder/2"``, ``"adder 2"``, or ``"adder"`` for the first of the
        operation.

    Raises
    ------
    ValueError
        If there is none of this name, or several; the message lists the kernels.

    Examples
    --------
    >>> from mulfree_cupy import lessons
    >>> lessons.find("adder/2").path
    'adder/2_shared_tile.cu'
    """
    operation, _, rung = (
        name.replace(" ", "/").removeprefix("cuda/").removesuffix(".cu").partition("/")
    )
    room = [k for k in kernels() if k.operation == operation]
    if not room:
        known = list(dict.fromkeys(k.operation for k in kernels()))
        close = difflib.get_close_matches(operation, known, 1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no operation called {operation!r}: {meant}there are {', '.join(known)}")
    if not rung:
        return room[0]
    exact = [k for k in room if k.name == rung]
    found = exact or [k for k in room if k.name.startswith(f"{rung}_")]
    if len(found) != 1:
        names = ", ".join(f"{operation}/{k.name}" for k in found or room)
        many = f"{len(found)} kernels are" if found else "no kernel is"
        raise ValueError(f"{many} called {name!r}: there are {names}")
    return found[0]


def attempt(
    kernel: Kernel,
    *,
    file: Path | None = None,
    device: str = "emulator",
    check: bool | str = "collect",
    trace: bool = False,
    follow: Sequence[int] | None = None,
) -> Trial:
    """Run a kernel on its case.

    Parameters
    ----------
    kernel : Kernel
    file : Path, optional
        CUDA C++ that replaces it, with the same functions.
    device : {"emulator", "cuda"}
    check, trace, follow
        As in `emulated_cuda`.

    Raises
    ------
    EmulationFault
        With ``check=True`` at the first fault, and where a kernel cannot continue.
    CompilationError, NotImplementedError
        If the text does not compile, or uses what the emulator lacks.
    ValueError
        If the text's kernel has other parameters, or there is no such device.
    """
    case = case_of(kernel.path)
    block = (
        emulated_cuda(check, trace, follow=follow)
        if device == "emulator"
        else nullcontext(Report())
    )
    start = time.perf_counter()
    replaced = stand_in(kernel.path, file) if file else nullcontext()
    arrays = [*map(_module(device).asarray, case.arrays)]
    try:
        with block as report, replaced, _marked_memory(device):
            answers = _arrays(case.solve(*arrays))
    except TypeError as error:  # of the launch: other parameters
        raise ValueError(f"{file or kernel.path}: {error}") from error
    seconds = time.perf_counter() - start
    expected = _arrays(case.expect(*case.arrays))
    verdicts = [_compare(a, e, case.tolerance) for a, e in zip(answers, expected, strict=True)]
    error, wrong = max(verdicts)
    return Trial(kernel, case, report, sum(a.size for a in answers), error, wrong, seconds)


def _module(device: str) -> Any:
    """Of a device's arrays."""
    if device == "emulator":
        return np
    return namespace_of(device)


@contextmanager
def _marked_memory(device: str) -> Iterator[None]:
    """Within the block, `empty` arrays are filled with a poison value instead of earlier
    results."""
    xp = _module(device)
    plain = xp.empty

    def empty(*args: Any, **options: Any) -> Any:
        array = plain(*args, **options)
        if array.dtype.kind in "fiu":
            array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max)
        return array

    xp.empty = empty
    try:
        yield
    finally:
        xp.empty = plain


def _arrays(answer: Any) -> list[np.ndarray]:
    """One result or several, as NumPy arrays."""
    several = answer if isinstance(answer, tuple) else (answer,)
    return [a.get() if hasattr(a, "get") else np.asarray(a) for a in several]


def _compare(answer: np.ndarray, expected: np.ndarray, tolerance: float) -> tuple[float, str]:
    """The relative error, and the message if it exceeds the tolerance."""
    answer, expected = np.atleast_1d(answer), np.atleast_1d(expected)
    largest = max(1.0, float(np.abs(expected).max()))
    with np.errstate(invalid="ignore"):  # a signalling NaN, where nothing was written
        errors = np.abs(answer.astype(np.float64) - expected) / largest
    errors[np.isnan(errors)] = np.inf
    if errors.max() <= tolerance:
        return float(errors.max()), ""
    bad = np.argwhere(errors > tolerance)
    first = tuple(int(i) for i in bad[0])
    return float(errors.max()), (
        f"{len(bad)} of {answer.size} numbers are wrong; the first, {list(first)}, is "
        f"{answer[first]:g} and the formula gives {expected[first]:g}"
    )
