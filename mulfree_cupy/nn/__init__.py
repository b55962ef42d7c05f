"""Layers on the tape. Every layer with weights has them as ``.weight``."""

from mulfree_cupy.nn.layers import (
    AdderConv,
    AvgPool,
    BatchNorm,
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

__all__ = [
    "AdderConv",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "Dropout",
    "Flatten",
    "GlobalAveragePool",
    "Linear",
    "MaxPool",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Shift",
    "ShiftAdderConv",
    "ShiftConv",
    "observed",
]
