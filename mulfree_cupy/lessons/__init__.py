"""The CUDA kernels one at a time, without a GPU: run, trace and write them.

On the command line: ``mulfree kernels``.
"""

from mulfree_cupy.lessons.exercises import Verdict, check, exercise
from mulfree_cupy.lessons.page import page
from mulfree_cupy.lessons.tracing import Trace, trace
from mulfree_cupy.lessons.trials import Trial, attempt, find

__all__ = ["Trace", "Trial", "Verdict", "attempt", "check", "exercise", "find", "page", "trace"]
