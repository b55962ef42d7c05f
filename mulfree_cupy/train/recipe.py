"""The settings of a training run besides the data, and its history."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mulfree_cupy import data, geometry, optim
from mulfree_cupy.geometry import number

AUGMENTATIONS = {
    "none": None,
    "crop": data.RandomCrop(),
    "crop and flip": data.Compose(data.RandomCrop(), data.RandomFlip()),
}

IMAGES = 2560  # for calibration: more does not improve test accuracy

# Presets of `Recipe`: AdderNet's, for hundreds of epochs, and one for few.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"batch_size": 256, "nesterov": False},
    "fast": {"batch_size": 64, "nesterov": True},
}


@dataclass(frozen=True)
class Recipe:
    """How to train: everything that decides the result, besides the data.

    The defaults are the AdderNet reference's for CIFAR, with fewer epochs. `augment` is a key of
    `AUGMENTATIONS`; the rest is as in `mulfree_cupy.optim.SGD`. The rate decays along half a cosine
    from `first_epoch`, which is 0 except in resumed runs, to the end of `epochs`.

    After each epoch BatchNorm's statistics are recomputed by `gather_statistics` from its first
    batches, at least `calibration` images, or all; 0 keeps the running ones.

    With a `teacher`, the name of a network, the training objective is `Distillation`, with T, s and
    f `temperature`, `teacher_share` and `teacher_features`. The teacher is passed to `Training` or,
    if `teacher_learns`, trained simultaneously.

    Raises
    ------
    TypeError
        If a number has the wrong type.
    ValueError
        If a number is out of range or a choice unknown.
    """

    model: str
    epochs: int = 20
    batch_size: int = 256
    rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    adder: str = "adaptive"
    adder_scale: float = 1.0
    eta: float = 0.2
    augment: str = "crop and flip"
    seed: int = 0
    first_epoch: int = 0
    calibration: int = IMAGES
    teacher: str = ""
    teacher_learns: bool = False
    temperature: float = 4.0
    teacher_share: float = 0.9
    teacher_features: float = 0.0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "seed", "first_epoch", "calibration"):
            least = int(name in ("epochs", "batch_size"))
            self._take(name, integer("Recipe", name, getattr(self, name), least))
        for name in (
            *("rate", "momentum", "weight_decay", "adder_scale", "eta"),
            *("temperature", "teacher_share", "teacher_features"),
        ):
            self._take(name, number("Recipe", name, getattr(self, name)))
        for name, choices in (
            ("nesterov", (False, True)),
            ("teacher_learns", (False, True)),
            ("adder", optim.ADDER_RATES),
            ("augment", tuple(AUGMENTATIONS)),
        ):
            chosen = getattr(self, name)
            if type(chosen) is not type(choices[0]) or chosen not in choices:
                raise ValueError(f"Recipe: {name} must be one of {choices}, got {chosen!r}")
        for name in ("model", "teacher"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(
                    f"Recipe: {name} must be the name of a network, got {getattr(self, name)!r}"
                )
        for name in ("momentum", "teacher_share"):
            if getattr(self, name) > 1:
                raise ValueError(f"Recipe: {name} must be at most 1, got {getattr(self, name)}")
        if self.temperature == 0:
            raise ValueError("Recipe: temperature must be above 0, got 0.0")
        if self.teacher_learns and not self.teacher:
            raise ValueError("Recipe: teacher_learns needs the name of a teacher")
        if self.teacher_learns and self.teacher == self.model:
            raise ValueError(
                f"Recipe: a teacher that learns beside {self.model} must be another network; this "
                "one would have the same weights"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("Recipe: nesterov needs momentum > 0")
        if self.first_epoch >= self.epochs:
            raise ValueError(
                f"Recipe: first_epoch must be below epochs, {self.epochs}, got {self.first_epoch}"
            )

    def _take(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    def rate_in(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        schedule = optim.cosine(self.rate, self.epochs - self.first_epoch)
        return schedule(epoch - self.first_epoch)


@dataclass
class History:
    """One number per epoch in each list.

    `test_accuracy` is that of the network as saved, with the statistics recomputed at the end of
    the epoch; `running_accuracy` that of the same weights with the running statistics of training.
    They are equal without calibration, and NaN without test images.
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    running_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def last(self) -> str:
        """The last epoch in words."""
        accuracy = self.test_accuracy[-1]
        tested = "" if math.isnan(accuracy) else f", {accuracy:.2%} in the test"
        return (
            f"loss {self.train_loss[-1]:.3f}, accuracy {self.train_accuracy[-1]:.2%} in training"
            f"{tested}, {self.seconds[-1]:.1f} s"
        )


def integer(owner: str, name: str, value: Any, least: int = 1) -> int:
    """Raise unless it is an int (not a bool) from `least` to below 2**63."""
    if isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be an int, got {value}")
    if geometry.integer(owner, name, value, least) >= 2**63:
        raise ValueError(f"{owner}: {name} must be below 2**63, got {value}")
    return int(value)
