"""Neural-network layers. Weights are the attribute ``.weight``."""

from mulfree_cupy.nn.layers import (
    AdderConv,
    AvgPool,
    BatchNorm,
    BinaryConv,
    Conv,
    Dropout,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    ReLU,
    Sequential,
)
from mulfree_cupy.nn.module import Module, Parameter, observed
from mulfree_cupy.nn.shift import Shift, ShiftAdderConv, ShiftConv
from mulfree_cupy.nn.winograd import MaskedConv, WinogradConv

__all__ = [
    "AdderConv",
    "AvgPool",
    "BatchNorm",
    "BinaryConv",
    "Conv",
    "Dropout",
    "Flatten",
    "GlobalAveragePool",
    "Linear",
    "MaskedConv",
    "MaxPool",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Shift",
    "ShiftAdderConv",
    "ShiftConv",
    "WinogradConv",
    "observed",
]
