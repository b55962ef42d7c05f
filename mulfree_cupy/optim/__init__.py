"""Optimisers and learning-rate schedules."""

from mulfree_cupy.optim.schedules import cosine, steps
from mulfree_cupy.optim.sgd import ADDER_RATES, SGD

__all__ = ["ADDER_RATES", "SGD", "cosine", "steps"]
