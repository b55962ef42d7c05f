"""How many multiplications and additions an image costs, layer by layer.

As the papers count: a product-sum is one multiplication and one addition, a term ``abs(x - w)`` of
an adder layer is two additions, a shift is none, nor is a pruned weight. Winograd layers count with
their transforms. Biases, batch normalisation, activations, pooling and the sums of residual blocks
are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.report import multiplications

Rule = Callable[[nn.Module, tuple[int, ...]], tuple[int, int]]


def _terms(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Terms of all sums: each output's sum runs over the weights of one filter."""
    return int(np.prod(shape)) * layer.weight.data[0].size


def _products(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    terms = _terms(layer, shape)
    return terms, terms


def _differences(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    return 0, 2 * _terms(layer, shape)


def _pruned(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Products by the weights that are left, and the transforms of a Winograd layer."""
    described = multiplications.describe(layer, "", shape[2:])
    products, (factors, sums) = round(described.static), described.transforms
    return products + factors, products + sums


# By class: (multiplications, additions) of a layer whose answer has this shape (1, K, OH, OW).
RULES: dict[type, Rule] = {
    nn.AdderConv: _differences,
    nn.Conv: _products,
    nn.Linear: _products,
    nn.MaskedConv: _pruned,
    nn.Shift: lambda layer, shape: (0, 0),
    nn.ShiftAdderConv: _differences,
    nn.ShiftConv: _products,
    nn.WinogradConv: _pruned,
}


@dataclass(frozen=True)
class LayerCount:
    """One layer's share; `shape` is its answer's, without the batch, and `kind` its class."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiplications: int
    additions: int


@dataclass(frozen=True)
class Counts:
    """A network's layers in the order of computation, and the parameters of all its layers.

    Those of batch normalisations, which have no row of their own, are among them.
    """

    layers: list[LayerCount]
    parameters: int

    @property
    def multiplications(self) -> int:
        return sum(layer.multiplications for layer in self.layers)

    @property
    def additions(self) -> int:
        return sum(layer.additions for layer in self.layers)

    def __str__(self) -> str:
        def line(name, kind, shape, *numbers):
            return f"{name:34} {kind:14} {shape:>13}" + "".join(f" {n:>15}" for n in numbers)

        lines = [line("layer", "kind", "answer", "parameters", "multiplications", "additions")]
        for c in self.layers:
            numbers = (f"{n:,}" for n in (c.parameters, c.multiplications, c.additions))
            lines.append(line(c.name, c.kind, " x ".join(map(str, c.shape)), *numbers))
        totals = (f"{n:,}" for n in (self.parameters, self.multiplications, self.additions))
        lines.append(line("all, normalisations' parameters too", "", "", *totals))
        return "\n".join(lines)


def count(model: nn.Module, channels: int, size: int) -> Counts:
    """Count what one image costs a network.

    Parameters
    ----------
    model : Module
        With NumPy weights; it is run once, in evaluation mode, and left in it.
    channels, size : int
        Of the image, which is square.

    Returns
    -------
    Counts

    Notes
    -----
    A layer counts if `RULES` has its class.

    Examples
    --------
    >>> from mulfree_cupy import models
    >>> from mulfree_cupy.report.operations import count
    >>> counts = count(models.build("adder-resnet20"), channels=3, size=32)
    >>> counts.layers[0].multiplications, counts.multiplications
    (442368, 443008)
    """
    names = {id(module): name for name, module in model.modules()}
    layers = []

    def watch(layer: nn.Module, answer: Tensor, _: float) -> None:
        rule = RULES.get(type(layer))
        if rule is not None:
            parameters = sum(p.size for p in layer.parameters())
            layers.append(
                LayerCount(
                    names[id(layer)],
                    type(layer).__name__,
                    answer.shape[1:],
                    parameters,
                    *rule(layer, answer.shape),
                )
            )

    with nn.observed(watch), no_grad():
        model.eval()(Tensor(np.zeros((1, channels, size, size), np.float32)))
    return Counts(layers, sum(p.size for p in model.parameters()))
