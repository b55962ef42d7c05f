"""A progress bar where somebody watches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(
    items: Iterable[T], title: str, unit: str, total: int | None = None, scale: int = 1
) -> Iterable[T]:
    """The items, each `scale` units, counted by tqdm if it is there and stderr is a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, title, total, unit=unit, unit_scale=scale, leave=False, disable=None)
