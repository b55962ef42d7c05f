"""A kernel's steps as a self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from mulfree_cupy import files
from mulfree_cupy.launch.emulator import Memory, Step, table_of
from mulfree_cupy.launch.source import cuda_directory, read, stand_in
from mulfree_cupy.lessons.trials import attempt, find

MOST_STEPS = 1500
_MACRO = re.compile(r"^\s*#\s*define (\w+) ([^\n]+?)\s*(?://.*)?$", re.MULTILINE)


def page(
    name: str,
    out: str | os.PathLike,
    block: tuple[int, ...] = (0,),
    *,
    file: str | os.PathLike | None = None,
) -> Path:
    """Write a web page that shows one block of a kernel step by step.

    Every step is a memory access of the block's threads, as recorded by the emulator: thread, line
    and element; shared memory by bank, with conflicts.

    Parameters
    ----------
    name : str
        As in `find`.
    out : path
        The file to write. It needs no server and no network.
    block : tuple of 1 to 3 int
        The block to follow.
    file : path, optional
        CUDA C++ that replaces the kernel, as in `check`.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If there is no such kernel, or no such block in its grid.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from mulfree_cupy import lessons
    >>> file = lessons.page("adder 2", pathlib.Path(tempfile.mkdtemp()) / "tile.html")
    >>> "a_tile" in file.read_text()
    True
    """
    kernel = find(name)
    file = None if file is None else Path(file)
    trial = attempt(kernel, file=file, check=True, trace=True, follow=block)
    report = trial.report
    launch = next(ln for ln in report.launches if ln.path == kernel.path)
    steps = report.steps.get(launch.kernel)
    if not steps:
        raise ValueError(
            f"page: block must lie in the grid {launch.grid} of {kernel.operation}/{kernel.name}, "
            f"got {tuple(block)}"
        )
    with stand_in(kernel.path, file) if file else nullcontext():
        text = read(kernel.path, launch.defines)
    described = {
        "name": f"{kernel.operation}/{kernel.name}",
        "idea": kernel.idea,
        "call": trial.case.call,
        "kernel": launch.kernel,
        "grid": launch.grid,
        "block": (*launch.block, 1, 1)[:3],
        "followed": block,
        "left_off": max(0, len(steps) - MOST_STEPS),
        "counts": table_of(launch.kernel, report.counts[launch.kernel]),
        **_described(steps[:MOST_STEPS], text),
    }
    data = json.dumps(described).replace("</", "<\\/")
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    title = html.escape(described["name"])
    with files.replaced(Path(out)) as file:
        file.write(template.replace("__TITLE__", title).replace("__DATA__", data).encode())
    return Path(out)


def _described(steps: list[Step], text: str) -> dict[str, list]:
    """Steps with their memories and source lines, by number; `text` is the kernel's."""
    memories = list(dict.fromkeys(step.memory for step in steps))
    names = list(dict.fromkeys(step.file for step in steps))
    return {
        "memories": [vars(memory) | {"shape": _shape(memory, text)} for memory in memories],
        "files": [{"name": name, "lines": _lines(name)} for name in names],
        "steps": [
            {
                "interval": step.interval,
                "file": names.index(step.file),
                "line": step.line,
                "kind": step.kind,
                "memory": memories.index(step.memory),
                "size": step.size,
                "offsets": base64.b64encode(step.offsets.astype(np.int32).tobytes()).decode(),
            }
            for step in steps
        ],
    }


def _shape(memory: Memory, text: str) -> tuple[int, ...]:
    """As declared: shared memory of several dimensions as rows of words."""
    name = re.escape(memory.name)
    declared = re.search(rf"__shared__[^;]*\b{name}((?:\[[^\]]+\])+)\[[^\]]+\]", text)
    if not memory.shared or not declared:
        return memory.shape
    macros = dict(reversed(_MACRO.findall(text)))  # the first definition, of those under #ifndef
    rows = 1
    for length in re.findall(r"\[([^\]]+)\]", declared[1]):
        rows *= _number(length, macros)
    words = math.prod(memory.shape)
    return (rows, words // rows) if rows and words % rows == 0 else memory.shape


def _number(expression: str, macros: dict[str, str]) -> int:
    """The value of sums and products of numbers and macros; 0 for anything else."""
    for _ in range(8):  # macros of macros
        expression = re.sub(r"[A-Za-z_]\w*", lambda m: f"({macros.get(m[0], m[0])})", expression)
    plain = re.fullmatch(r"[\d\s()+*/-]+", expression)
    return int(eval(expression.replace("/", "//"))) if plain else 0


def _lines(name: str) -> list[str]:
    inside = name.startswith("cuda/")
    file = cuda_directory() / name.removeprefix("cuda/") if inside else Path(name)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
