"""Learning curves as a picture and as a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from mulfree_cupy.train import History


def write(path: str | Path, histories: Mapping[str, History], title: str = "") -> None:
    """Draw the curves of one or several runs into `path` (PNG), with a CSV of that name beside it.

    Parameters
    ----------
    path : path
        Of the picture.
    histories : mapping of str to History
        By the name that the legend shows.
    title : str
    """
    path = Path(path)
    with path.with_suffix(".csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["run", "epoch", "train_loss", "train_accuracy", "test_accuracy", "seconds"])
        for name, h in histories.items():
            rows = zip(h.train_loss, h.train_accuracy, h.test_accuracy, h.seconds, strict=True)
            for epoch, numbers in enumerate(rows, start=1):
                table.writerow([name, epoch, *(f"{number:.6g}" for number in numbers)])
    _draw(path, histories, title)


def _draw(path: Path, histories: Mapping[str, History], title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(9, 3.6))
    for name, h in histories.items():
        epochs = range(1, len(h.test_accuracy) + 1)
        (line,) = losses.plot(epochs, h.train_loss, label=name)
        color = line.get_color()
        accuracies.plot(epochs, [100 * a for a in h.train_accuracy], "--", color=color, alpha=0.5)
        accuracies.plot(epochs, [100 * a for a in h.test_accuracy], color=color, label=name)
    losses.set(xlabel="epoch", ylabel="training loss", yscale="log")
    accuracies.set(xlabel="epoch", ylabel="accuracy, % (dashed: training)")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
