"""Softmax and cross-entropy: mean loss, number of correct predictions and gradient."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import arrays, launch
from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.launch import cross_entropy as launchers

__all__ = ["cross_entropy", "softmax"]


@arrays.on_device_of_arguments
def cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Mean over the batch of ``-log(softmax(logits)[label])``, with its gradient.

    Parameters
    ----------
    logits : array, shape (N, classes)
        float32 or float64.
    labels : array of int, shape (N,), or array, shape (N, classes)
        NumPy labels are checked, and copied to the device of the logits. Labels on a GPU are not
        checked: an invalid one makes the loss NaN; int32 avoids a conversion. Alternatively the
        probability q of each class, of the logits' dtype and device; the loss is then the mean of
        ``-sum_k q[k] log(softmax(logits)[k])``.

    Returns
    -------
    loss : array of one number
        On the device, like `right`.
    right : array of one int
        Number of rows whose (first) largest logit is at the label, or at the (first) largest q.
    gradient : array, shape (N, classes)
        Of the loss, by the logits.

    Raises
    ------
    ValueError
        If shapes do not fit, or a label is not a class.
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
    if logits.ndim == 2 and labels.shape == logits.shape and labels.dtype == logits.dtype:
        arrays.take("cross_entropy", logits=logits, labels=labels)
        return _of_shares(logits, labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            "cross_entropy: expected logits (N, classes) and N integer labels, or probabilities "
            "of the shape and dtype of the logits, got logits of shape "
            f"{logits.shape}, dtype {logits.dtype}, and labels of shape {labels.shape}, "
            f"dtype {labels.dtype}"
        )
    on_host = namespace(labels) is np
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


@arrays.on_device_of_arguments
def softmax(logits: Array) -> Array:
    """``exp(logits)`` divided by its sum over the classes, the last axis.

    Parameters
    ----------
    logits : array, shape (..., classes)
        float32 or float64.

    Returns
    -------
    array, shape and dtype of the logits

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.cross_entropy import softmax
    >>> softmax(np.log([[1.0, 3.0]]))
    array([[0.25, 0.75]])
    """
    (logits,) = arrays.take_floats("softmax", logits=logits)
    exponentials, total, _ = _exponentials(logits)
    return exponentials / total


def _exponentials(logits):
    """``exp(logits - m)``, with m the maximum of a row; its sum over a row; and ``logits - m``."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = namespace(logits).exp(shifted)
    return exponentials, exponentials.sum(axis=-1, keepdims=True), shifted


def _by_expressions(logits, labels):
    rows = np.arange(len(labels))
    exponentials, total, shifted = _exponentials(logits)
    loss = (np.log(total[:, 0]) - shifted[rows, labels]).mean()
    gradient = exponentials / total
    gradient[rows, labels] -= 1
    gradient *= logits.dtype.type(1) / len(labels)
    return loss, (logits.argmax(axis=1) == labels).sum(), gradient


def _of_shares(logits, shares):
    xp = namespace(logits)
    exponentials, total, shifted = _exponentials(logits)
    loss = (shares * (xp.log(total) - shifted)).sum(axis=1).mean()
    right = (logits.argmax(axis=1) == shares.argmax(axis=1)).sum()
    gradient = exponentials * (shares.sum(axis=1, keepdims=True) / total) - shares
    gradient *= logits.dtype.type(1) / len(logits)
    return loss, right, gradient
