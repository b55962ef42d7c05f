"""Progress bars on terminals and in notebooks, and permanent lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(
    items: Iterable[T], title: str, unit: str, total: int | None = None, scale: int = 1
) -> Iterable[T]:
    """The items, each `scale` units, with a tqdm bar if installed and in a terminal or notebook."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return items
    return tqdm(items, title, total, unit=unit, unit_scale=scale, leave=False, disable=None)


def report(line: str) -> None:
    """Print a line to stderr, above the bars."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(line, file=sys.stderr, flush=True)
    else:
        tqdm.write(line, file=sys.stderr)
