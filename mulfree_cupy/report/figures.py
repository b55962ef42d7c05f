"""Plots that compare networks: cost, learning curves, weights, features.

Colours suit the colour-blind (Okabe and Ito's, Petroff's), and lines and points are labelled
directly.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mulfree_cupy.report import output
from mulfree_cupy.train import Run

PALETTE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
CLASSES = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
_MARKERS, _DASHES = "osD", ("-", "--", ":")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.constrained_layout.w_pad": 0.07,
}


@contextmanager
def _styled() -> Iterator:
    """Matplotlib's pyplot with our style."""
    pyplot = output.pyplot()
    with pyplot.rc_context(_STYLE):
        yield pyplot


class _Look(NamedTuple):
    """How a network is drawn; colours repeat with other markers and dashes."""

    colour: str
    marker: str
    dashes: str


def _looks(titles: Iterable[str]) -> dict[str, _Look]:
    looks = [
        _Look(colour, marker, dashes)
        for marker, dashes in zip(_MARKERS, _DASHES, strict=True)
        for colour in PALETTE
    ]
    return dict(zip(titles, itertools.cycle(looks), strict=False))


def _wrapped(title: str, width: int) -> str:
    """A title on several lines, its teacher on one of its own."""
    parts = title.split(", ")
    return ",\n".join("\n".join(textwrap.wrap(part, width)) for part in parts)


def accuracy_over_energy(
    path: Path, points: Mapping[str, tuple[float, Sequence[float]]], title: str
) -> None:
    """Draw test accuracy over the energy of an image's arithmetic.

    Parameters
    ----------
    path : path
    points : mapping of str to (float, sequence of floats)
        By the name of the network, joules and the accuracies of its runs.
    title : str
    """
    with _styled() as pyplot:
        size = (5.2, 3.6) if len(points) < 7 else (7, 5)
        figure, axes = pyplot.subplots(figsize=size)
        looks, places = _looks(points), {}
        for name, (joules, accuracies) in points.items():
            x, ys = 1e6 * joules, 100 * np.array(accuracies)
            y = ys.mean()
            spread = [[y - ys.min()], [ys.max() - y]]
            look = looks[name]
            axes.errorbar(x, y, spread, fmt=look.marker, ms=7, capsize=3, color=look.colour)
            places[name] = x, y
        axes.set(
            xlabel="energy of the arithmetic for one image, µJ (45 nm)", ylabel="test accuracy, %"
        )
        axes.margins(0.18, 0.22)
        low, high = axes.get_ylim()
        axes.set_ylim(low, min(high, 100 + 0.06 * (high - low)))
        _logarithmic(axes.xaxis)
        output.head(figure, title)
        figure.canvas.draw()  # for the places of texts
        _name_points(axes, places, looks)
        output.write_picture(path, figure, dpi=200)


def _name_points(axes, places: Mapping[str, tuple[float, float]], looks: Mapping[str, _Look]):
    """Label points, each on the first side where the label covers nothing.

    Labels are left out of the layout, which a long one would squeeze. One without room stands above
    its point, moved into the figure.
    """
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    taken = _marks(axes, list(places.values()))
    sides = [
        ((8, 0), "left", "center"), ((-8, 0), "right", "center"), ((0, 8), "center", "bottom"),
        ((0, -8), "center", "top"), ((7, 7), "left", "bottom"), ((7, -7), "left", "top"),
        ((-7, 7), "right", "bottom"), ((-7, -7), "right", "top"), ((0, 20), "center", "bottom"),
        ((0, -20), "center", "top"), ((7, 24), "left", "bottom"), ((7, -24), "left", "top"),
        ((-7, 24), "right", "bottom"), ((-7, -24), "right", "top"), ((0, 8), "center", "bottom"),
    ]  # fmt: skip
    for name, place in places.items():
        for offset, horizontal, vertical in sides:
            text = axes.annotate(
                _wrapped(name, 24), place, offset, textcoords="offset points",
                color=looks[name].colour, ha=horizontal, va=vertical, fontweight="bold",
                parse_math=False,
            )  # fmt: skip
            text.set_in_layout(False)
            box = text.get_window_extent(renderer)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
            inside = inside and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            if inside and _is_clear(box, taken):
                break
            text.remove()
        else:
            axes.add_artist(text)
            over = max(0, box.x1 - figure.bbox.x1) - max(0, axes.bbox.x0 - box.x0)
            text.set_position((offset[0] - over * 72 / figure.dpi, offset[1]))
            box = text.get_window_extent(renderer)
        taken.append(tuple(box.extents))


