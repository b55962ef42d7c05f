"""Launcher of cuda/sgd: one step of gradient descent on many tensors, in two launches.

A table of the tensors' addresses is passed by value, so that gradients may move between steps and
nothing is copied to the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mulfree_cupy.arrays import Array
from mulfree_cupy.launch import limits
from mulfree_cupy.launch.arguments import c_type
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.tiling import chunks

TENSORS, THREADS, PART = 120, 256, 1024  # as in cuda/sgd/table.cuh

_TABLE = np.dtype(
    [
        ("gradients", object, TENSORS),
        ("parameters", object, TENSORS),
        ("velocities", object, TENSORS),
        ("sizes", np.int32, TENSORS),
        ("firsts", np.int32, TENSORS),
        ("count", np.int32),
    ],
    align=True,
)


@on_device_of_arrays
def sgd(
    device,
    rate: Array,
    gradients: Sequence[Array],
    parameters: Sequence[Array],
    velocities: Sequence[Array | None],
    *,
    adders: int,
    adaptive: bool,
    factor: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """Update parameters and velocities in place, both of one dtype and in C order.

    Parameters
    ----------
    rate : array of one float64
    velocities : sequence of arrays or None
        None without momentum.
    adders : int
        Number of leading tensors whose gradients are scaled by `factor`.
    adaptive : bool
        Whether they are scaled by ``factor * sqrt(size / sum(gradient**2))`` instead.
    """
    for part in chunks(len(parameters), TENSORS):
        table, blocks = _table(gradients[part], parameters[part], velocities[part])
        scaled = sum(blocks[: max(0, adders - part.start)])
        if not sum(blocks):
            continue
        element = {"T": c_type(parameters[part.start])}
        sums = device.xp.empty(max(1, scaled), np.float64)
        if adaptive and scaled:
            device.launch(
                "sgd/square_sums.cu", "square_sums", element, (scaled,), (THREADS,), (table, sums)
            )
        device.launch(
            "sgd/update.cu",
            "update",
            {**element, "ADAPTIVE": int(adaptive), "NESTEROV": int(nesterov)},
            (sum(blocks),),
            (THREADS,),
            (
                *(table, sums, rate, np.int32(scaled)),
                *map(np.float64, (factor, momentum, weight_decay)),
            ),
        )


def _table(gradients, parameters, velocities) -> tuple[np.void, list[int]]:
    """The kernels' table, and the number of blocks of each tensor."""
    table, count = np.zeros((), _TABLE), len(parameters)
    for name, arrays in (
        ("gradients", gradients),
        ("parameters", parameters),
        ("velocities", velocities),
    ):
        table[name] = None
        for i, array in enumerate(arrays):
            table[name][i] = array
    sizes = [parameter.size for parameter in parameters]
    limits.check_sizes("SGD.step", limits.INT32, {"the elements of a parameter": max(sizes)})
    blocks = [-(-size // PART) for size in sizes]
    limits.check_sizes("SGD.step", limits.INT32, {"the elements of all parameters": sum(blocks)})
    table["sizes"][:count] = sizes
    table["firsts"][:count] = np.cumsum([0, *blocks[:-1]])
    table["count"] = count
    return table[()], blocks
