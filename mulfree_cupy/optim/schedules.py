"""Learning rate as a function of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def cosine(rate: float, epochs: int) -> Callable[[int], float]:
    """From `rate` down to nearly 0 along half a cosine: ``rate / 2 * (1 + cos(pi * e / epochs))``.

    Examples
    --------
    >>> from mulfree_cupy.optim import cosine
    >>> schedule = cosine(0.1, 4)
    >>> [round(schedule(epoch), 4) for epoch in range(4)]
    [0.1, 0.0854, 0.05, 0.0146]
    """
    return lambda epoch: rate / 2 * (1 + math.cos(math.pi * epoch / epochs))


def steps(rate: float, milestones: Sequence[int], factor: float = 0.1) -> Callable[[int], float]:
    """`rate`, multiplied by `factor` from each of the milestones on.

    Examples
    --------
    >>> from mulfree_cupy.optim import steps
    >>> schedule = steps(1.0, milestones=[2, 3], factor=0.5)
    >>> [schedule(epoch) for epoch in range(4)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return lambda epoch: rate * factor ** sum(epoch >= milestone for milestone in milestones)
