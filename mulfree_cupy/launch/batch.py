"""Launchers of cuda/batch: gather a batch from a data set of bytes, and accumulate its loss.

``progress`` is float64 of shape (4,), the fields of `Progress`; arrays are C-contiguous.
"""

from __future__ import annotations

from typing import NamedTuple

from mulfree_cupy.launch.arguments import c_type, int32
from mulfree_cupy.launch.device import on_device_of_arrays
from mulfree_cupy.launch.tiling import plane_launch


class Progress(NamedTuple):
    """As declared and documented in cuda/batch/progress.cuh."""

    loss: float = 0.0
    right: float = 0.0
    step: float = 0.0
    fault: float = -1.0


@on_device_of_arrays
def take(device, images, labels, plan, mean, std, progress, y, shown, batch_size: int) -> None:
    """Write the next batch of the plan into y (n, C, H, W) and its labels into shown (n,).

    images are uint8 (N, C, H, W), labels and shown int32, the plan int32 (N, 4) of rows (image,
    dy, dx, flip); mean and std (C,) are of y's dtype. Every batch but the last has `batch_size`.
    """
    count, channels, height, width = y.shape
    device.launch(
        "batch/take.cu",
        "take",
        {"T": c_type(y)},
        *plane_launch(height * width, channels, count),
        (
            images, labels, plan, mean, std, progress, y, shown,
            *int32(count, batch_size, channels, height, width),
        ),
    )  # fmt: skip


@on_device_of_arrays
def tally(device, loss, right, progress, count: int) -> None:
    """Add the mean loss of `count` images, and the number classified correctly, to the progress."""
    device.launch(
        "batch/tally.cu",
        "tally",
        {"T": c_type(loss), "RIGHT": {4: "int", 8: "long long"}[right.itemsize]},
        (1,),
        (1,),
        (loss, right, progress, *int32(count)),
    )
