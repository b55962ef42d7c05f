"""Learning curves as a plot and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mulfree_cupy.report import output
from mulfree_cupy.train import History

_COLUMNS = "train_loss", "train_accuracy", "test_accuracy", "running_accuracy", "seconds"


def write(path: str | Path, histories: Mapping[str, History], title: str = "") -> None:
    """Draw the curves of one or several runs into `path` (PNG), and write a CSV of the same name.

    Parameters
    ----------
    path : path
        Of the PNG.
    histories : mapping of str to History
        By their names in the legend.
    title : str
    """
    rows = [
        (name, epoch, *numbers)
        for name, h in histories.items()
        for epoch, numbers in enumerate(
            zip(*(getattr(h, column) for column in _COLUMNS), strict=True), start=1
        )
    ]
    output.write_table(Path(path).with_suffix(".csv"), ["run", "epoch", *_COLUMNS], rows)
    output.write_picture(path, _drawn(histories, title))


def _drawn(histories: Mapping[str, History], title: str):
    legend_rows = -(-len(histories) // 2)
    size = (9, 3.4 + 0.2 * legend_rows)
    figure, (losses, accuracies) = output.pyplot().subplots(
        1, 2, figsize=size, layout="constrained"
    )
    for name, h in histories.items():
        epochs = range(1, len(h.test_accuracy) + 1)
        look = {"marker": "." if len(epochs) == 1 else None}
        (line,) = losses.plot(epochs, h.train_loss, label=name, **look)
        look["color"] = line.get_color()
        accuracies.plot(epochs, _percent(h.train_accuracy), "--", alpha=0.5, **look)
        accuracies.plot(epochs, _percent(h.test_accuracy), **look)
        if h.running_accuracy != h.test_accuracy:
            accuracies.plot(epochs, _percent(h.running_accuracy), ":", alpha=0.7, **look)
    losses.set(xlabel="epoch", ylabel="training loss", yscale="log")
    accuracies.set(xlabel="epoch", ylabel="accuracy, %")
    styles = {"test": "-", "training": "--"}
    if any(h.running_accuracy != h.test_accuracy for h in histories.values()):
        styles["test, running statistics"] = ":"
    for name, style in styles.items():
        accuracies.plot([], [], style, color="grey", label=name)
    accuracies.legend(loc="lower right", fontsize=8)
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    figure.legend(
        *losses.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8
    )
    output.head(figure, title)
    return figure


def _percent(shares: list[float]) -> list[float]:
    return [100 * share for share in shares]
