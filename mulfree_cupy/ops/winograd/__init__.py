"""Winograd convolution F(m x m, 3 x 3) of dense or sparse weights, and the Winograd-ReLU layer."""

from mulfree_cupy.ops.winograd.convolution import winograd_conv, winograd_conv_backward
from mulfree_cupy.ops.winograd.matrices import (
    importance,
    initial_variance,
    precondition,
    winograd_matrices,
)
from mulfree_cupy.ops.winograd.pruning import prune_spatial
from mulfree_cupy.ops.winograd.weights import WinogradWeights

__all__ = [
    "WinogradWeights",
    "importance",
    "initial_variance",
    "precondition",
    "prune_spatial",
    "winograd_conv",
    "winograd_conv_backward",
    "winograd_matrices",
]