def _marks(axes, places: Sequence) -> list[tuple[float, ...]]:
    """The boxes in pixels, left, low, right and high, of marks at these places."""
    return [(x - 6, y - 6, x + 6, y + 6) for x, y in axes.transData.transform(places)]


def _is_clear(box, taken: Iterable[tuple[float, ...]]) -> bool:
    return all(
        box.x1 < left or box.x0 > right or box.y1 < low or box.y0 > high
        for left, low, right, high in taken
    )


def learning_curves(path: Path, runs: Mapping[str, Sequence[Run]], title: str) -> None:
    """Draw training loss and test error by epoch: the mean of runs and their range.

    Parameters
    ----------
    path : path
    runs : mapping of str to sequence of Run
        By the name of the network.
    title : str
    """
    with _styled() as pyplot:
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6))
        looks, ends = _looks(runs), {}
        for name, each in runs.items():
            colour, marker, dashes = looks[name]
            histories = [run.history for run in each]
            losses = np.array([history.train_loss for history in histories])
            errors = 100 * (1 - np.array([history.test_accuracy for history in histories]))
            pruned = [epoch - 1 for epoch in each[0].prunings]
            for axes, values in zip(panels, (losses, errors), strict=True):
                epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
                only = {"marker": marker, "ms": 4} if len(epochs) == 1 else {}
                axes.plot(epochs, mean, dashes, color=colour, lw=1.6, **only)
                axes.plot(epochs[pruned], mean[pruned], "v", color=colour, ms=5)
                if len(each) > 1:
                    span = values.min(axis=0), values.max(axis=0)
                    axes.fill_between(epochs, *span, color=colour, alpha=0.15, lw=0)
            ends[name] = epochs[-1], mean[-1]
        for axes, label in zip(panels, ("training loss", "test error, %"), strict=True):
            axes.set(xlabel="epoch", ylabel=label)
            _logarithmic(axes.yaxis)
            axes.xaxis.get_major_locator().set_params(integer=True)
        if any(run.prunings for each in runs.values() for run in each):
            panels[0].plot([], [], "v", color="0.4", ms=5, label="pruned")
            panels[0].legend(loc="upper right")
        output.head(figure, title)
        figure.canvas.draw()  # for the places of texts
        _name_ends(panels[1], ends, looks)
        output.write_picture(path, figure, dpi=200)


