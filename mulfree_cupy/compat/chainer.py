"""`shift` as in Chainer: with its order of channels, and the opposite sign."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import arrays, geometry
from mulfree_cupy.arrays import Array
from mulfree_cupy.autograd import Tensor, apply
from mulfree_cupy.ops import shift as shifting

__all__ = ["shift", "shifts"]


def shift(
    x: Array | Tensor, ksize: int | tuple[int, int] = 3, dilate: int | tuple[int, int] = 1
) -> Array | Tensor:
    """``chainer.functions.shift``: equal groups of channels move by the taps of a kernel.

    Parameters
    ----------
    x : array or Tensor, shape (N, C, H, W)
        For a Tensor the result is a Tensor, and is differentiable.
    ksize : int or pair of ints
        (kh, kw), both odd; C must be at least ``kh*kw``.
    dilate : int or pair of ints
        (dy, dx), not 0; negative ones move the other way, which is the gradient.

    Returns
    -------
    array or Tensor, shape and dtype of x

    Raises
    ------
    ValueError
        If ksize is even, dilate is 0, or there are fewer channels than shifts.
    TypeError
        If a parameter is not an int or pair of ints.

    Notes
    -----
    ``y[n,c,h,w] = x[n, c, h - s*dy, w - t*dx]``, where `mulfree_cupy.shift` adds its shifts. (s, t)
    are the kernel's taps relative to its centre, in row-major order, with ``C // (kh*kw)``
    consecutive channels each; the centre is swapped with the last tap and takes the remaining
    channels too.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.compat import chainer
    >>> x = np.arange(1, 7).reshape(1, 3, 1, 2)
    >>> chainer.shift(x, ksize=(1, 3))[0, :, 0]
    array([[2, 0],
           [0, 3],
           [5, 6]])
    """
    tensor = isinstance(x, Tensor)
    (data,) = arrays.take("shift", x=x.data if tensor else x)
    geometry.check_rank("shift", "x", data.shape, "N, C, H, W")
    table = _table("shift", "the channels of x", data.shape[1], ksize, dilate)
    return apply("shift", x, shifts=table, stride=1) if tensor else shifting.shift(data, table)


def shifts(
    channels: int, ksize: int | tuple[int, int] = 3, dilate: int | tuple[int, int] = 1
) -> np.ndarray:
    """The table with which `mulfree_cupy.shift` computes the same as `shift` here.

    Parameters
    ----------
    channels : int
    ksize, dilate
        As in `shift`.

    Returns
    -------
    numpy.ndarray, shape (C, 2)

    Raises
    ------
    ValueError, TypeError
        As `shift`.

    Examples
    --------
    >>> from mulfree_cupy.compat import chainer
    >>> chainer.shifts(4, ksize=(1, 3), dilate=2).T
    array([[ 0,  0,  0,  0],
           [ 2, -2,  0,  0]])
    """
    channels = geometry.integer("shifts", "channels", channels, 0)
    return _table("shifts", "channels", channels, ksize, dilate)


def _table(function, name, channels, ksize, dilate):
    kh, kw = geometry.pair(function, "ksize", ksize, 1)
    dy, dx = geometry.pair(function, "dilate", dilate, -(2**31))
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"{function}: ksize must be odd, got {ksize!r}")
    if dy == 0 or dx == 0:
        raise ValueError(f"{function}: dilate must not be 0, got {dilate!r}")
    if channels < kh * kw:
        raise ValueError(
            f"{function}: {name} must be at least {kh}*{kw} = {kh * kw}, one a shift, "
            f"got {channels}"
        )
    taps = np.array([(-s * dy, -t * dx) for s in _about_0(kh) for t in _about_0(kw)])
    centre = len(taps) // 2
    taps[[centre, -1]] = taps[[-1, centre]]
    group = np.minimum(np.arange(channels) // (channels // len(taps)), len(taps) - 1)
    return taps[group]


def _about_0(size: int) -> range:
    return range(-(size // 2), size // 2 + 1)
