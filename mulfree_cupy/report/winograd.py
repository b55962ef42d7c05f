"""Plot of a layer's pruned Winograd kernels by tile position."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from mulfree_cupy.inference.network import Network
from mulfree_cupy.ops.winograd import WinogradWeights
from mulfree_cupy.report import output


def mean_magnitude(weights: WinogradWeights) -> np.ndarray:
    """Mean abs(U) at each tile position, pruned entries counted as zeros.

    Parameters
    ----------
    weights : WinogradWeights

    Returns
    -------
    array, shape (t, t)
    """
    return np.abs(weights.dense).mean(axis=(2, 3), dtype=np.float64)


def draw(
    path: str | PathLike, weights: WinogradWeights, *, most: int = 12, title: str = ""
) -> None:
    """Draw kernels as t x t tiles, with mean magnitude and density by tile position.

    Parameters
    ----------
    path : path
        Of the PNG.
    weights : WinogradWeights
    most : int
        Number of filters and channels shown. Pruned entries are white.
    title : str
    """
    figure, (kernels, magnitude, density) = output.pyplot().subplots(
        1, 3, figsize=(12, 4.2), gridspec_kw={"width_ratios": [1.6, 1, 1]}
    )
    shown = weights.dense[:, :, :most, :most]
    limit = np.abs(shown).max(initial=0) or 1
    image = kernels.imshow(_mosaic(shown), cmap="RdBu", vmin=-limit, vmax=limit)
    kernels.set(xlabel="channel", ylabel="filter", xticks=[], yticks=[], facecolor="0.6")
    figure.colorbar(image, ax=kernels, shrink=0.8)
    _by_position(magnitude, mean_magnitude(weights), "mean |U|")
    _by_position(density, weights.mask.mean(axis=(2, 3)), "density")
    output.head(figure, title or repr(weights))
    output.write_picture(path, figure)


def draw_all(folder: str | PathLike, network: Network) -> None:
    """Draw the kernels of every Winograd layer into a folder, each named after its layer.

    Raises
    ------
    ValueError
        If there is no Winograd layer.
    """
    layers = [layer for layer in network.layers if layer.op == "winograd_conv"]
    if not layers:
        raise ValueError("--picture draws Winograd layers, and the network has none")
    for layer in layers:
        arrays = {role: network.arrays[name] for role, name in layer.arrays.items()}
        weights = WinogradWeights.from_dense(
            arrays["weight"], arrays.get("mask"), points=layer.options["points"]
        )
        path = Path(folder) / f"{layer.name}.png"
        draw(path, weights, title=f"{layer.name}: {weights!r}")


def _mosaic(u: np.ndarray) -> np.ndarray:
    """(t, t, K, C) as one image, kernels side by side, with NaN between them."""
    t, _, filters, channels = u.shape
    image = np.full((filters, t + 1, channels, t + 1), np.nan)
    image[:, :t, :, :t] = u.transpose(2, 0, 3, 1)
    return image.reshape(filters * (t + 1), channels * (t + 1))[:-1, :-1]


def _by_position(axes, values: np.ndarray, title: str) -> None:
    axes.imshow(values, cmap="viridis", vmin=0)
    for (i, j), value in np.ndenumerate(values):
        axes.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8, color="white",
                  bbox={"facecolor": "black", "alpha": 0.4, "linewidth": 0, "pad": 1})  # fmt: skip
    positions = range(1, len(values) + 1)
    axes.set(title=title, xticks=range(len(values)), yticks=range(len(values)))
    axes.set_xticklabels(positions)
    axes.set_yticklabels(positions)
