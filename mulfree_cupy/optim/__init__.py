"""Optimisers and learning-rate schedules."""

from mulfree_cupy.optim.schedules import cosine, steps
from mulfree_cupy.optim.sgd import SGD

__all__ = ["SGD", "cosine", "steps"]
