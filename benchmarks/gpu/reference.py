"""Reference results in float64 on the device: the host would take longer than the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import mulfree_cupy as mf
from benchmarks.reference import WrongAnswer

SOURCE = Path(__file__).with_name("reference.cu")
THREADS = 256
C_NAMES = {"float16": "__half", "float32": "float", "float64": "double", "uint8": "unsigned char"}
TERMS = {
    "conv": ("x * w", "w", "x"),
    "adder": ("-fabs(x - w)", "fmin(1.0, fmax(-1.0, w - x))", "x - w"),
}


def window(channels: int, kernel: int, padding: int) -> np.ndarray:
    """The taps (C*k*k, 3) of a square window: channel, rows and columns away."""
    c, i, j = np.indices((channels, kernel, kernel)).reshape(3, -1)
    return np.stack([c, i - padding, j - padding], axis=1).astype(np.int32)


def shifted(shifts: np.ndarray) -> np.ndarray:
    """The taps (C, 3) of a 1x1 window after a shift."""
    return np.column_stack([np.arange(len(shifts)), shifts]).astype(np.int32)


class Sums:
    """One convolution-like operation on a device: ``y = sum over taps of TERM(x, w)``.

    Parameters
    ----------
    device : devices.Cuda or devices.Emulated
    term : {"conv", "adder"}
    taps : array (L, 3)
        See `window` and `shifted`.
    x, w : arrays, shape (N, C, H, W) and any of K*L elements
    stride : int
    out_shape : tuple (N, K, OH, OW)
    """

    def __init__(self, device: Any, term: str, taps: np.ndarray, x, w, stride, out_shape) -> None:
        self.device, self.x, self.w, self.out_shape = device, x, w, out_shape
        names = zip(("TERM", "BY_X", "BY_W"), TERMS[term], strict=True)
        defines = [f"#define {name}(x, w) ({text})" for name, text in names]
        head = ["#include <cuda_fp16.h>", f"#define T {C_NAMES[x.dtype.name]}", *defines]
        self.code = "\n".join([*head, SOURCE.read_text(encoding="utf-8")])
        self.taps = device.xp.asarray(taps)
        sizes = (*x.shape, out_shape[1], len(taps), stride, *out_shape[2:])
        self.sizes = tuple(np.int32(size) for size in sizes)

    def _run(self, entry: str, shape: tuple, blocks: int, *arrays):
        answer = self.device.xp.empty(shape, np.float64)
        kernel = self.device.kernel(self.code, entry)
        kernel((blocks,), (THREADS,), (*arrays, self.taps, answer, *self.sizes))
        return answer

    def forward(self):
        blocks = -(-int(np.prod(self.out_shape)) // THREADS)
        return self._run("forward", self.out_shape, blocks, self.x, self.w)

    def by_x(self, grad):
        blocks = -(-self.x.size // THREADS)
        return self._run("by_x", self.x.shape, blocks, grad, self.x, self.w)

    def by_w(self, grad):
        return self._run("by_w", self.w.shape, self.w.size, grad, self.x, self.w)


def winograd(xp: Any, x, u, m: int, grad=None):
    """Winograd convolution with weights u (t, t, K, C), padding 1, and its gradients by x and u.

    Returns
    -------
    y, or (grad_x, grad_u) if grad is given
    """
    BT, _, AT = (xp.asarray(matrix) for matrix in mf.winograd_matrices(m))
    (n, c, height, width), t, u = x.shape, m + 2, u.astype(np.float64)
    rows, columns = -(-height // m), -(-width // m)
    padded = xp.zeros((n, c, rows * m + 2, columns * m + 2))
    padded[:, :, 1 : height + 1, 1 : width + 1] = x
    place = [(i, j) for i in range(t) for j in range(t)]
    last = (rows - 1) * m + 1, (columns - 1) * m + 1
    seen = xp.stack([padded[:, :, i : i + last[0] : m, j : j + last[1] : m] for i, j in place])
    seen = xp.kron(BT, BT) @ seen.reshape(t * t, -1)  # (t*t, N*C*tiles)
    seen = seen.reshape(t * t, n, c, -1)
    u = u.reshape(t * t, 1, *u.shape[2:])
    output = xp.kron(AT, AT)  # (m*m, t*t)
    if grad is None:
        sums = u @ seen
        y = (output @ sums.reshape(t * t, -1)).reshape(m, m, n, u.shape[2], rows, columns)
        y = y.transpose(2, 3, 4, 0, 5, 1).reshape(n, u.shape[2], rows * m, columns * m)
        return y[:, :, :height, :width]
    whole = xp.zeros((n, u.shape[2], rows * m, columns * m))
    whole[:, :, :height, :width] = grad
    parts = whole.reshape(n, u.shape[2], rows, m, columns, m).transpose(3, 5, 0, 1, 2, 4)
    flow = (output.T @ parts.reshape(m * m, -1)).reshape(t * t, n, u.shape[2], -1)
    grad_u = xp.matmul(flow, seen.swapaxes(2, 3)).sum(axis=1).reshape(t, t, *u.shape[2:])
    back = u.swapaxes(2, 3) @ flow
    back = (xp.kron(BT, BT).T @ back.reshape(t * t, -1)).reshape(t * t, n, c, rows, columns)
    padded[...] = 0
    for (i, j), part in zip(place, back, strict=True):
        padded[:, :, i : i + last[0] : m, j : j + last[1] : m] += part
    return padded[:, :, 1 : height + 1, 1 : width + 1], grad_u


def agree(xp: Any, answers: list, expected: list, tolerance: float) -> None:
    """Raise WrongAnswer if an error exceeds tolerance * the largest expected."""
    for answer, right in zip(answers, expected, strict=True):
        if answer.shape != right.shape:
            raise WrongAnswer(f"shape {answer.shape} instead of {right.shape}")
        if right.dtype.kind != "f":  # integers, and bits that are moved: equal
            off = int((answer != right).sum())
            if off:
                raise WrongAnswer(f"{off} of {answer.size} elements differ")
            continue
        error = float(xp.abs(answer.astype(np.float64) - right).max())
        allowed = tolerance * float(xp.abs(right).max())
        if not error <= allowed:  # NaN never passes
            raise WrongAnswer(f"off by {error:.3g}, {allowed:.3g} is allowed")
