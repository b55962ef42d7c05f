"""A small tape for automatic differentiation over NumPy and CuPy arrays alike."""

from mulfree_cupy.autograd.changes import detect_changes
from mulfree_cupy.autograd.check import GradientError, KinkError, check_gradients
from mulfree_cupy.autograd.tensor import Tensor, apply, no_grad

__all__ = [
    "GradientError",
    "KinkError",
    "Tensor",
    "apply",
    "check_gradients",
    "detect_changes",
    "no_grad",
]
