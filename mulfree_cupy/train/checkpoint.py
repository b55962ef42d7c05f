"""Checkpoints: one npz file with the full state of a run, written atomically."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from mulfree_cupy import files, models, nn
from mulfree_cupy.geometry import number
from mulfree_cupy.inference.file import CHECKPOINT_FORMAT, RECIPE_SINCE_5
from mulfree_cupy.inference.network import Layer, Network
from mulfree_cupy.nn.description import describe
from mulfree_cupy.train.recipe import History, Recipe, integer

# Format 1 stored batches as well as images of an epoch; up to 2 there was no digest of the data; up
# to 3 no calibration and no description of the layers; up to 4 no teachers.
FORMAT = CHECKPOINT_FORMAT
SCHEDULES = ("continue", "restart")


@dataclass(frozen=True)
class Checkpoint:
    """The stored state of a training run, fully validated on construction.

    Parameters
    ----------
    recipe : Recipe
    history : History
        Of the completed epochs.
    epoch : int
        Number of completed epochs.
    sums : dict
        Of the current epoch: ``loss``, ``right`` predictions and images ``seen``.
    shape : dict of str to int
        ``channels``, ``size`` and ``classes``, as in `models.build`.
    classes : tuple of str
        Their names.
    data : str or None
        `data.digest` of the training and the test part; None for old formats and imported networks.
    mean, std : array, shape (channels,)
        Of the training images.
    model : Module
        With trained weights.
    teacher : Module or None
        The recipe's teacher, with trained weights.
    velocities : dict of str to array
        As `optim.SGD.state_dict` returns them.

    Raises
    ------
    TypeError, ValueError
        If something is missing, invalid, out of range or inconsistent.
    FloatingPointError
        If a weight or a velocity is not finite.
    """

    recipe: Recipe
    history: History
    epoch: int
    sums: dict[str, float]
    shape: dict[str, int]
    classes: tuple[str, ...]
    data: str | None
    mean: np.ndarray
    std: np.ndarray
    model: nn.Module
    teacher: nn.Module | None
    velocities: dict[str, np.ndarray]

    def __post_init__(self):
        epochs = self.recipe.epochs
        if integer("checkpoint", "epoch", self.epoch, 0) > epochs:
            raise ValueError(f"epoch must be at most {epochs}, got {self.epoch}")
        for name, values in asdict(self.history).items():
            if not isinstance(values, list) or len(values) != self.epoch:
                raise ValueError(f"history: {name} must be a list of {self.epoch} numbers")
            for value in values:
                number("history", name, value, -sys.float_info.max)
        number("sums", "loss", self.sums["loss"], -sys.float_info.max)
        seen = integer("sums", "seen", self.sums["seen"], 0)
        if integer("sums", "right", self.sums["right"], 0) > seen:
            raise ValueError(f"sums: right must be at most {seen}, got {self.sums['right']}")
        if seen and self.epoch == epochs:
            raise ValueError(f"sums: seen must be 0 after the last epoch, got {seen}")
        if len(self.classes) != self.shape["classes"]:
            raise ValueError(
                f"classes must be {self.shape['classes']} names, got {len(self.classes)}"
            )
        channels = (self.shape["channels"],)
        for name, array in (("mean", self.mean), ("std", self.std)):
            if array.shape != channels or array.dtype != np.float64 or not _finite(array):
                raise ValueError(
                    f"{name} must be finite numbers of float64 and shape {channels}, got "
                    f"{array.dtype} and {array.shape}"
                )
        if (self.teacher is None) == bool(self.recipe.teacher):
            raise ValueError(f"teacher must be the network {self.recipe.teacher!r} of the recipe")
        self._check_velocities()
        taught = self.teacher.state_dict() if self.teacher else {}
        for name, array in (*self.weights.items(), *taught.items(), *self.velocities.items()):
            if not _finite(array):
                raise FloatingPointError(f"{name} holds numbers that are not finite")
            if name.endswith("running_var") and (array < 0).any():
                raise ValueError(f"{name} is a variance below 0")

    def _check_velocities(self) -> None:
        """The velocities of all parameters, or none if there was no step with momentum."""
        if self.velocities or (self.recipe.momentum and (self.epoch or self.sums["seen"])):
            parameters = enumerate(trained(self.recipe, self.model, self.teacher))
            _check_fit("optim", self.velocities, {f"velocity.{i}": p for i, p in parameters})

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The model's parameters and buffers."""
        return self.model.state_dict()

    @property
    def network(self) -> Network:
        """The network for `inference`."""
        size = self.shape["size"]
        return Network(
            _layers(self.recipe.model, **self.shape),
            self.weights,
            (self.shape["channels"], size, size),
            self.classes,
            self.mean,
            self.std,
        )

    def resumed(self, schedule: str | None = None, **changes: Any) -> Recipe:
        """The recipe of a resumed run.

        Parameters
        ----------
        schedule : {"continue", "restart"}, optional
            Learning rate: a cosine over the remaining epochs, from the current rate or from the
            recipe's. By default the schedule is unchanged, or ``"continue"`` if `epochs` changes.
        **changes
            Entries of the recipe, such as ``epochs``.

        Returns
        -------
        Recipe

        Raises
        ------
        ValueError
            If the network would change; if no epoch is left for the changes; or if they affect the
            order or the batches of the current epoch.
        """
        old = self.recipe
        if schedule not in (None, *SCHEDULES):
            raise ValueError(f"schedule must be one of {SCHEDULES}, got {schedule!r}")
        if changes.get("model", old.model) != old.model:
            raise ValueError(f"it is of the network {old.model}, not {changes['model']}")
        if changes.keys() & {"teacher", "teacher_learns"}:
            raise ValueError("its teacher, or the lack of one, cannot change")
        changed = [name for name in changes if changes[name] != getattr(old, name, None)]
        epochs = changes.get("epochs", old.epochs)
        if (changed or schedule) and epochs <= self.epoch:
            raise ValueError(
                f"{self.epoch} epochs are done, so epochs must be more to resume, got {epochs}"
            )
        new = replace(old, **changes)
        for name in ("batch_size", "augment", "seed"):
            was, asked = getattr(old, name), getattr(new, name)
            if self.sums["seen"] and asked != was:
                raise ValueError(
                    f"{name} is {was} in the current epoch, of which {self.sums['seen']} images "
                    f"are done, and cannot become {asked} before the next"
                )
        if schedule is None and new.epochs == old.epochs:
            return new
        if schedule != "restart" and "rate" not in changes:
            new = replace(new, rate=old.rate_in(min(self.epoch, old.epochs - 1)))
        return replace(new, first_epoch=self.epoch)


