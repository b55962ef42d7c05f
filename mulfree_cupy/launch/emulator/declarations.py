"""What a kernel's text says about a fault: the array that was indexed, the shape of a variable.

The compiled library has neither; the text is expanded again when a finding asks for it.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

_MARKER = re.compile(r'# (\d+) "((?:[^"\\]|\\.)*)"')
_INDEX = r"\s*\[(?:[^\[\]]|\[[^\[\]]*\])*\]"
_INDEXED = re.compile(rf"[A-Za-z_]\w*(?:(?:->|\.|::)\w+|{_INDEX})*{_INDEX}$")

_STATEMENTS = ("return", "else", "do", "delete", "throw")  # with which none is declared


class Text:
    """The text of a kernel as the compiler saw it.

    Parameters
    ----------
    expand : callable
        Gives the text, with its line markers.
    """

    def __init__(self, expand: Callable[[], str]) -> None:
        self._expand = expand

    @functools.cached_property
    def _text(self) -> str:
        return self._expand()

    def indexed(self, file: str, line: int, column: int) -> str | None:
        """The expression with an index whose ``]`` is in this column: ``"tile[1][n]"``."""
        found = _INDEXED.search(self._line(file, line)[:column])
        return found and found[0]

    def shape(self, variable: str, size: int) -> tuple[int, ...] | None:
        """The extents of an array of this name that takes `size` bytes, if the text says them."""
        declared = re.compile(rf"(\w+|>)\s+{re.escape(variable)}((?:\s*\[[^\[\]]*\])+)\s*[;,={{]")
        shapes = set()
        for found in declared.finditer(self._text):
            extents = tuple(map(_number, re.findall(r"\[([^\[\]]*)\]", found[2])))
            if found[1] not in _STATEMENTS and all(extents) and size % math.prod(extents) == 0:
                shapes.add(extents)
        return shapes.pop() if len(shapes) == 1 else None

    def _line(self, file: str, line: int) -> str:
        at = None
        for row in self._text.splitlines():
            if marker := _MARKER.match(row):
                at = int(marker[1]) if marker[2] == file else None
            elif at is not None:
                if at == line:
                    return row
                at += 1
        return ""


def _number(expression: str) -> int:
    """The value of a sum of products of whole numbers, 0 of anything else."""
    try:
        return sum(math.prod(map(int, term.split("*"))) for term in expression.split("+"))
    except ValueError:
        return 0
