"""Expected results of the timed functions: float64 NumPy from the formulas, for a few images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.layers import Layer


class WrongAnswer(Exception):
    """A result that is about to be timed is wrong."""


def agree(layer: Layer, name: str, answer, expected, tolerance: float) -> None:
    """Raise WrongAnswer where `answer` is further from `expected` than tolerance * its maximum."""
    answer, expected = np.asarray(answer), np.asarray(expected)
    if answer.shape != expected.shape:
        raise WrongAnswer(f"{layer.name}: {name} has shape {answer.shape}, not {expected.shape}")
    error = np.abs(answer.astype(np.float64) - expected).max()
    allowed = tolerance * np.abs(expected).max()
    if not error <= allowed:  # NaN never passes
        raise WrongAnswer(f"{layer.name}: {name} is off by {error:.3g}, {allowed:.3g} is allowed")


def windows(layer: Layer, x: np.ndarray) -> np.ndarray:
    """Every window of x as a row, of x's dtype: (N*OH*OW, C*kh*kw), columns in (c, i, j) order."""
    p, k, s = layer.padding, layer.kernel, layer.stride
    padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))[:, :, ::s, ::s]
    return views.transpose(0, 2, 3, 1, 4, 5).reshape(-1, layer.taps)


def rows(y: np.ndarray) -> np.ndarray:
    """An answer (N, K, OH, OW) as one row a pixel: (N*OH*OW, K)."""
    return y.transpose(0, 2, 3, 1).reshape(-1, y.shape[1])


def adder(layer: Layer, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """-sum abs(x - w) for every window and filter, as rows."""
    cols = windows(layer, x.astype(np.float64))
    filters = w.reshape(len(w), -1).astype(np.float64)
    return np.stack([-np.abs(cols - f).sum(axis=1) for f in filters], axis=1)


def conv(layer: Layer, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """sum x * w for every window and filter, as rows."""
    return windows(layer, x.astype(np.float64)) @ w.reshape(len(w), -1).T.astype(np.float64)


def adder_backward(
    layer: Layer, grad: np.ndarray, x: np.ndarray, w: np.ndarray, each: Callable = np.asarray
) -> tuple[np.ndarray, np.ndarray]:
    """AdderNet's gradients: clip(w - x, -1, 1) * grad folded back, and (x - w) * grad summed.

    With ``each=np.abs`` the same sums over the terms' magnitudes.
    """
    cols = windows(layer, x.astype(np.float64))
    flows = each(rows(grad).astype(np.float64))
    grad_cols, grad_w = np.zeros_like(cols), np.empty((len(w), layer.taps))
    for k, f in enumerate(w.reshape(len(w), -1).astype(np.float64)):
        grad_cols += each(np.clip(f - cols, -1, 1)) * flows[:, k, None]
        grad_w[k] = each(cols - f).T @ flows[:, k]
    return _fold(layer, grad_cols, x.shape), grad_w.reshape(w.shape)


def conv_backward(
    layer: Layer, grad: np.ndarray, x: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """w * grad folded back, and x * grad summed."""
    cols, flows = windows(layer, x.astype(np.float64)), rows(grad).astype(np.float64)
    grad_cols = flows @ w.reshape(len(w), -1).astype(np.float64)
    return _fold(layer, grad_cols, x.shape), (flows.T @ cols).reshape(w.shape)


def _fold(layer: Layer, cols: np.ndarray, shape: tuple) -> np.ndarray:
    p, k, s, out = layer.padding, layer.kernel, layer.stride, layer.out_size
    n, c, h, w = shape
    taps = cols.reshape(n, out, out, c, k, k).transpose(0, 3, 4, 5, 1, 2)
    image = np.zeros((n, c, h + 2 * p, w + 2 * p))
    for i in range(k):
        for j in range(k):
            image[:, :, i : i + s * out : s, j : j + s * out : s] += taps[:, :, i, j]
    return image[:, :, p : p + h, p : p + w]