def _logarithmic(axis) -> None:
    """Make an axis logarithmic, with plain numbers, unless there are zeros on it."""
    from matplotlib import ticker

    if axis.get_data_interval()[0] <= 0:
        return
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    low, high = axis.get_view_interval()
    span = high / low
    if span < 6:
        axis.set_major_locator(ticker.MaxNLocator(5))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def _name_ends(axes, ends: Mapping[str, tuple[float, float]], looks: Mapping[str, _Look]) -> None:
    """Label the ends of lines, moved apart where labels would overlap."""
    scale = 72 / axes.figure.dpi  # of pixels to points
    height = 11.0
    ends = {name: (x, np.clip(y, *axes.get_ylim())) for name, (x, y) in ends.items()}
    order = sorted(ends, key=lambda name: ends[name][1])
    wanted = [axes.transData.transform(ends[name])[1] * scale for name in order]
    # The nearest positions in this order a label's height apart: pooled where closer.
    pools: list[tuple[float, int]] = []
    for i, y in enumerate(wanted):
        total, count = y - i * height, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before, more = pools.pop()
            total, count = total + before, count + more
        pools.append((total, count))
    bases = [total / count for total, count in pools for _ in range(count)]
    placed = [base + i * height for i, base in enumerate(bases)]
    for name, y, place in zip(order, wanted, placed, strict=True):
        axes.annotate(
            name, ends[name], (6, place - y), textcoords="offset points", va="center",
            color=looks[name].colour, fontweight="bold", annotation_clip=False, parse_math=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """Maximum-likelihood fits to weights, with the mean log-likelihood per weight."""

    mean: float
    deviation: float
    median: float
    scale: float
    gaussian: float
    laplace: float

    @classmethod
    def of(cls, weights: np.ndarray) -> Fit:
        """Fit weights that are not all equal."""
        mean, deviation = float(weights.mean()), float(weights.std())
        median = float(np.median(weights))
        scale = float(np.abs(weights - median).mean())
        gaussian = -0.5 * np.log(2 * np.pi * deviation**2) - 0.5
        laplace = -np.log(2 * scale) - 1
        return cls(mean, deviation, median, scale, float(gaussian), float(laplace))

    @property
    def verdict(self) -> str:
        better = "Laplace" if self.laplace > self.gaussian else "Gaussian"
        return f"{better} fits better\nby {abs(self.laplace - self.gaussian):.3f} nats per weight"

    def densities(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Densities of the Gaussian and the Laplacian."""
        z = (x - self.mean) / self.deviation
        gaussian = np.exp(-0.5 * z**2) / (self.deviation * np.sqrt(2 * np.pi))
        return gaussian, np.exp(-np.abs(x - self.median) / self.scale) / (2 * self.scale)


def weight_histograms(
    path: Path, weights: Mapping[str, np.ndarray], pruned: Container[str], title: str
) -> None:
    """Draw histograms of weights with a Laplacian and a Gaussian fitted to them.

    Parameters
    ----------
    path : path
    weights : mapping of str to array
        By the name of the network.
    pruned : container of str
        Names of pruned networks, to which nothing is fitted.
    title : str
    """
    with _styled() as pyplot:
        size = max(4.6, 2.1 * len(weights)), 2.6
        figure, panels = pyplot.subplots(1, len(weights), figsize=size, squeeze=False)
        looks = _looks(weights)
        for axes, (name, w) in zip(panels[0], weights.items(), strict=True):
            low, high = np.percentile(w, (0.2, 99.8))
            axes.hist(w, 60, range=(low, high), density=True, color=looks[name].colour, alpha=0.4)
            if name in pruned:
                verdict = "small weights pruned:\nnothing fitted"
            else:
                fit, x = Fit.of(w), np.linspace(low, high, 401)
                gaussian, laplace = fit.densities(x)
                axes.plot(x, laplace, color="black", lw=1.2, label="Laplace")
                axes.plot(x, gaussian, "--", color="black", lw=1.2, label="Gaussian")
                verdict = fit.verdict
            axes.set_title(_wrapped(name, 22), color=looks[name].colour, parse_math=False)
            axes.set(yticks=[])
            axes.set_xlabel(verdict, fontsize=8)
            axes.spines["left"].set_visible(False)
            axes.grid(False)
            axes.locator_params(axis="x", nbins=4)
        handles, labels = panels[0][0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
        output.head(figure, title)
        output.write_picture(path, figure, dpi=200)


def filters(path: Path, weights: Mapping[str, np.ndarray], title: str) -> None:
    """Draw the filters of first layers, one row per network.

    Parameters
    ----------
    path : path
    weights : mapping of str to array, shape (K, C, kh, kw)
        Three channels are shown as colours, others as the mean of all.
    title : str
    """
    with _styled() as pyplot:
        most = max(len(w) for w in weights.values())
        size = 0.85 * most + 1.1, 1.0 * len(weights) + 0.5
        figure, rows = pyplot.subplots(len(weights), most, figsize=size, squeeze=False)
        for row, (name, w) in zip(rows, weights.items(), strict=True):
            for axes in row:
                axes.set_axis_off()
            for axes, kernel in zip(row, w, strict=False):
                image = kernel.transpose(1, 2, 0) if len(kernel) == 3 else kernel.mean(axis=0)
                low, high = image.min(), image.max()
                axes.imshow((image - low) / (high - low or 1), cmap="gray", vmin=0, vmax=1)
            row[0].text(
                -0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center",
                fontweight="bold", parse_math=False,
            )  # fmt: skip
        output.head(figure, title)
        output.write_picture(path, figure, dpi=200)


@dataclass(frozen=True)
class Plane:
    """Two-dimensional features of images, their labels, and the classifier.

    Parameters
    ----------
    features : array, shape (N, 2)
    labels : array, shape (N,)
    weights : array, shape (classes, 2)
    accuracy : float
    directions : bool
        Whether the classifier compares features with its weights by direction (products) or by
        position (distances).
    """

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    accuracy: float
    directions: bool


def features(path: Path, planes: Mapping[str, Plane], classes: Sequence[str], title: str) -> None:
    """Draw images as points in the plane of a network's last two features, coloured by class."""
    with _styled() as pyplot:
        size = 4.2 * len(planes) + 1, 4.2
        figure, panels = pyplot.subplots(1, len(planes), figsize=size, squeeze=False)
        for axes, (name, plane) in zip(panels[0], planes.items(), strict=True):
            x, y = plane.features.T
            colours = [CLASSES[label % len(CLASSES)] for label in plane.labels]
            axes.scatter(x, y, 7, colours, linewidths=0, alpha=0.8)
            limits = axes.axis()
            shades = [CLASSES[label % len(CLASSES)] for label in range(len(plane.weights))]
            if plane.directions:
                reach = np.hypot(x, y).max()
                ends = plane.weights * (reach / np.hypot(*plane.weights.T)[:, None])
                for end, shade in zip(ends, shades, strict=True):
                    axes.plot([0, end[0]], [0, end[1]], color=shade, lw=1.2, zorder=0.9)
            else:
                marks = {"marker": "X", "edgecolors": "black", "linewidths": 0.8, "zorder": 3}
                axes.scatter(*plane.weights.T, 55, shades, **marks)
            axes.axis(limits)
            axes.set_title(f"{name}, {plane.accuracy:.1%} right", parse_math=False)
            axes.set(xlabel=f"feature 1\n{_weights_shown(axes, plane)}", ylabel="feature 2")
        if len(classes) <= len(CLASSES):
            dots = [axes.scatter([], [], 20, shade) for shade in CLASSES[: len(classes)]]
            names = figure.legend(dots, classes, loc="outside right center")
            for text in names.get_texts():
                text.set_parse_math(False)
            output.head(figure, title)
            figure.canvas.draw()  # for the places of texts
            for axes, plane in zip(panels[0], planes.values(), strict=True):
                _name_classes(axes, plane, classes)
        output.head(figure, title)
        output.write_picture(path, figure, dpi=200)


def _weights_shown(axes, plane: Plane) -> str:
    """How the classifier's weights are drawn."""
    if plane.directions:
        return "lines: directions of the classifier's weights"
    places = axes.transData.transform(plane.weights)
    if any(axes.bbox.contains(*place) for place in places):
        return "crosses in view: the classifier's weights"
    return "the classifier's weights lie outside"


def _name_classes(axes, plane: Plane, classes: Sequence[str]) -> None:
    """Label classes at their medians or beside them, where labels cover no other and no cross."""
    taken = [] if plane.directions else _marks(axes, plane.weights)
    for label, name in enumerate(classes):
        of_class = plane.features[plane.labels == label]
        if not len(of_class):
            continue
        for offset in (0, 0), (0, 12), (0, -12), (0, 20), (0, -20):
            text = axes.annotate(
                name, np.median(of_class, axis=0), offset, textcoords="offset points",
                ha="center", va="center", fontsize=8, fontweight="bold", zorder=4,
                parse_math=False, annotation_clip=True,
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1},
            )  # fmt: skip
            box = text.get_window_extent()
            if _is_clear(box, taken):
                taken.append(tuple(box.extents))
                break
            text.remove()
