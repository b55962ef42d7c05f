"""Training: recipes, runs that stop and resume bit for bit, checkpoints."""

from mulfree_cupy.train.ablation import ablation
from mulfree_cupy.train.profile import StepProfile, profile
from mulfree_cupy.train.pruning import Plan, Step, prune, prune_layers
from mulfree_cupy.train.trainer import (
    AUGMENTATIONS,
    History,
    Interrupted,
    Recipe,
    Training,
    check_data,
    evaluate,
    load_model,
    namespace_of,
)

__all__ = [
    "AUGMENTATIONS",
    "History",
    "Interrupted",
    "Plan",
    "Recipe",
    "Step",
    "StepProfile",
    "Training",
    "ablation",
    "check_data",
    "evaluate",
    "load_model",
    "namespace_of",
    "profile",
    "prune",
    "prune_layers",
]
