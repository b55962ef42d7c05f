"""Variations of the training recipe for few epochs: short runs that differ in one setting."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks import timing
from mulfree_cupy import data, files, nn
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.ops.cross_entropy import cross_entropy
from mulfree_cupy.progress import progress as progress_bar
from mulfree_cupy.train import Recipe, Training, gather_statistics, load_teacher

# The settings in which runs differ. Those of `EXTRAS` are not entries of a Recipe; those with a
# teacher need one.
CHANGES: dict[str, dict] = {
    "paper": {"batch_size": 256},
    "batch 128": {"batch_size": 128},
    "batch 64": {},
    "batch 32": {"batch_size": 32},
    "rate 0.05": {"rate": 0.05},
    "rate 0.2": {"rate": 0.2},
    "rate of each step": {"by_step": True},
    "rate of each step, warm-up of an epoch": {"by_step": True, "warm_up": 1.0},
    "Nesterov": {"nesterov": True},
    "Nesterov, eta from 0.4 to 0.05": {"nesterov": True, "eta": 0.4, "last_eta": 0.05},
    "Nesterov, weight decay 1e-4": {"nesterov": True, "weight_decay": 1e-4},
    "weight decay 1e-4": {"weight_decay": 1e-4},
    "eta 0.1": {"eta": 0.1},
    "eta 0.4": {"eta": 0.4},
    "eta from 0.4 to 0.05": {"eta": 0.4, "last_eta": 0.05},
    "labels smoothed by 0.1": {"smoothing": 0.1},
    "weights averaged": {"average": 0.998},
    "running statistics": {"calibration": 0},
    "taught": {"teacher_share": 0.9},
    "taught, share 0.5": {"teacher_share": 0.5},
    "taught, temperature 2": {"temperature": 2.0},
    "taught, temperature 8": {"temperature": 8.0},
    "taught, features too": {"teacher_features": 10.0},
    "taught by features alone": {"teacher_share": 0.0, "teacher_features": 10.0},
}
BASE = {"batch_size": 64}
EXTRAS = {"by_step": False, "warm_up": 0.0, "last_eta": 0.0, "smoothing": 0.0, "average": 0.0}


class Trial(Training):
    """A run with what was tried and not kept.

    `by_step`: the rate of the cosine at each step, instead of at the epoch's beginning, and over
    the first `warm_up` epochs rising from 0; `last_eta`: eta goes there geometrically; `smoothing`:
    the share of a label that all classes have; `average`: the share that an average over the
    weights keeps at each step, which is tested instead of the weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        *pair: data.Dataset,
        teacher: nn.Module | None = None,
        **extras: float,
    ):
        super().__init__(recipe, *pair, teacher=teacher)
        self.extras = {**EXTRAS, **extras}
        self.averages = [p.data.copy() for p in self.model.parameters()]
        if self.extras["smoothing"]:
            self.objective = self._smoothed

    def _train_step(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        recipe, now = self.recipe, self.epoch + self.step / len(self.loader)
        warm_up, last_eta = self.extras["warm_up"], self.extras["last_eta"]
        if self.extras["by_step"]:
            passed = (now - warm_up) / (recipe.epochs - warm_up)
            falling = (1 + math.cos(math.pi * passed)) / 2
            self.optimiser.rate = recipe.rate * (now / warm_up if now < warm_up else falling)
        if last_eta:
            self.optimiser.eta = recipe.eta * (last_eta / recipe.eta) ** (now / recipe.epochs)
        answer = super()._train_step(images, labels)
        if keep := self.extras["average"]:
            for average, parameter in zip(self.averages, self.model.parameters(), strict=True):
                average += (1 - keep) * (parameter.data - average)
        return answer

    def _smoothed(self, images: np.ndarray, labels: np.ndarray):
        logits = self.model(Tensor(images))
        share, classes = self.extras["smoothing"], logits.shape[1]
        shares = np.full(logits.shape, share / classes, logits.dtype)
        shares[np.arange(len(labels)), labels] += 1 - share
        loss, right, gradient = cross_entropy(logits.data, shares)
        return loss, right, lambda share: logits.backward(gradient * logits.dtype.type(share))

    def evaluate(self, dataset: data.Dataset | None = None) -> float:
        if not self.extras["average"]:
            return super().evaluate(dataset)
        weights = [p.data for p in self.model.parameters()]
        statistics = self.model.state_dict()
        for average, parameter in zip(self.averages, self.model.parameters(), strict=True):
            parameter.data = average
        batches = -(-self.recipe.calibration // self.recipe.batch_size)
        gather_statistics(self.model, self.loader.first_images(self.epoch, batches))
        accuracy = super().evaluate(dataset)
        for own, parameter in zip(weights, self.model.parameters(), strict=True):
            parameter.data = own
        self.model.load_state_dict(statistics)
        return accuracy


def run(
    stem: str,
    source: str,
    title: str,
    model: str,
    epochs: int,
    chosen: list[str],
    folder: Path,
    teacher: Path | None,
    out: Path | None,
) -> int:
    """Train what is not yet in `folder`, print the table, and with `out` write it down."""
    pair = data.load(source)
    folder.mkdir(parents=True, exist_ok=True)
    common = asdict(Recipe(model, epochs=epochs, **BASE))
    for name in progress_bar(chosen, "runs", "run"):
        path = folder / f"{name}.json"
        if path.exists():
            continue
        changes, taught, network = CHANGES[name], "", None
        if "taught" in name:
            taught, network = load_teacher(teacher, pair[0])
        extras = {n: value for n, value in changes.items() if n in EXTRAS}
        changed = {n: value for n, value in changes.items() if n not in EXTRAS}
        recipe = Recipe(**{**common, **changed, "teacher": taught})
        history = Trial(recipe, *pair, teacher=network, **extras).run()
        described = {"changes": changes, "recipe": asdict(recipe), "history": asdict(history)}
        with files.replaced(path) as file:
            file.write(json.dumps(described, indent=1).encode())
    runs = {
        name: json.loads((folder / f"{name}.json").read_text("utf-8"))
        for name in CHANGES
        if (folder / f"{name}.json").exists()
    }
    others = [name for name, one in runs.items() if one["recipe"]["model"] != model]
    others += [name for name, one in runs.items() if one["recipe"]["epochs"] != epochs]
    if others:
        raise ValueError(f"{folder} has runs of another network or of other epochs: {others}")
    record = {
        "benchmark": "recipe",
        "stem": stem,
        "title": title,
        "machine": timing.machine(),
        "model": model,
        "epochs": epochs,
        "runs": runs,
    }
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, f"{stem}-recipe")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"Written: {file} and .md beside it")
    return 0


def document(record: dict) -> str:
    machine, runs = record["machine"], record["runs"]
    base = runs.get("batch 64")
    rows = []
    for name, one in runs.items():
        history = one["history"]
        accuracy = history["test_accuracy"][-1]
        gain = f"{100 * (accuracy - base['history']['test_accuracy'][-1]):+.1f}" if base else "-"
        numbers = f"{accuracy:.1%}", gain, f"{history['train_accuracy'][-1]:.1%}"
        rows.append([name, *numbers, f"{history['train_loss'][-1]:.3f}"])
    head = ["run", "test accuracy", "points more", "training accuracy", "training loss"]
    return (
        f"{record['title']}. {record['epochs']} epochs, one run each; each differs from 'batch 64' "
        f"in what it is called after. {machine['date']}, {machine['cpu']}, commit "
        f"{machine['commit']}.\n\n{timing.table(head, rows)}"
    )
