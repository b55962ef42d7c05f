"""A kernel's accesses line by line, and in total next to the previous rung's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mulfree_cupy.launch.emulator import table_of
from mulfree_cupy.launch.source import Kernel, kernels
from mulfree_cupy.lessons import counts
from mulfree_cupy.lessons.trials import Trial, attempt, find


@dataclass(frozen=True, repr=False)
class Trace:
    """Memory accesses of a kernel and of the previous rung; prints as tables.

    Attributes
    ----------
    trial : Trial
    before : Trial or None
        Of the previous rung, if there is one.
    """

    trial: Trial
    before: Trial | None

    def __str__(self) -> str:
        kernel, trials = self.trial.kernel, [t for t in (self.before, self.trial) if t]
        parts = [
            f"{kernel.operation}/{kernel.name}: {kernel.idea}",
            self.trial.case.call,
            counts.table({t.kernel.name: t for t in trials}),
        ]
        names = {t.kernel.name: ", ".join(t.report.counts) for t in trials}
        parts.append("\n".join(f"{name} launches {called}" for name, called in names.items()))
        parts += [table_of(name, self.trial.report.counts[name]) for name in self.trial.own]
        return "\n\n".join(parts)

    __repr__ = __str__


def trace(name: str, *, file: str | os.PathLike | None = None) -> Trace:
    """Run a kernel in the emulator and count its memory accesses.

    Parameters
    ----------
    name : str
        As in `find`.
    file : path, optional
        CUDA C++ that replaces the kernel, as in `check`.

    Returns
    -------
    Trace
        Of this kernel and the rung before it; printed, a table.

    Raises
    ------
    ValueError
        If there is no such kernel.

    Examples
    --------
    >>> from mulfree_cupy import lessons
    >>> answer = lessons.trace("adder/2")
    >>> answer.before.total.global_loads > 9 * answer.trial.total.global_loads
    True
    """
    kernel = find(name)
    before = rung_before(kernel)
    return Trace(
        attempt(kernel, file=file and Path(file), check=True, trace=True),
        attempt(before, check=True, trace=True) if before else None,
    )


def rung_before(kernel: Kernel) -> Kernel | None:
    """The previous rung of the operation, if the kernel is a rung."""
    number = kernel.rung
    if not number:
        return None
    lower = [k for k in kernels() if k.operation == kernel.operation and 0 < k.rung < number]
    return max(lower, key=lambda k: k.rung, default=None)
