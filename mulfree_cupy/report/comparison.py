"""Comparison of networks: one table as Markdown, CSV and HTML, and the plots of `figures`."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np

from mulfree_cupy import models
from mulfree_cupy.data import Dataset, sample
from mulfree_cupy.inference import file
from mulfree_cupy.inference.network import Network
from mulfree_cupy.inference.predictor import Predictor
from mulfree_cupy.report import figures, output
from mulfree_cupy.report.counts import SUMS, count
from mulfree_cupy.train import Run

_TITLES = {model: title for title, model in models.RESNET20.items()}
# Networks with two features, for plots of these and of first layers.
PLANE = {"conv-lenet-plane": "CNN", "adder-lenet-plane": "AdderNet"}
_IMAGES = 128  # per timed call
_SECONDS = 0.5  # of timing
_POINTS = 2000  # per feature plot


@dataclass(frozen=True)
class Row:
    """One network: the mean accuracy of its runs and their deviation, and the costs of the first.

    `deviation` is 0 for a single run; `seconds` are per image, from the median call of a batch.
    """

    title: str
    model: str
    epochs: int
    seeds: int
    accuracy: float
    deviation: float
    multiplications: int
    additions: int
    xnors: int
    moves: int
    joules: float
    memory_joules: float
    parameters: int
    weight_bytes: int
    activation_bytes: int
    seconds: float


def measure(runs: Sequence[Run], test: Dataset) -> list[Row]:
    """Count and time the networks of runs; those of one model become one row."""
    rows = []
    for model, each in _by_model(runs).items():
        network = file.read(each[0].path)
        counts = count(network)
        accuracies = _accuracies(each)
        rows.append(
            Row(
                _title(model),
                model,
                len(each[0].history.test_accuracy),
                len(each),
                fmean(accuracies),
                stdev(accuracies) if len(each) > 1 else 0.0,
                *(counts.number(what) for what in ("multiplication", "addition", "xnor")),
                counts.moves,
                counts.energy,
                counts.memory_energy,
                counts.parameters,
                counts.weight_bytes,
                counts.activation_bytes,
                _seconds(Predictor(network), test.images[:_IMAGES]),
            )
        )
    return rows


def _title(model: str) -> str:
    """The title of a network, with its teacher if it has one."""
    name, _, teacher = model.partition("@")
    taught = f", taught by {_TITLES.get(teacher, teacher)}" if teacher else ""
    return _TITLES.get(name, name) + taught


def _accuracies(runs: Sequence[Run]) -> list[float]:
    return [run.history.test_accuracy[-1] for run in runs]


def _by_model(runs: Sequence[Run]) -> dict[str, list[Run]]:
    return {
        model: [run for run in runs if run.model == model]
        for model in dict.fromkeys(run.model for run in runs)
    }


def _seconds(predictor: Predictor, images: np.ndarray) -> float:
    predictor(images)
    taken: list[float] = []
    while sum(taken) < _SECONDS:
        start = time.perf_counter()
        predictor(images)
        taken.append(time.perf_counter() - start)
    return median(taken) / len(images)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    return output.table(_HEAD, list(map(_cells, rows)))


_HEAD = (
    *("network", "test accuracy", "multiplications", "additions", "XNORs", "moves"),
    *("energy µJ", "parameters", "weights KiB", "ms an image"),
)


def _cells(row: Row) -> list[str]:
    named = f"{row.title} ({row.model})" if row.title != row.model else row.title
    deviation = f" ± {100 * row.deviation:.2f}" if row.seeds > 1 else ""
    operations = row.multiplications, row.additions, row.xnors, row.moves
    return [
        named,
        f"{row.accuracy:.2%}{deviation}",
        *(f"{number / 1e6:,.3f} M" for number in operations),
        f"{1e6 * row.joules:.3g}",
        f"{row.parameters:,}",
        f"{row.weight_bytes / 1024:,.1f}",
        f"{1e3 * row.seconds:.3g}",
    ]


def write(
    out: Path, runs: Sequence[Run], plane: Sequence[Run], test: Dataset, notes: Sequence[str]
) -> list[Row]:
    """Write the table and all plots into a folder, and return the rows of the table.

    Parameters
    ----------
    out : path
    runs : sequence of Run
        The networks to compare.
    plane : sequence of Run
        The networks of `PLANE`.
    test : Dataset
    notes : sequence of str
        Printed below the table.
    """
    rows = measure(runs, test)
    title = f"{len(rows)} network{'s' * (len(rows) > 1)} on {test.name}"
    head = [field.name for field in fields(Row)]
    output.write_table(out / "comparison.csv", head, [astuple(row) for row in rows])
    text = "\n\n".join([f"# {title}", table(rows), *notes])
    output.write_text(out / "comparison.md", text + "\n")
    captions = _draw(out, rows, runs, plane, test)
    output.write_text(out / "comparison.html", _page(out, title, rows, notes, captions))
    return rows


def _draw(
    out: Path, rows: Sequence[Row], runs: Sequence[Run], plane: Sequence[Run], test: Dataset
) -> dict[str, str]:
    """Draw all plots; returns their files and captions."""
    by_title = {_title(model): each for model, each in _by_model(runs).items()}
    networks = {title: file.read(each[0].path) for title, each in by_title.items()}
    points = {row.title: (row.joules, _accuracies(by_title[row.title])) for row in rows}
    figures.accuracy_over_energy(
        out / "energy.png", points, f"Accuracy on {test.name} against energy"
    )
    figures.learning_curves(out / "curves.png", by_title, f"Learning on {test.name}")
    weights = {title: _largest_weights(network) for title, network in networks.items()}
    pruned = {title for title, each in by_title.items() if each[0].prunings}
    figures.weight_histograms(out / "weights.png", weights, pruned, "Weights of the largest layer")
    pair = {PLANE[run.model]: file.read(run.path) for run in plane}
    first = {title: network.arrays[_summing(network)[0]] for title, network in pair.items()}
    figures.filters(out / "filters.png", first, "First layer of LeNet-5-BN")
    planes = {PLANE[run.model]: _plane(pair[PLANE[run.model]], run, test) for run in plane}
    figures.features(
        out / "features.png", planes, test.classes, f"Features of test images of {test.name}"
    )
    return {
        "energy.png": "Test accuracy against the energy of the arithmetic for one image, by "
        "the published 45 nm table; bars span the runs.",
        "curves.png": "Learning curves."
        + " The training loss of a taught network is that by its teacher's answers and the labels."
        * any("@" in run.model for run in runs),
        "weights.png": "Weights of each network's largest convolution, those left after pruning, "
        "with a Laplacian and a Gaussian of greatest likelihood.",
        "filters.png": "Filters of the first layer of a LeNet-5-BN, each from its least (black) to "
        "its greatest weight (white).",
        "features.png": "Test images in the plane of the last two features of a LeNet-5-BN that "
        "has two instead of 84: nothing is projected."
        + f" {len(test.classes)} classes: colours repeat."
        * (len(test.classes) > len(figures.CLASSES)),
    }


def _summing(network: Network) -> list[str]:
    """The names of the weights of all convolutions and linear layers, in order."""
    return [layer.arrays["weight"] for layer in network.layers if layer.op in SUMS]


def _largest_weights(network: Network) -> np.ndarray:
    """The weights of the largest layer, without pruned ones."""
    layers = [layer for layer in network.layers if layer.op in SUMS]
    layer = max(layers, key=lambda layer: network.arrays[layer.arrays["weight"]].size)
    weights = network.arrays[layer.arrays["weight"]]
    if "mask" in layer.arrays:
        return weights[network.arrays[layer.arrays["mask"]]]
    return weights.ravel()


def _plane(network: Network, run: Run, test: Dataset) -> figures.Plane:
    last = [layer for layer in network.layers if layer.op in SUMS][-1]
    shown = sample(test, _POINTS)
    answers = network.answers(network.normalised(shown.images))
    features = answers[last.inputs[0]].reshape(len(shown), -1)
    weights = network.arrays[last.arrays["weight"]].reshape(-1, features.shape[1])
    accuracy = run.history.test_accuracy[-1]
    return figures.Plane(features, shown.labels, weights, accuracy, directions=last.op == "conv")


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
thead th { border-bottom: 2px solid #333; }
figure { margin: 2.5rem 0; } img { max-width: 100%; height: auto; }
figcaption, .notes { color: #555; font-size: 13px; }
.wide { overflow-x: auto; }
"""


def _page(
    out: Path, title: str, rows: Sequence[Row], notes: Sequence[str], captions: Mapping[str, str]
) -> str:
    """A self-contained HTML page."""
    title = html.escape(title)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        '<div class="wide"><table><thead><tr>',
        *(f"<th>{html.escape(cell)}</th>" for cell in _HEAD),
        "</tr></thead><tbody>",
    ]
    for row in map(_cells, rows):
        parts.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    parts.append("</tbody></table></div>")
    parts += [f'<p class="notes">{html.escape(note)}</p>' for note in notes]
    for name, caption in captions.items():
        picture = base64.b64encode((out / name).read_bytes()).decode()
        parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{picture}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</html>"]) + "\n"
