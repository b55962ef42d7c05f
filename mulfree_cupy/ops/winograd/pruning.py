"""Selection of the weights that pruning keeps."""

from __future__ import annotations

from mulfree_cupy import arrays
from mulfree_cupy.arrays import Array

__all__ = ["highest", "prune_spatial", "sum_filters"]


@arrays.on_device_of_arguments
def prune_spatial(w: Array, density: float) -> Array:
    """Magnitude pruning of a layer's spatial weights, as in Han et al.

    Parameters
    ----------
    w : array
        float32 or float64, of any shape.
    density : float, from 0 to 1
        Exactly ``max(1, round(density * size))`` entries are kept; of ties, the first.

    Returns
    -------
    array, shape and dtype of w

    Raises
    ------
    ValueError
        If density is out of range, or a weight is NaN.
    TypeError
        If density is not a number, or w not float32 or float64.

    References
    ----------
    .. [1] S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
       NeurIPS 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.winograd import prune_spatial
    >>> prune_spatial(np.array([3.0, -4.0, 1.0, 0.5]), 0.5)
    array([ 3., -4.,  0.,  0.])
    """
    (w,) = arrays.take_floats("prune_spatial", w=w)
    kept = highest("prune_spatial", abs(w), density)
    return arrays.namespace(w).where(kept, w, w.dtype.type(0))


def highest(function: str, scores: Array, density: float) -> Array:
    """True at the ``max(1, round(density * size))`` highest scores, the first among ties."""
    try:
        density = float(density)
    except (TypeError, ValueError):
        raise TypeError(f"{function}: density must be a number, got {density!r}") from None
    if not 0 <= density <= 1:
        raise ValueError(f"{function}: density must be from 0 to 1, got {density}")
    xp = arrays.namespace(scores)
    flat = scores.ravel()
    if xp.isnan(flat).any():
        raise ValueError(f"{function}: weights of shape {scores.shape} hold NaN")
    kept = xp.zeros(flat.shape, bool)
    kept[xp.argsort(-flat, kind="stable")[: max(1, round(density * flat.size))]] = True
    return kept.reshape(scores.shape)


def sum_filters(array: Array, block: int) -> Array:
    """(t, t, K, C) with `block` successive filters added up, (t, t, ceil(K / block), C)."""
    t, _, filters, channels = array.shape
    fill = (0, 0), (0, 0), (0, -filters % block), (0, 0)
    filled = arrays.namespace(array).pad(array, fill)
    return filled.reshape(t, t, -(-filters // block), block, channels).sum(axis=3)
