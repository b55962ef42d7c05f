"""Several networks trained on the same data with the same recipe; prunable ones are pruned."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mulfree_cupy import data, files, models
from mulfree_cupy.progress import progress as progress_bar
from mulfree_cupy.train import checkpoint, folder
from mulfree_cupy.train.evaluation import load_teacher, namespace_of, shape_of
from mulfree_cupy.train.pruning import RECORD as PLAN
from mulfree_cupy.train.pruning import Plan, check_record, prune
from mulfree_cupy.train.recipe import History, Recipe
from mulfree_cupy.train.trainer import Training

RECORD = "comparison.json"
DENSITIES = 0.6, 0.4
_SHARE = 5  # one in so many epochs follows each pruning


@dataclass(frozen=True)
class Run:
    """A trained network.

    Parameters
    ----------
    model : str
        As passed to `compare`, with its teacher.
    seed : int
    path : Path
        Of its last checkpoint.
    history : History
        Of all its epochs, before and after pruning.
    prunings : tuple of int
        Epochs after which it was pruned.
    """

    model: str
    seed: int
    path: Path
    history: History
    prunings: tuple[int, ...] = ()


def compare(
    names: Sequence[str],
    recipe: Recipe,
    train: data.Dataset,
    test: data.Dataset,
    *,
    out: str | os.PathLike,
    seeds: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> list[Run]:
    """Train networks with one recipe, each in its own folder; resumes a stopped comparison.

    Parameters
    ----------
    names : sequence of str
        Of the networks, each once. A prunable one is trained for fewer epochs, then pruned to each
        of `DENSITIES` and retrained, for the same total number of epochs. In
        ``"adder-resnet20@conv-resnet20"`` the latter, with the same seed, is the teacher; it must
        come earlier in the list.
    recipe : Recipe
        Model and seed are overridden.
    train, test : data.Dataset
    out : path
        A folder, new or with a comparison by the same recipe on the same data, of these networks or
        others. Finished networks are not trained again.
    seeds : int
        Runs of each network, with the seeds 0, 1, ...
    device : {"cpu", "cuda"}
    progress : bool

    Returns
    -------
    list of Run
        All seeds of the first network, then of the next.

    Raises
    ------
    ValueError
        If there is no such network or no such teacher before it, there are fewer than 3 epochs for
        a network that is pruned, or `out` holds another run, or a comparison or a network by
        another recipe or on other data.
    Interrupted
        At Ctrl-C, after the current step and the checkpoint.
    """
    pruned = _checked(names, recipe, train)  # before any is trained
    namespace_of(device)  # raises without a GPU
    runs: list[Run] = []
    with folder.taken(out, resumed=RECORD) as out:
        record, ours = out / RECORD, _described(recipe, train, test)
        if record.exists():
            check_record(record, ours, "comparison of mulfree compare")
        else:
            with files.replaced(record) as file:
                file.write(json.dumps(ours, indent=1).encode())
        each = [(name, seed) for name in names for seed in range(seeds)]
        for name, seed in progress_bar(each, "networks", "network") if progress else each:
            model, _, teacher = name.partition("@")
            changed = replace(recipe, model=model, seed=seed, teacher=teacher.partition("@")[0])
            taught = next((r.path for r in runs if (r.model, r.seed) == (teacher, seed)), None)
            where = out / f"{name}-seed{seed}"
            trained = _pruned if pruned[name] else _trained
            run = trained(changed, train, test, where, device, progress, taught)
            runs.append(replace(run, model=name))
    return runs


def _checked(names: Sequence[str], recipe: Recipe, train: data.Dataset) -> dict[str, bool]:
    """Whether each of the networks is pruned."""
    pruned: dict[str, bool] = {}
    shape = shape_of(train)
    for name in names:
        model, taught, teacher = name.partition("@")
        network = models.build(model, **shape)
        if taught and teacher not in pruned:
            before = f"after {', '.join(pruned)}" if pruned else "first"
            raise ValueError(
                f"compare: the teacher of {name} must come before it, and it is {before}"
            )
        if name in pruned:
            raise ValueError(f"compare: {name} is there twice; seeds= trains it more than once")
        pruned[name] = any(hasattr(module, "prune") for _, module in network.modules())
        if pruned[name] and recipe.epochs <= len(DENSITIES):
            raise ValueError(
                f"compare: epochs must be at least {len(DENSITIES) + 1}, got {recipe.epochs}: "
                f"{name} is pruned {len(DENSITIES)} times and trained before and after each"
            )
    return pruned


def _trained(
    recipe: Recipe,
    train: data.Dataset,
    test: data.Dataset,
    where: Path,
    device: str,
    progress: bool,
    teacher: Path | None,
) -> Run:
    path = where / files.CHECKPOINT
    with folder.taken(where, resumed=files.CHECKPOINT):
        options = {"device": device, "path": path}
        if path.exists():
            run = Training.resume(path, train, test, **options)
            if run.recipe != recipe:
                ours, theirs = asdict(recipe), asdict(run.recipe)
                different = [
                    f"{name} {theirs[name]!r} instead of {ours[name]!r}"
                    for name in ours
                    if theirs[name] != ours[name]
                ]
                raise ValueError(f"{path} is not of this comparison: {', '.join(different)}")
        else:
            network = load_teacher(teacher, train)[1] if teacher else None
            run = Training(recipe, train, test, teacher=network, **options)
        if run.epoch < recipe.epochs:
            run.run(progress=progress)
    return Run(recipe.model, recipe.seed, path, run.history)


def _pruned(
    recipe: Recipe,
    train: data.Dataset,
    test: data.Dataset,
    where: Path,
    device: str,
    progress: bool,
    teacher: Path | None,
) -> Run:
    after = max(1, recipe.epochs // _SHARE)
    before = recipe.epochs - after * len(DENSITIES)
    shorter = replace(recipe, epochs=before)
    dense = _trained(shorter, train, test, where / "dense", device, progress, teacher)
    options = {"out": where, "device": device, "progress": progress}
    options["resume"] = (where / PLAN).exists()
    steps = prune(dense.path, Plan(DENSITIES, epochs=after), train, test, **options)
    histories = [asdict(checkpoint.load(step.path).history) for step in steps]
    whole = {name: [n for history in histories for n in history[name]] for name in histories[0]}
    prunings = tuple(before + i * after for i in range(len(DENSITIES)))
    return Run(recipe.model, recipe.seed, steps[-1].path, History(**whole), prunings)


def _described(recipe: Recipe, train: data.Dataset, test: data.Dataset) -> dict:
    """What all runs have in common, as JSON values."""
    common = asdict(recipe)
    del common["model"], common["seed"]
    return json.loads(json.dumps({**common, "data": data.digest(train, test)}))
