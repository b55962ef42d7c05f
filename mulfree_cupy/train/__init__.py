"""Training: recipes, checkpoints, and runs that resume bit-identically."""

from mulfree_cupy.communicator import Communicator
from mulfree_cupy.train.ablation import ablation
from mulfree_cupy.train.calibration import calibrated, gather_statistics
from mulfree_cupy.train.checkpoint import SCHEDULES, Checkpoint
from mulfree_cupy.train.comparison import Run, compare
from mulfree_cupy.train.distributed import MPI, NCCL, connect
from mulfree_cupy.train.evaluation import (
    check_data,
    evaluate,
    load_model,
    load_teacher,
    namespace_of,
)
from mulfree_cupy.train.objective import CrossEntropy, Distillation
from mulfree_cupy.train.profile import StepProfile, profile
from mulfree_cupy.train.pruning import Plan, Step, prune, prune_layers
from mulfree_cupy.train.recipe import AUGMENTATIONS, RECIPES, History, Recipe
from mulfree_cupy.train.trainer import Interrupted, Training

__all__ = [
    "AUGMENTATIONS",
    "MPI",
    "NCCL",
    "RECIPES",
    "SCHEDULES",
    "Checkpoint",
    "Communicator",
    "CrossEntropy",
    "Distillation",
    "History",
    "Interrupted",
    "Plan",
    "Recipe",
    "Run",
    "Step",
    "StepProfile",
    "Training",
    "ablation",
    "calibrated",
    "check_data",
    "compare",
    "connect",
    "evaluate",
    "gather_statistics",
    "load_model",
    "load_teacher",
    "namespace_of",
    "profile",
    "prune",
    "prune_layers",
]
