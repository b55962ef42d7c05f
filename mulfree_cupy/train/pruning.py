"""Prune and retrain a trained network in steps of decreasing density."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mulfree_cupy import data, files, nn
from mulfree_cupy.geometry import number
from mulfree_cupy.progress import progress as progress_bar
from mulfree_cupy.train import checkpoint, folder
from mulfree_cupy.train.evaluation import check_data, evaluate, load_model, namespace_of
from mulfree_cupy.train.recipe import integer
from mulfree_cupy.train.trainer import Training

RECORD = "plan.json"


@dataclass(frozen=True)
class Plan:
    """All settings of a pruning run, besides the network and the data.

    Parameters
    ----------
    schedule : sequence of floats
        The densities to prune to, decreasing, each above 0 and at most 1.
    first_layer : float
        The minimum density of the first layer.
    epochs : int
        Of retraining after each pruning.
    rate : float
        The initial learning rate of each retraining.
    score : {"magnitude", "importance"}
    block : int
        Both as in `WinogradWeights.prune`.

    Raises
    ------
    ValueError
        If a number is out of range, the schedule does not decrease or there is no such score.
    """

    schedule: tuple[float, ...]
    first_layer: float = 0.8
    epochs: int = 5
    rate: float = 0.01
    score: str = "magnitude"
    block: int = 1

    def __post_init__(self):
        object.__setattr__(self, "schedule", tuple(self.schedule))
        for density in (*self.schedule, self.first_layer):
            if not 0 < number("Plan", "a density", density) <= 1:
                raise ValueError(f"Plan: densities must be above 0 and at most 1, got {density}")
        falling = all(a > b for a, b in zip(self.schedule, self.schedule[1:], strict=False))
        if not self.schedule or not falling:
            raise ValueError(f"Plan: schedule must be decreasing densities, got {self.schedule}")
        integer("Plan", "epochs", self.epochs)
        number("Plan", "rate", self.rate)
        if self.score not in ("magnitude", "importance"):
            raise ValueError(f"Plan: score must be 'magnitude' or 'importance', got {self.score!r}")
        integer("Plan", "block", self.block)


@dataclass(frozen=True)
class Step:
    """A pruning step: the target density, the fraction of weights left, and the checkpoint."""

    density: float
    kept: float
    test_accuracy: float
    path: Path


def prunable(model: nn.Module) -> list[nn.Module]:
    """The layers with a mask.

    Raises
    ------
    ValueError
        If there are none.
    """
    layers = [module for _, module in model.modules() if hasattr(module, "prune")]
    if not layers:
        raise ValueError(
            "prune: the network has no prunable layers; use one whose name begins with "
            "spatial-, winograd- or winograd-relu-"
        )
    return layers


def prune_layers(
    model: nn.Module,
    density: float,
    *,
    first_layer: float = 0.8,
    score: str = "magnitude",
    block: int = 1,
) -> None:
    """Prune all layers to one density, the first one to at least `first_layer`.

    An ordinary first convolution, as in ResNet-18, is not pruned.
    """
    image_layer = next(
        module for _, module in model.modules() if isinstance(module, (nn.Conv, nn.WinogradConv))
    )
    for layer in prunable(model):
        least = first_layer if layer is image_layer else 0.0
        layer.prune(max(density, least), score, block=block)


def kept(model: nn.Module) -> float:
    """Fraction of the weights left in the prunable layers."""
    masks = [layer.mask for layer in prunable(model)]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)


def prune(
    source: str | os.PathLike,
    plan: Plan,
    train: data.Dataset,
    test: data.Dataset,
    *,
    out: str | os.PathLike,
    device: str = "cpu",
    resume: bool = False,
    progress: bool = True,
) -> list[Step]:
    """Prune and retrain the network of a checkpoint, from density to density.

    Parameters
    ----------
    source : path
        A checkpoint of `Training`.
    plan : Plan
    train, test : data.Dataset
    out : path
        A folder, which gets ``plan.json`` and a checkpoint for each density.
    device : {"cpu", "cuda"}
    resume : bool
        Resume the run in `out`, bit-identical to an uninterrupted run.
    progress : bool

    Returns
    -------
    list of Step
        `source` first.

    Raises
    ------
    ValueError
        If the network is not prunable or for other images, or `out` holds another run, or one
        without `resume`.
    Interrupted
        At Ctrl-C, after the current step and the checkpoint.

    Notes
    -----
    Each density starts from the previous network, with velocities at zero and the recipe of
    `source`, except epochs, rate and seed, which is incremented.
    """
    xp = namespace_of(device)
    model, saved = load_model(source, xp)
    check_data(source, saved, test)
    before = kept(model)
    ours = _described(plan, source)
    with folder.taken(out, resumed=RECORD if resume else None) as out:
        record = out / RECORD
        if record.exists():
            check_record(record, ours, "plan of mulfree prune")
        elif any(out.glob("*-density-*.npz")):
            raise ValueError(
                f"{out} holds a pruning run without its {RECORD}; choose another folder"
            )
        accuracy = evaluate(model, test, saved.mean, saved.std, xp)
        steps = [Step(before, before, accuracy, Path(source))]
        densities = enumerate(plan.schedule, start=1)
        if progress:
            densities = progress_bar(densities, "densities", "density", len(plan.schedule))
        for i, density in densities:
            path = out / f"{i:02}-density-{density:g}.npz"
            if path.exists():
                run = Training.resume(path, train, test, device=device, path=path)
            else:
                changes = {"epochs": plan.epochs, "rate": plan.rate, "first_epoch": 0}
                recipe = replace(saved.recipe, **changes, seed=saved.recipe.seed + i)
                last = checkpoint.load(steps[-1].path)
                options = {"device": device, "path": path, "teacher": last.teacher}
                run = Training(recipe, train, test, **options)
                run.model.load_state_dict(last.weights)
                prune_layers(
                    run.model,
                    density,
                    first_layer=plan.first_layer,
                    score=plan.score,
                    block=plan.block,
                )
            if not record.exists():  # everything has been validated by now
                with files.replaced(record) as file:
                    file.write(json.dumps(ours, indent=1).encode())
            history = run.run(progress=progress)
            steps.append(Step(density, kept(run.model), history.test_accuracy[-1], path))
    return steps


def _described(plan: Plan, source: str | os.PathLike) -> dict:
    """The plan and its network, as JSON values."""
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return json.loads(json.dumps({**asdict(plan), "source": digest}))


def check_record(path: Path, ours: dict, what: str) -> None:
    """Raise if the recorded run differs; `what` names its kind."""
    try:
        theirs = dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a {what}, or is damaged: {error}") from error
    different = [name.replace("_", " ") for name in ours if theirs.get(name) != ours[name]]
    if different:
        raise ValueError(f"{path} belongs to another run: it differs in {', '.join(different)}")
