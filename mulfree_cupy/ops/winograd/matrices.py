"""Winograd transforms F(m x m, 3 x 3) from interpolation points, and scalings for training."""

from __future__ import annotations

import functools

import numpy as np
from numpy.polynomial import polynomial

from mulfree_cupy import arrays, geometry
from mulfree_cupy.arrays import Array

__all__ = ["POINTS", "importance", "initial_variance", "precondition", "winograd_matrices"]

# Finite interpolation points by m and name; the last point is always infinity.
POINTS = {
    (2, "lavin"): (0, 1, -1),
    (4, "lavin"): (0, 1, -1, 2, -2),
    (4, "barabasz"): (0, -1, 1, 1 / 2, -2),
}
_TAPS = 3


def winograd_matrices(
    m: int, *, points: str = "lavin"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Transform matrices of the Winograd convolution F(m x m, 3 x 3), with t = m + 2.

    Parameters
    ----------
    m : int
        Side of an output tile, 2 or 4.
    points : str
        ``"lavin"`` [1]_, or for m = 4 also ``"barabasz"`` [2]_, about half the rounding error.

    Returns
    -------
    BT, G, AT : arrays, shapes (t, t), (t, 3), (m, t), float64
        ``AT @ ((G @ g @ G.T) * (BT @ d @ BT.T)) @ AT.T`` is the convolution of a t x t tile d with
        a 3 x 3 kernel g.

    Raises
    ------
    ValueError
        If there are no such m and points.
    TypeError
        If m is not an int.

    Notes
    -----
    With p_j the product of ``(a - a_l)`` over all other points l, at a = a_j:
    ``AT[i,j] = a_j**i``, ``G[j,i] = a_j**i / p_j``, and row j of BT holds the coefficients of the
    polynomial with all other points as roots. In a convolution signs could be moved freely between
    BT and the others, but not in a Winograd-ReLU layer, which clips the output of BT. So they are
    part of the model; Lavin's are used.

    References
    ----------
    .. [1] A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.
    .. [2] B. Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution
       for Deep Neural Networks", arXiv 1803.10986.

    Examples
    --------
    >>> import mulfree_cupy as mf
    >>> BT, G, AT = mf.winograd_matrices(2)
    >>> AT.astype(int)
    array([[ 1,  1,  1,  0],
           [ 0,  1, -1, -1]])
    """
    return tuple(matrix.copy() for matrix in checked("winograd_matrices", m, points))


def checked(function: str, m: int, points: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `winograd_matrices`, for an argument of `function`; read-only."""
    m = geometry.integer(function, "m", m)
    if not isinstance(points, str) or (m, points) not in POINTS:
        listed = ", ".join(f"m={m} with {name!r}" for m, name in POINTS)
        raise ValueError(
            f"{function}: no transform for m={m} with points={points!r}; there are {listed}"
        )
    return matrices(m, points)


@functools.cache
def matrices(m: int, points: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `winograd_matrices`, of valid arguments; read-only."""
    finite = np.array(POINTS[m, points], np.float64)
    t = m + _TAPS - 1
    BT, G, AT = np.zeros((t, t)), np.zeros((t, _TAPS)), np.zeros((m, t))
    for j, point in enumerate(finite):
        others = np.delete(finite, j)
        BT[j, : t - 1] = polynomial.polyfromroots(others)
        G[j] = point ** np.arange(_TAPS) / np.prod(point - others)
        AT[:, j] = point ** np.arange(m)
    BT[-1] = polynomial.polyfromroots(finite)
    G[-1, -1] = AT[-1, -1] = 1
    if m == 2:  # Lavin's signs
        BT[[0, -1]] *= -1
        G[0] *= -1
        AT[:, -1] *= -1
    for matrix in (BT, G, AT):
        matrix += 0.0  # -0 becomes 0
        matrix.flags.writeable = False
    return BT, G, AT


def importance(m: int, *, points: str = "lavin") -> np.ndarray:
    """The influence of a weight at each tile position: the factors of importance pruning.

    Parameters
    ----------
    m, points
        As in `winograd_matrices`.

    Returns
    -------
    array, shape (t, t), float64
        ``I[i,j] = |A_i| |A_j| |B_i| |B_j|``, norms of the columns of AT and of the rows of BT: the
        output's norm for white noise at the input and a weight 1 at this position.

    Raises
    ------
    ValueError, TypeError
        As `winograd_matrices`.

    Examples
    --------
    >>> from mulfree_cupy.ops.winograd import importance
    >>> importance(2).round(2)
    array([[2.  , 2.83, 2.83, 2.  ],
           [2.83, 4.  , 4.  , 2.83],
           [2.83, 4.  , 4.  , 2.83],
           [2.  , 2.83, 2.83, 2.  ]])
    """
    BT, _, AT = checked("importance", m, points)
    norms = np.linalg.norm(AT, axis=0) * np.linalg.norm(BT, axis=1)
    return np.outer(norms, norms)


def initial_variance(
    channels: int, m: int = 2, *, relu: bool = False, points: str = "lavin"
) -> np.ndarray:
    """Initial variance of Winograd weights, by tile position, that preserves a layer's scale.

    Parameters
    ----------
    channels : int
        C, of the layer's input.
    m, points
        As in `winograd_matrices`.
    relu : bool
        For a Winograd-ReLU layer, whose input is normalised and clipped after the transform; else
        for a layer whose input has passed a ReLU, as in He et al.

    Returns
    -------
    array, shape (t, t), float64

    Raises
    ------
    ValueError, TypeError
        As `winograd_matrices`.

    Notes
    -----
    Linear: the variance of ``G g G^T`` for g of variance 2/(9C). ReLU: ``1/(18C)`` everywhere for
    m = 2. For m = 4, inversely proportional to `importance` squared, so that every position
    contributes equally to the output, and the mean output variance is that of the input.

    Examples
    --------
    >>> from mulfree_cupy.ops.winograd import initial_variance
    >>> float(18 * 64 * initial_variance(64, relu=True)[1, 2])
    1.0
    """
    BT, G, AT = checked("initial_variance", m, points)
    channels = geometry.integer("initial_variance", "channels", channels)
    if not relu:
        rows = np.square(G).sum(axis=1)
        return 2 / (9 * channels) * np.outer(rows, rows)
    shape = np.ones_like(BT) if m == 2 else importance(m, points=points) ** -2
    transformed = np.square(BT).sum(axis=1)  # variance after one pass of BT
    clipped = np.outer(transformed, transformed) / 2
    output = np.square(AT) @ (shape * clipped) @ np.square(AT).T
    return shape / (channels * output.mean())


@arrays.on_device_of_arguments
def precondition(grad_u: Array, *, points: str = "lavin") -> Array:
    """The gradient by which a step on U equals a step on the underlying spatial kernel.

    Parameters
    ----------
    grad_u : array, shape (t, t, K, C)
        float32 or float64.
    points : str
        As in `winograd_matrices`.

    Returns
    -------
    array, shape and dtype of grad_u
        ``(G G^T) grad_u (G G^T)``. It is not zero where a mask made grad_u zero: mask it again.

    Raises
    ------
    ValueError
        If the shape is invalid, or there is no such transform.
    TypeError
        If the dtype is not served.

    Notes
    -----
    Plain gradient descent on U diverges at rates that suit spatial weights, since U has directions
    that no spatial kernel reaches, with large gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.ops.winograd import precondition
    >>> precondition(np.ones((4, 4, 1, 1)))[0, :, 0, 0]
    array([4., 4., 4., 4.])
    """
    (grad_u,) = arrays.take_floats("precondition", grad_u=grad_u)
    geometry.check_rank("precondition", "grad_u", grad_u.shape, "t, t, K, C")
    t = grad_u.shape[0]
    geometry.check_shape(
        "precondition", "grad_u", grad_u.shape, (t, t, *grad_u.shape[2:]), "(t, t, K, C)"
    )
    _, G, _ = checked("precondition", t - 2, points)
    both = arrays.namespace(grad_u).asarray(G @ G.T, dtype=grad_u.dtype)
    xp, grad_u = arrays.namespace(grad_u), arrays.contiguous(grad_u)  # einsum sums in memory order
    return xp.einsum("ia,abkc,bj->ijkc", both, grad_u, both)
