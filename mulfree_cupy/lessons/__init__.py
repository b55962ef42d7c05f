"""The CUDA kernels one at a time, with no GPU: run them, watch them, write them oneself.

``mulfree kernels`` is the same on the command line.
"""

from mulfree_cupy.lessons.exercises import Verdict, check, exercise
from mulfree_cupy.lessons.page import page
from mulfree_cupy.lessons.tracing import Trace, trace
from mulfree_cupy.lessons.trials import Trial, attempt, find

__all__ = ["Trace", "Trial", "Verdict", "attempt", "check", "exercise", "find", "page", "trace"]
