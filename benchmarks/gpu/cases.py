"""One measurement: the call, its expected results, and its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.gpu import reference


@dataclass
class Case:
    """A call, its expected results, and the other entries of its row.

    `expected` returns arrays on the device, and is called before the first call. `outputs` are
    arrays that the call writes: poisoned first, so that unwritten elements are detected. `main`
    cases are the ones that a quick run times.
    """

    row: dict[str, Any]
    call: Callable[[], Any]
    expected: Callable[[], list]
    tolerance: float = 0
    outputs: list = field(default_factory=list)
    main: bool = True


def key_of(row: dict) -> tuple:
    """What names a row among those of its section."""
    names = "layer", "operation", "kernel", "dtype", "density", "most_blocks"
    return tuple(row.get(name) for name in names)


def measure(device: Any, case: Case, timed: bool) -> dict:
    """The row: checked, timed if it is right and `timed`, or why it was refused or is wrong."""
    try:
        expected = case.expected()
        for array in case.outputs:
            array.fill(np.nan if array.dtype.kind == "f" else 85)
        with device.context():
            answer = case.call()
        answers = list(answer) if isinstance(answer, (tuple, list)) else [answer]
        reference.agree(device.xp, answers, expected, case.tolerance)
        row = case.row | {"checked": True}
        if timed:
            row["seconds"] = device.seconds(case.call)
            row["clock_hz"] = device.clock()
        return row
    except Exception as error:  # one kernel's failure must not cost the others
        # A rung says by ValueError that it does not serve this dtype or table.
        refused = isinstance(error, ValueError) and case.row["kernel"] != "default"
        message = f"{case.row['layer']}, {case.row['operation']} by {case.row['kernel']}: {error}"
        return case.row | {"refused" if refused else "wrong": timing.without_paths(message)}
