"""Findings and counts of launches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

import numpy as np


class EmulationFault(RuntimeError):
    """A fault in a kernel.

    Attributes
    ----------
    finding : Finding
        What, where and by which thread.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


@dataclass(frozen=True)
class Finding:
    """One fault of a kernel.

    Attributes
    ----------
    kind : str
        ``out_of_bounds``, ``misaligned``, ``race``, ``uninitialised``, ``divergent_barrier``,
        ``divergent_collective``, ``out_of_row``, ``read_only``, ``trap``, ``crash``,
        ``timeout`` or ``same_value``.
    level : str
        ``"error"``; ``"note"`` for ``same_value``, which no launch raises.
    kernel, file, line
        Where; line 0 if it is not known.
    block, thread : tuple of int
        (x, y, z) of blockIdx and threadIdx.
    array : str or None
        The array or ``__shared__`` variable concerned.
    offset : int or None
        Bytes from its start.
    text : str
        The fault in a sentence.
    calls : tuple of (str, int)
        File and line of the calls that led there, up to the kernel's own.
    count : int
        How often it happened, when findings are collected.
    """

    kind: str
    kernel: str
    file: str
    line: int
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    array: str | None
    offset: int | None
    text: str
    calls: tuple[tuple[str, int], ...] = ()
    count: int = 1

    @property
    def level(self) -> str:
        return "note" if self.kind == "same_value" else "error"

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        called = "".join(f", called from {file}:{line}" for file, line in self.calls)
        note = "note: " if self.level == "note" else ""
        return (
            f"{self.file}:{self.line}: {note}kernel {self.kernel}, block {self.block}, "
            f"thread {self.thread}: {self.text}{called}{times}"
        )


@dataclass
class Counts:
    """Memory accesses of threads, summed over a line or a kernel.

    Loads, stores and atomics count threads; requests count warps. A request to global memory moves
    32-byte sectors; a request to shared memory takes one pass over the 32 banks, and one more for
    every conflict.
    """

    global_loads: int = 0
    global_stores: int = 0
    global_atomics: int = 0
    global_bytes: int = 0
    global_requests: int = 0
    sectors: int = 0
    shared_loads: int = 0
    shared_stores: int = 0
    shared_atomics: int = 0
    shared_bytes: int = 0
    shared_requests: int = 0
    bank_conflicts: int = 0
    barriers: int = 0

    @property
    def sectors_per_request(self) -> float:
        """32-byte sectors a warp's request moves: 4 for 32 neighbouring floats, 32 at worst."""
        return self.sectors / self.global_requests if self.global_requests else 0.0

    def __iadd__(self, other: Counts) -> Counts:
        for f in fields(Counts):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))
        return self


@dataclass
class KernelCounts(Counts):
    """The totals of a kernel over `launches` and `threads`; `lines` has them by (file, line)."""

    launches: int = 0
    threads: int = 0
    lines: dict[tuple[str, int], Counts] = field(default_factory=dict)

    def line(self, number: int) -> Counts:
        """The counts of a line number in any file."""
        total = Counts()
        for (_, line), counts in self.lines.items():
            if line == number:
                total += counts
        return total


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel of the package.

    Attributes
    ----------
    path, kernel : str
        The file below ``cuda/``, and its function.
    defines : dict
        The macros it was compiled with.
    grid, block : tuple of int
    """

    path: str
    kernel: str
    defines: dict[str, object]
    grid: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Of the grid."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Memory:
    """An array argument of a kernel, or shared memory of its block.

    Attributes
    ----------
    name : str
        Of the kernel's parameter or variable.
    shared : bool
    shape : tuple of int
        Of shared memory the number of its words.
    itemsize : int
        Bytes of an element, of shared memory 4.
    start : int
        Bytes from the first bank, or from a 32-byte sector's start.
    """

    name: str
    shared: bool
    shape: tuple[int, ...]
    itemsize: int
    start: int


@dataclass(frozen=True)
class Step:
    """One access of the threads of a block: each thread's n-th at an instruction since a barrier.

    Attributes
    ----------
    interval : int
        Barriers that the block had passed.
    file, line : str, int
    kind : str
        ``"load"``, ``"store"`` or ``"atomic"``.
    memory : Memory
    size : int
        Bytes that a thread accesses.
    offsets : ndarray of int64
        Of each thread, in bytes from the start of the memory; -1 for an inactive thread.
    """

    interval: int
    file: str
    line: int
    kind: str
    memory: Memory
    size: int
    offsets: np.ndarray


@dataclass(repr=False)
class Report:
    """Findings and counts of an `emulated_cuda` block.

    Attributes
    ----------
    findings : list of Finding
        The notes, and with ``check="collect"`` the errors too; of a launch the causes first:
        divergent barriers, races, uninitialised memory, others, each by line.
    counts : dict of str to KernelCounts
        By kernel name, with ``trace=True``.
    launches : list of Launch
        Of the package's own kernels, in order, with ``trace=True``.
    steps : dict of str to list of Step
        Every access of the followed block, in the first launch of each kernel.
    """

    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, KernelCounts] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    steps: dict[str, list[Step]] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [table_of(name, counts) for name, counts in self.counts.items()]
        parts += (
            ["\n".join(["findings:", *(f"  {f}" for f in self.findings)])] if self.findings else []
        )
        return "\n\n".join(parts) or "nothing found, nothing counted"

    __repr__ = __str__


_HEADINGS = (
    "line",
    "load",
    "store",
    "atomic",
    "sectors",
    "/request",
    "load",
    "store",
    "atomic",
    "conflict",
    "barrier",
)


def table_of(name: str, counts: KernelCounts) -> str:
    """The counts of a kernel by line, as text."""
    rows = [_HEADINGS]
    rows += [_row(f"{file}:{line}", c) for (file, line), c in sorted(counts.lines.items())]
    rows.append(_row("total", counts))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    lines = ["  ".join(_aligned(row, widths)) for row in rows]
    left = sum(widths[:1]) + 2
    middle = sum(widths[1:6]) + 8
    over = (
        " " * left
        + "global memory".center(middle)
        + "  "
        + "shared memory".center(sum(widths[6:10]) + 6)
    )
    title = f"{name}: {counts.launches} launches, {counts.threads} threads"
    return "\n".join([title, over.rstrip(), *lines])


def _aligned(row: Iterable[str], widths: list[int]) -> list[str]:
    first, *rest = row
    return [
        first.ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)),
    ]


def _row(label: str, c: Counts) -> tuple[str, ...]:
    numbers = (c.global_loads, c.global_stores, c.global_atomics, c.sectors)
    shared = (c.shared_loads, c.shared_stores, c.shared_atomics, c.bank_conflicts, c.barriers)
    ratio = f"{c.sectors_per_request:.2f}" if c.global_requests else "-"
    return (
        label,
        *(str(n) if n else "-" for n in numbers),
        ratio,
        *(str(n) if n else "-" for n in shared),
    )