def trained(recipe: Recipe, model: nn.Module, teacher: nn.Module | None) -> list[nn.Parameter]:
    """The parameters that a run trains, in the order of their velocities."""
    return model.parameters() + (teacher.parameters() if recipe.teacher_learns else [])


def save(path: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to `path` atomically."""
    shape = checkpoint.shape
    facts = {
        "format": FORMAT,
        "recipe": asdict(checkpoint.recipe),
        "history": asdict(checkpoint.history),
        "epoch": checkpoint.epoch,
        "sums": checkpoint.sums,
        "shape": checkpoint.shape,
        "classes": checkpoint.classes,
        "data": checkpoint.data,
        "network": [layer.described() for layer in _layers(checkpoint.recipe.model, **shape)],
    }
    arrays = {"mean": checkpoint.mean, "std": checkpoint.std}
    arrays |= {f"model/{name}": a for name, a in checkpoint.weights.items()}
    arrays |= {f"optim/{name}": a for name, a in checkpoint.velocities.items()}
    if checkpoint.teacher is not None:
        arrays |= {f"teacher/{name}": a for name, a in checkpoint.teacher.state_dict().items()}
    with files.replaced(path) as file:
        np.savez(file, **arrays, facts=np.array(json.dumps(facts)))


def load(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint; nothing in it is ever executed.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If there is no such file, or it is a folder.
    ValueError
        If it is not a checkpoint, damaged, of a later format, or inconsistent.
    """
    path = files.existing(path, "checkpoint")
    try:
        arrays = files.read_npz(path)
        facts = json.loads(str(arrays["facts"]))
        version = integer("checkpoint", "format", facts["format"])
        if version <= FORMAT:
            return _checkpoint(arrays, facts)
    except KeyError as error:
        raise ValueError(f"{path} is no checkpoint of mulfree: it has no {error}") from error
    except (TypeError, ValueError, FloatingPointError, RecursionError) as error:
        raise ValueError(f"{path} is no checkpoint of mulfree, or is damaged: {error}") from error
    raise ValueError(f"{path} has checkpoint format {version}; this version reads up to {FORMAT}")


@functools.cache
def _layers(model: str, channels: int, size: int, classes: int) -> tuple[Layer, ...]:
    """By names only, so that a newly built model's can be used."""
    network = models.build(model, channels=channels, size=size, classes=classes)
    return tuple(describe(network, channels, size))


def _checkpoint(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Checkpoint:
    if facts["format"] == 1:
        facts["recipe"] = {"first_epoch": 0, **facts["recipe"]}
    if facts["format"] < 3:
        facts["data"] = None
    elif facts["format"] == 3 or facts["data"] is not None:
        _check_digest(facts["data"])
    if facts["format"] < 4:
        facts["recipe"] = {**facts["recipe"], "calibration": 0}
        facts["history"] = {**facts["history"]}
        facts["history"]["running_accuracy"] = facts["history"]["test_accuracy"]
    else:  # for `inference`; here the network is built from its name
        described = facts["network"]
        if not isinstance(described, list) or not described:
            raise TypeError(f"network must be a list of layers, got {described!r:.50}")
        for layer in described:
            Layer.from_description(layer)
    if facts["format"] < 5:
        facts["recipe"] = {n: getattr(Recipe, n) for n in RECIPE_SINCE_5} | facts["recipe"]
    recipe = Recipe(**_part(facts, "recipe", [field.name for field in fields(Recipe)]))
    shape = {
        name: integer("shape", name, size)
        for name, size in _part(facts, "shape", ["channels", "size", "classes"]).items()
    }
    classes = facts["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError("classes must be a list of names")
    return Checkpoint(
        recipe=recipe,
        history=History(**_part(facts, "history", [field.name for field in fields(History)])),
        epoch=facts["epoch"],
        sums=_part(facts, "sums", ["loss", "right", "seen"]),
        shape=shape,
        classes=tuple(classes),
        data=facts["data"],
        mean=arrays["mean"],
        std=arrays["std"],
        model=_filled("model", recipe.model, shape, arrays),
        teacher=_filled("teacher", recipe.teacher, shape, arrays) if recipe.teacher else None,
        velocities=_below("optim/", arrays),
    )


def _filled(what: str, model: str, shape: dict[str, int], arrays: dict) -> nn.Module:
    network, state = models.build(model, **shape), _below(f"{what}/", arrays)
    _check_fit(what, state, network.state_dict())
    network.load_state_dict(state)
    return network


def _check_digest(digest: Any) -> None:
    if not re.fullmatch("[0-9a-f]{64}", str(digest)):
        raise ValueError(f"data must be a digest of 64 digits, got {digest!r:.50}")


def _part(facts: dict[str, Any], name: str, wanted: Iterable[str]) -> dict[str, Any]:
    """A dict among the facts with exactly these entries."""
    if not isinstance(facts[name], dict):
        raise TypeError(f"{name} must have entries, got {facts[name]!r:.50}")
    _check_names(name, facts[name], wanted)
    return facts[name]


def _below(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _check_fit(what: str, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the arrays have the same names, shapes and dtypes."""
    _check_names(what, given, wanted)
    for name, array in wanted.items():
        form, found = ((str(a.dtype), tuple(a.shape)) for a in (array, given[name]))
        if form != found:
            raise ValueError(
                f"{what}: {name} must be {form[0]} of shape {form[1]}, got {found[0]} of {found[1]}"
            )


def _check_names(what: str, given: Iterable[str], wanted: Iterable[str]) -> None:
    given, wanted = set(given), set(wanted)
    for fault, names in (("missing", wanted - given), ("unknown", given - wanted)):
        if names:
            raise ValueError(f"{what}: {', '.join(sorted(names)[:3])} {fault}, {len(names)} in all")


def _finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())
