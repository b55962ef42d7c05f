"""Exercises: a kernel's file without its bodies, and the check of a solution."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mulfree_cupy.launch.source import Kernel, cuda_directory, kernels
from mulfree_cupy.lessons import counts
from mulfree_cupy.lessons.tracing import rung_before
from mulfree_cupy.lessons.trials import Trial, attempt, find

_TITLE = re.compile(r"^// Exercise (\S+):", re.MULTILINE)
_COMMENT_OR_DIRECTIVE = re.compile(r"(?:[ \t]*//[^\n]*\n|[ \t]*#(?:[^\n]*\\\n)*[^\n]*\n)+|\s+")
_COUNTED = (
    "global loads per output",
    "global bytes per output",
    "shared loads per output",
    "bank conflicts per request",
    "barriers per block",
)
_SPARE = 1.1  # factor by which counts may exceed the rung's own


def exercise(name: str, out: str | os.PathLike | None = None) -> Path:
    """Write a kernel's file with empty bodies, to be filled in and passed to `check`.

    Parameters
    ----------
    name : str
        As in `find`.
    out : path, optional
        The file to write, ``<operation>_<kernel>.cu`` here by default.

    Returns
    -------
    Path

    Raises
    ------
    FileExistsError
        If the file exists: it may hold a solution.
    ValueError
        If there is no such kernel, or its code is in a shared header.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from mulfree_cupy import lessons
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> file = lessons.exercise("adder 2", folder / "mine.cu")
    >>> lessons.check(file).solved
    False
    """
    kernel = find(name)
    text = (cuda_directory() / kernel.path).read_text(encoding="utf-8")
    if "__global__" not in text:
        able = [k for k in kernels() if k.operation == kernel.operation and _stands_alone(k)]
        raise ValueError(
            f"exercise: {_called(kernel)} is in a header that other kernels include; there are "
            f"{', '.join(map(_called, able)) or 'none'}"
        )
    path = Path(out or f"{kernel.operation}_{kernel.name}.cu")
    emptied = _without_bodies(kernel, text, path.name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(emptied)
    except FileExistsError:
        raise FileExistsError(
            f"exercise: {path} is there already, perhaps with an answer"
        ) from None
    return path


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether a file is correct, and as efficient as the kernel.

    Attributes
    ----------
    trial : Trial
        Of the file.
    rungs : dict of str to Trial
        Of the kernel itself, and of the previous rung.
    short : list of str
        Measures in which the file exceeds the kernel by more than a tenth.
    """

    trial: Trial
    rungs: dict[str, Trial]
    short: list[str]

    @property
    def solved(self) -> bool:
        """The result is right, there are no findings, and the counts match the kernel's."""
        return self.trial.passed and not self.short

    def __str__(self) -> str:
        trial = self.trial
        lines = [str(finding) for finding in trial.report.findings]
        if trial.wrong:
            lines.append(f"{trial.case.call}: {trial.wrong}")
        if not trial.passed:
            return "\n".join(lines)
        head = "solved" if self.solved else "right, but it takes more than the kernel: "
        return f"{head}{', '.join(self.short)}\n\n{counts.table({'yours': trial, **self.rungs})}"

    __repr__ = __str__


def check(file: str | os.PathLike, name: str | None = None) -> Verdict:
    """Run a file instead of a kernel; compare its result with the formula and its counts with the
    kernel's.

    Parameters
    ----------
    file : path
        CUDA C++ with the kernel's functions and their parameters, as `exercise` writes them.
    name : str, optional
        The kernel, as in `find`; by default the one that the file names.

    Returns
    -------
    Verdict

    Raises
    ------
    ValueError
        If the kernel is not known, or the file is not UTF-8.
    CompilationError, NotImplementedError
        If it does not compile, or uses what the emulator lacks.
    EmulationFault
        If it cannot run to completion.
    """
    file = Path(file)
    try:
        title = _TITLE.search(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"check: {file} is no CUDA text: {error}") from None
    if name is None and not title:
        raise ValueError(f"check: {file} does not say which exercise it is; name a kernel")
    kernel = find(name or title[1])
    trial = attempt(kernel, file=file, trace=True)
    if not trial.passed:
        return Verdict(trial, {}, [])
    rungs = {k.name: attempt(k, check=False, trace=True) for k in _and_before(kernel)}
    own, short = rungs[kernel.name], []
    for label in _COUNTED:
        yours, theirs = (counts.MEASURES[label](t) or 0 for t in (trial, own))
        if yours > _SPARE * theirs:
            short.append(f"{label} {counts.number(yours)} for {counts.number(theirs)}")
    return Verdict(trial, rungs, short)


def _and_before(kernel: Kernel) -> list[Kernel]:
    before = rung_before(kernel)
    return [kernel, before] if before else [kernel]


def _called(kernel: Kernel) -> str:
    return f"{kernel.operation}/{kernel.name}"


def _stands_alone(kernel: Kernel) -> bool:
    return "__global__" in (cuda_directory() / kernel.path).read_text(encoding="utf-8")


def _without_bodies(kernel: Kernel, text: str, name: str) -> str:
    """The text with empty kernels, without device functions, and with its launch configuration."""
    trial = attempt(kernel, check=False, trace=True)
    launch = next(ln for ln in trial.report.launches if ln.path == kernel.path)
    defines = "".join(
        f", {macro} = {textwrap.shorten(str(value), 40, placeholder=' ...')}"
        for macro, value in launch.defines.items()
    )
    told = (
        f"// Exercise {_called(kernel)}: {kernel.idea}",
        "//",
        "// Write what is missing, and see with `mulfree kernels check " + name + "`.",
        f"// It is run on {trial.case.call},",
        f"// as a grid of {launch.grid} blocks of {launch.block} threads{defines}.",
    )
    if '#include "' in text:
        told += (
            f"// The headers that it includes are in {(cuda_directory() / kernel.path).parent}.",
        )
    opening, *rest = _top_level(text)
    comment = "".join(opening.partition("\n")[1:]).removeprefix("\n")
    parts = ["\n".join(told) + "\n", comment]
    for part in rest:
        head, body, _ = part.partition("{")
        if "__global__" in head and body:
            parts.append(f"{head}{{\n  // ...\n}}")
        elif "__device__" not in part or not body:
            parts.append(part)
        elif parts[-1].startswith("//"):
            parts.pop()  # a function's comment goes with it
    return re.sub(r"\n{3,}", "\n\n", "".join(parts))


def _top_level(text: str) -> Iterator[str]:
    """Comments, directives and declarations in order, each up to the end of its line."""
    at = 0
    while at < len(text):
        plain = _COMMENT_OR_DIRECTIVE.match(text, at)
        end = plain.end() if plain else _end_of_declaration(text, at)
        yield text[at:end]
        at = end


def _end_of_declaration(text: str, at: int) -> int:
    """The position after the ; or the closing } at depth 0."""
    depth = 0
    for place in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        closed = text[place] == "}" and text[place : place + 2] != "};"
        if depth == 0 and (text[place] == ";" or closed):
            return place + 1
    return len(text)
