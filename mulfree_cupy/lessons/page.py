"""A kernel's steps as a self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
import os
from pathlib import Path

import numpy as np

from mulfree_cupy import files
from mulfree_cupy.launch.emulator import Step, table_of
from mulfree_cupy.launch.source import cuda_directory
from mulfree_cupy.lessons.trials import attempt, find

MOST_STEPS = 1500


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
        **_described(steps[:MOST_STEPS]),
    }
    text = json.dumps(described).replace("</", "<\\/")
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    title = html.escape(described["name"])
    with files.replaced(Path(out)) as file:
        file.write(template.replace("__TITLE__", title).replace("__DATA__", text).encode())
    return Path(out)


def _described(steps: list[Step]) -> dict[str, list]:
    """Steps with their memories and source lines, by number."""
    memories = list(dict.fromkeys(step.memory for step in steps))
    names = list(dict.fromkeys(step.file for step in steps))
    return {
        "memories": [vars(memory) for memory in memories],
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


def _lines(name: str) -> list[str]:
    inside = name.startswith("cuda/")
    file = cuda_directory() / name.removeprefix("cuda/") if inside else Path(name)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
