"""Winograd convolution F(m x m, 3 x 3) of dense or sparse weights, and the Winograd-ReLU layer."""

from mulfree_cupy.ops.winograd.convolution import winograd_conv, winograd_conv_backward
from mulfree_cupy.ops.winograd.matrices import importance, initial_variance, winograd_matrices
from mulfree_cupy.ops.winograd.weights import WinogradWeights, precondition, prune_spatial

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
