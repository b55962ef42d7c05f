"""Launcher of cuda/cross_entropy: loss, right answers and gradient in two launches."""

from __future__ import annotations

import numpy as np

from mulfree_cupy.launch import limits
from mulfree_cupy.launch.arguments import c_type, int32
from mulfree_cupy.launch.device import on_device_of_arrays

_THREADS = 256
_ROWS = _THREADS // 32  # per block, one per warp


@on_device_of_arrays
def cross_entropy(device, logits, labels, loss, right, gradient) -> None:
    """Write the mean loss, the number of right answers and the loss's gradient.

    ``labels`` is int32, ``right`` int64; all arrays are C-contiguous. There may be no rows.
    """
    rows, classes = logits.shape
    limits.check_sizes("cross_entropy", limits.INT32, {"N": rows, "classes": classes})
    element, sizes = {"T": c_type(logits)}, int32(rows, classes)
    losses, hits = device.xp.empty(rows, logits.dtype), device.xp.empty(rows, np.int32)
    if logits.size:
        device.launch(
            "cross_entropy/rows.cu",
            "cross_entropy_rows",
            element,
            (-(-rows // _ROWS),),
            (_THREADS,),
            (logits, labels, losses, hits, gradient, *sizes),
        )
    device.launch(
        "cross_entropy/mean.cu",
        "cross_entropy_mean",
        element,
        (1,),
        (_THREADS,),
        (losses, hits, loss, right, sizes[0]),
    )
