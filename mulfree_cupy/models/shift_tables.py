"""Conversion between tables of shifts, without changing the network's output.

The order of channels between two 1x1 convolutions is arbitrary: permuting the rows of the first and
the columns of the second alike changes nothing. So weights trained with one order of shifts can be
converted to any other order of the same shifts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.ops.shift import check_table


@dataclass(frozen=True)
class Inside:
    """The channels between the two 1x1 convolutions of a block, and the layers indexed by them.

    `expand` computes them, `norm` normalises them, `shift` shifts them by a kernel of
    `kernel_size`, `project` reads them. `project` may be the same layer as `shift`.
    """

    expand: nn.Module
    norm: nn.BatchNorm
    shift: nn.Module
    project: nn.Module
    kernel_size: int


def permutation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The order in which channels with the shifts `source` have the shifts `target`.

    Parameters
    ----------
    source, target : int arrays, shape (C, 2)

    Returns
    -------
    numpy.ndarray, shape (C,)
        ``source[order] == target``; channels with equal shifts keep their order.

    Raises
    ------
    ValueError
        If the tables do not contain the same shifts equally often, or a shape is wrong.
    TypeError
        If a table holds no integers.

    Examples
    --------
    >>> import mulfree_cupy as mf
    >>> from mulfree_cupy.models import permutation
    >>> permutation(mf.modulo_shifts(18), mf.group_shifts(18))
    array([ 0,  9,  1, 10,  2, 11,  3, 12,  4, 13,  5, 14,  6, 15,  7, 16,  8,
           17])
    """
    source = check_table("permutation", "source", source)
    target = check_table("permutation", "target", target)
    in_source, in_target = (Counter(map(tuple, table.tolist())) for table in (source, target))
    for shift in in_source | in_target:
        if in_source[shift] != in_target[shift]:
            raise ValueError(
                "permutation: the tables must hold the same shifts equally often, but source, of "
                f"shape {source.shape}, has {in_source[shift]} channels with the shift {shift}, "
                f"and target, of shape {target.shape}, {in_target[shift]}"
            )
    from_source, from_target = np.lexsort(source.T[::-1]), np.lexsort(target.T[::-1])
    order = np.empty(len(source), np.int64)
    order[from_target] = from_source
    return order


def convert(network: nn.Module, table: Callable[[int, int], np.ndarray]) -> None:
    """Reorder a network's shifts, in place, without changing its output.

    Parameters
    ----------
    network : Module
        With NumPy weights, with blocks of `ShiftResNet` or `ShiftNet`.
    table : callable
        ``table(channels, kernel_size)`` is the new table of a block, such as
        `mulfree_cupy.group_shifts`.

    Raises
    ------
    ValueError
        If a table does not contain the block's shifts equally often, or a shift is not between two
        convolutions of its block, as the first one of an SC2 block. Then nothing is changed.
    TypeError
        If `table` is not a function, e.g. a table itself: blocks have different channels.

    Notes
    -----
    An optimiser's momentum is not reordered: reset it.

    Examples
    --------
    >>> import mulfree_cupy as mf
    >>> from mulfree_cupy import models
    >>> network = models.build("shiftresnet20-e1")  # modulo order
    >>> models.convert(network, mf.group_shifts)
    """
    if not callable(table):
        raise TypeError(
            "convert: table must be a function of a block's channels and kernel size, got "
            f"{type(table).__name__}"
        )
    found = [module.inside() for _, module in network.modules() if hasattr(module, "inside")]
    insides = [inside for inside in found if hasattr(inside.shift, "shifts")]
    free = {id(inside.shift) for inside in insides}
    for name, module in network.modules():
        if hasattr(module, "shifts") and id(module) not in free:
            raise ValueError(
                f"convert: {name} does not lie between two 1x1 convolutions of one block, "
                "so the order of its channels is fixed"
            )
    tables = [table(len(inside.shift.shifts), inside.kernel_size) for inside in insides]
    orders = [permutation(i.shift.shifts, new) for i, new in zip(insides, tables, strict=True)]
    for inside, shifts, order in zip(insides, tables, orders, strict=True):
        norm = inside.norm
        for parameter in (inside.expand.weight, norm.weight, norm.bias):
            parameter.data = parameter.data[order]
        inside.project.weight.data = inside.project.weight.data[:, order]
        norm.running_mean = norm.running_mean[order]
        norm.running_var = norm.running_var[order]
        inside.shift.shifts = np.array(shifts)
