"""Operations by data type, and their energy.

References
----------
.. [1] M. Horowitz, "Computing's Energy Problem (and what we can do about it)", ISSCC 2014, figure
   1.1.9: 45 nm, 0.9 V.
"""

from __future__ import annotations

import math
from collections import Counter

# Number by (operation, type): "addition", "multiplication" or "xnor" of "float32", ...
Operations = Counter[tuple[str, str]]

# The table has neither XNOR nor popcount. Counting n bits takes fewer than n full adders, an 8-bit
# addition eight of them, and an XNOR is part of one. So each is assumed to take an eighth of an
# 8-bit addition.
_FULL_ADDER = 0.03 / 8

PICOJOULES: dict[tuple[str, str], float] = {
    ("addition", "int8"): 0.03,
    ("addition", "int32"): 0.1,
    ("addition", "float16"): 0.4,
    ("addition", "float32"): 0.9,
    ("multiplication", "int8"): 0.2,
    ("multiplication", "int32"): 3.1,
    ("multiplication", "float16"): 1.1,
    ("multiplication", "float32"): 3.7,
    ("addition", "bit"): _FULL_ADDER,
    ("xnor", "bit"): _FULL_ADDER,
}
# Per 8 bytes read or written.
SRAM_PICOJOULES = 10.0  # a cache of 8 KiB
DRAM_PICOJOULES = 1300.0, 2600.0


def arithmetic(operations: Operations) -> float:
    """Energy of operations in joules; NaN if the table has no such type.

    Examples
    --------
    >>> from collections import Counter
    >>> from mulfree_cupy.report import energy
    >>> energy.arithmetic(Counter({("addition", "float32"): 2e6}))
    1.8e-06
    """
    picojoules = sum(
        count * PICOJOULES.get(operation, math.nan) for operation, count in operations.items()
    )
    return picojoules * 1e-12


def memory(nbytes: float, picojoules: float = SRAM_PICOJOULES) -> float:
    """Energy in joules of reading or writing bytes, eight at a time."""
    return nbytes / 8 * picojoules * 1e-12
