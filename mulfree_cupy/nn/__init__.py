"""Layers on the tape. Every layer with weights has them as ``.weight``."""

from mulfree_cupy.nn.layers import (
    AdderConv,
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

__all__ = [
    "AdderConv",
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
    "observed",
]
