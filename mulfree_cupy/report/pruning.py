"""Savings and accuracy of pruning: a table, and a plot over density."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mulfree_cupy import data
from mulfree_cupy.inference.network import Network
from mulfree_cupy.report import output
from mulfree_cupy.report.convolutions import PRUNABLE, Convolution, reduction
from mulfree_cupy.report.counts import count
from mulfree_cupy.train import Step, load_model

_IMAGES = 100  # on which activations are measured


@dataclass(frozen=True)
class Row:
    """A step of pruning, and the reduction of multiplications.

    `static` and `dynamic` as in `convolutions`, for the pruned layers and for the whole network.
    """

    density: float
    kept: float
    test_accuracy: float
    static: float
    dynamic: float
    network_static: float
    network_dynamic: float


_FIELDS = [field.name for field in fields(Row)]


def measure(steps: Sequence[Step], test: data.Dataset) -> list[Row]:
    """Count the multiplications of each step's network on test images.

    Parameters
    ----------
    steps : sequence of Step
        As `mulfree_cupy.train.prune` returns them.
    test : data.Dataset

    Returns
    -------
    list of Row
    """
    rows = []
    for step in steps:
        _, saved = load_model(step.path)
        layers = measured(saved.network, test)
        pruned = [layer for layer in layers if layer.form in PRUNABLE]
        reductions = [
            reduction(some, kind) for some in (pruned, layers) for kind in ("static", "dynamic")
        ]
        rows.append(Row(step.density, step.kept, step.test_accuracy, *reductions))
    return rows


def measured(network: Network, test: data.Dataset) -> list[Convolution]:
    """The convolutions of a network, with activations measured on images of a data set.

    Raises
    ------
    ValueError
        If none is prunable.

    Examples
    --------
    >>> from mulfree_cupy import data, models
    >>> from mulfree_cupy.nn.description import network_of
    >>> from mulfree_cupy.report.pruning import measured
    >>> model = models.build("winograd-relu-vgg-nagadomi-8", channels=1, size=8)
    >>> layers = measured(network_of(model, 1, 8), data.load("digits")[1])
    >>> layers[1].form, 0.4 < layers[1].activation_density < 0.7
    ('winograd-relu', True)
    """
    layers = count(network, data.sample(test, _IMAGES).images).convolutions
    if not any(layer.form in PRUNABLE for layer in layers):
        raise ValueError("pruning.measured: the network has no prunable layer")
    return layers


def table(rows: Sequence[Row]) -> str:
    """The rows as text.

    Examples
    --------
    >>> from mulfree_cupy.report.pruning import Row, table
    >>> print(table([Row(0.4, 0.41, 0.93, 5.5, 12.9, 4.9, 10.2)]))
                                     pruned layers            network
    density  weights  accuracy    static   dynamic    static   dynamic
        0.4    41.0%    93.00%     5.50x    12.90x     4.90x    10.20x
    """
    lines = [
        f"{'':33}{'pruned layers':13} {'':10} {'network':7}".rstrip(),
        f"{'density':>7} {'weights':>8} {'accuracy':>9}" + f" {'static':>9} {'dynamic':>9}" * 2,
    ]
    for row in rows:
        reductions = row.static, row.dynamic, row.network_static, row.network_dynamic
        lines.append(
            f"{row.density:7.3g} {row.kept:8.1%} {row.test_accuracy:9.2%}"
            + "".join(f" {reduction:8.2f}x" for reduction in reductions)
        )
    return "\n".join(lines)


def write(path: str | Path, runs: Mapping[str, Sequence[Row]], title: str = "") -> None:
    """Draw accuracy and savings over density into `path` (PNG), and write a CSV of the same name.

    Parameters
    ----------
    path : path
        Of the PNG.
    runs : mapping of str to sequence of Row
        By the name of the network.
    title : str
    """
    table = [(name, *asdict(row).values()) for name, rows in runs.items() for row in rows]
    output.write_table(Path(path).with_suffix(".csv"), ["network", *_FIELDS], table)
    output.write_picture(path, _drawn(runs, title))


def read(path: str | Path) -> dict[str, list[Row]]:
    """Read the runs from a CSV of `write`.

    Raises
    ------
    ValueError
        If it is not such a file.
    """
    runs = defaultdict(list)
    with Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["network", *_FIELDS]:
            raise ValueError(f"{path} is not a table of mulfree prune: it has other columns")
        for row in reader:
            runs[row["network"]].append(Row(*(float(row[field]) for field in _FIELDS)))
    return dict(runs)


def _drawn(runs: Mapping[str, Sequence[Row]], title: str):
    figure, (accuracy, saved) = output.pyplot().subplots(1, 2, figsize=(9, 3.6))
    for name, rows in runs.items():
        kept = [100 * row.kept for row in rows]
        (line,) = accuracy.plot(kept, [100 * row.test_accuracy for row in rows], "o-", label=name)
        for field, style in (("network_static", "o-"), ("network_dynamic", "o--")):
            saved.plot(kept, [getattr(row, field) for row in rows], style, color=line.get_color())
    accuracy.set(xlabel="weights left, %", ylabel="test accuracy, %")
    accuracy.legend(fontsize=8)
    saved.set(xlabel="weights left, %", ylabel="times fewer multiplications\n(dashed: dynamic)")
    saved.set_yscale("log", base=2)
    saved.yaxis.set_major_formatter("{x:g}")
    for axes in (accuracy, saved):
        axes.grid(alpha=0.3)
        axes.invert_xaxis()
    output.head(figure, title)
    return figure
