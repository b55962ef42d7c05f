"""The softmax cross-entropy of a batch: its mean, how many answers are right, and the gradient."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import arrays, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.launch import cross_entropy as launchers

__all__ = ["cross_entropy"]


@arrays.on_device_of_arguments
def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Mean over the batch of ``-log(softmax(logits)[label])``, and what goes with it.

    Parameters
    ----------
    logits : array, shape (N, classes)
        float32 or float64.
    labels : array of int, shape (N,)
        NumPy labels are checked to be classes, and copied to the device of the logits. Labels on a
        GPU are not looked at: one that is no class makes the loss NaN. int32 ones go there as they
        are.

    Returns
    -------
    loss : array of one number
        Like `right` it stays on the device.
    right : array of one int
        How many rows have their first largest logit at the label.
    gradient : array, shape (N, classes)
        Of the loss, by the logits.

    Raises
    ------
    ValueError
        If shapes do not fit, or a label is no class.
    TypeError
        If a dtype is not served, or labels are on another GPU.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.cross_entropy import cross_entropy
    >>> loss, right, gradient = cross_entropy(np.zeros((2, 4)), np.array([0, 3]))
    >>> round(float(loss), 4), int(right), gradient[0]
    (1.3863, 1, array([-0.375,  0.125,  0.125,  0.125]))
    """
    (logits,) = arrays.take_floats("cross_entropy", logits=logits)
    (labels,) = arrays.take("cross_entropy", labels=labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            "cross_entropy: expected logits (N, classes) and N integer labels, got logits of shape "
            f"{logits.shape} and labels of shape {labels.shape}, dtype {labels.dtype}"
        )
    on_host = arrays.namespace(labels) is np
    if on_host and labels.size and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(
            f"cross_entropy: labels must be in 0..{logits.shape[1] - 1}, "
            f"got {labels.min()}..{labels.max()}"
        )
    if not on_host:
        arrays.take("cross_entropy", logits=logits, labels=labels)
    device = launch.device_for(logits)
    if device is None:
        return _by_expressions(logits, labels)
    xp = device.xp
    labels = xp.ascontiguousarray(xp.asarray(labels.astype(np.int32, copy=False)))
    loss, right = xp.empty((), logits.dtype), xp.empty((), np.int64)
    gradient = xp.empty(logits.shape, logits.dtype)
    launchers.cross_entropy(device, arrays.contiguous(logits), labels, loss, right, gradient)
    return loss, right, gradient


def _by_expressions(logits, labels):
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    loss = (np.log(total[:, 0]) - shifted[rows, labels]).mean()
    gradient = exponentials / total
    gradient[rows, labels] -= 1
    gradient *= logits.dtype.type(1) / len(labels)
    return loss, (logits.argmax(axis=1) == labels).sum(), gradient
