"""Record learning curves of finished training runs, and of AdderNet's ablation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks import timing
from mulfree_cupy import data
from mulfree_cupy.report import curves
from mulfree_cupy.train import History, ablation, checkpoint


def of_checkpoints(paths: list[Path], title: str) -> tuple[dict, dict[str, History]]:
    """The record of training runs, each named after network, teacher, and seed if they differ."""
    runs = [checkpoint.load(path) for path in paths]
    several = len({run.recipe.seed for run in runs}) > 1
    histories, recipes = {}, {}
    for run in runs:
        name = run.recipe.model
        if run.recipe.teacher:
            name += f", taught by {run.recipe.teacher}"
            name += " and its features" * (run.recipe.teacher_features > 0)
        if several:
            name += f", seed {run.recipe.seed}"
        histories[name], recipes[name] = run.history, asdict(run.recipe)
    return _record(title, histories, recipes), histories


def of_ablation() -> tuple[dict, dict[str, History]]:
    """Train the ablation's four networks on the digits."""
    histories = ablation(*data.load("digits"))
    title = "AdderNet's ablation: LeNet-5-BN on scikit-learn's digits"
    return _record(title, histories, {}), histories


def _record(title: str, histories: Mapping[str, History], recipes: dict) -> dict:
    runs = {name: asdict(history) for name, history in histories.items()}
    return {
        "benchmark": "curves",
        "title": title,
        "machine": timing.machine("scikit-learn"),
        "recipes": recipes,
        "runs": runs,
    }


def run(stem: str, record: dict, histories: Mapping[str, History], out: Path | None) -> int:
    """Print the table; with `out` write JSON, markdown, CSV and PNG, named after `stem`."""
    record["stem"] = stem
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, f"{stem}-curves")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        curves.write(file.with_suffix(".png"), histories, title=record["title"])
        print(f"Written: {file} and .md, .csv, .png beside it")
    return 0


def document(record: dict) -> str:
    machine, runs = record["machine"], record["runs"]
    head = ["run", "epochs", "test accuracy", "best", "training loss"]
    rows = [_row(name, run) for name, run in runs.items()]
    if all("running_accuracy" in run for run in runs.values()):  # earlier records have none
        head.append("test accuracy, running statistics")
        for row, run in zip(rows, runs.values(), strict=True):
            row.append(f"{run['running_accuracy'][-1]:.2%}" if run["running_accuracy"] else "-")
    return (
        f"{record['title']}. {machine['date']}, {machine['cpu']}, commit {machine['commit']}.\n\n"
        + timing.table(head, rows)
    )


def _row(name: str, run: dict) -> list[str]:
    accuracies = run["test_accuracy"]
    if not accuracies:
        return [name, "diverged", *["-"] * 3]
    return [
        name,
        str(len(accuracies)),
        f"{accuracies[-1]:.2%}",
        f"{max(accuracies):.2%}",
        f"{run['train_loss'][-1]:.4f}",
    ]
