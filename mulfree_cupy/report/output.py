"""Tables and plots, written atomically."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mulfree_cupy.files import replaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pyplot() -> ModuleType:
    """matplotlib.pyplot with a backend for files only.

    Raises
    ------
    ImportError
        If Matplotlib is not installed; the message names the extra.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "curves and kernels are drawn by Matplotlib; pip install 'mulfree_cupy[train]'"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned for terminals: first column left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) for c, w in zip(cells, widths, strict=True)]
        return "| " + " | ".join([cells[0].ljust(widths[0]), *padded[1:]]) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file; what cannot be encoded becomes ?."""
    with replaced(path) as file:
        file.write(text.encode(errors="replace"))


def write_table(path: str | Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file; numbers with six digits."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(head)
    for row in rows:
        table.writerow(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row)
    with replaced(path) as file:
        file.write(text.getvalue().encode())


def head(figure: Figure, text: str) -> None:
    """Set a figure's title verbatim, without mathematics; what cannot be encoded becomes ?."""
    figure.suptitle(text.encode(errors="replace").decode(), fontsize=10, parse_math=False)


def write_picture(path: str | Path, figure: Figure, dpi: int = 110) -> None:
    """Write a figure as PNG, and close it."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    with replaced(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
    pyplot().close(figure)
