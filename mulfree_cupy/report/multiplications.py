"""Multiplications of a network by the rule of the Winograd pruning papers, and all its operations.

The rule counts products alone, those with a zero weight or activation as none, and transforms as
free. Only hardware that skips zero activations reaches it; what the weights alone save is `static`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mulfree_cupy import arrays, geometry, nn
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.geometry import Pair
from mulfree_cupy.launch.numpy_winograd import transformed
from mulfree_cupy.ops.winograd.matrices import checked, matrices

FORMS = ("dense", "spatial", "native", "winograd-relu")


@dataclass(frozen=True)
class Layer:
    """One convolution of one image; a fully connected layer is a 1x1 one of one pixel.

    Parameters
    ----------
    name : str
    channels, filters : int
    size : int or pair of ints
        Of the output.
    kernel : int or pair of ints
    form : str
        ``"dense"``; ``"spatial"``: pruned spatial weights, clipped activations; ``"native"``:
        pruned Winograd weights, dense activations; ``"winograd-relu"``: both sparse.
    weight_density, activation_density : float
        Shares that are not zero, from 0 to 1, in the domain in which they meet.
    m, points
        As of `mulfree_cupy.winograd_matrices`.

    Raises
    ------
    ValueError
        If the form is none of these, or it is of the Winograd domain and the kernel not 3x3, or
        there is no such transform, or a share is no such number.

    Examples
    --------
    >>> from mulfree_cupy.report.multiplications import Layer
    >>> layer = Layer("conv2", 64, 64, 32, form="winograd-relu", weight_density=0.4)
    >>> layer.direct, round(layer.direct / layer.static, 3)
    (37748736, 5.625)
    """

    name: str
    channels: int
    filters: int
    size: int | Pair
    kernel: int | Pair = 3
    form: str = "dense"
    weight_density: float = 1.0
    activation_density: float = 1.0
    m: int = 2
    points: str = "lavin"

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(
                f"Layer: form must be one of {', '.join(FORMS)}, got {self.form!r} for {self.name}"
            )
        for field in ("size", "kernel"):
            object.__setattr__(self, field, geometry.pair("Layer", field, getattr(self, field), 1))
        if self.in_winograd_domain and self.kernel != (3, 3):
            raise ValueError(
                f"Layer: form {self.form!r} needs a 3x3 kernel, got {self.kernel} for {self.name}"
            )
        checked("Layer", self.m, self.points)
        for field in ("weight_density", "activation_density"):
            share = getattr(self, field)
            if not 0 <= share <= 1:
                raise ValueError(f"Layer: {field} must be from 0 to 1, got {share} for {self.name}")

    @property
    def in_winograd_domain(self) -> bool:
        return self.form in ("native", "winograd-relu")

    @property
    def tiles(self) -> int:
        """Output tiles of one image, those that reach beyond it included."""
        return int(np.prod([-(-size // self.m) for size in self.size]))

    @property
    def direct(self) -> int:
        """Multiplications of the dense convolution, the papers' 36 a tile of 2x2 outputs."""
        return self.channels * self.filters * int(np.prod(self.kernel) * np.prod(self.size))

    @property
    def static(self) -> float:
        """Multiplications by weights that are not zero."""
        dense = self.direct
        if self.in_winograd_domain:
            dense = self.channels * self.filters * (self.m + 2) ** 2 * self.tiles
        return dense * self.weight_density

    @property
    def dynamic(self) -> float:
        """Those of `static` whose activation is not zero either."""
        return self.static * (1 if self.form == "native" else self.activation_density)

    @property
    def transforms(self) -> tuple[int, int]:
        """Multiplications, by factors other than +-1, and additions of the transforms as written.

        The weights are transformed beforehand.
        """
        if not self.in_winograd_domain:
            return 0, 0
        BT, _, AT = matrices(self.m, self.points)
        costs = self.channels * _cost(BT) + self.filters * _cost(AT)
        multiplications, additions = (self.tiles * costs).tolist()
        return multiplications, additions

    @property
    def operations(self) -> float:
        """Multiplications and additions by weights that are not zero, transforms included."""
        return 2 * self.static + sum(self.transforms)


def _cost(matrix: np.ndarray) -> np.ndarray:
    """Multiplications and additions of ``matrix @ tile @ matrix.T``."""
    factors = (~np.isin(matrix, (-1, 0, 1))).sum()
    sums = (matrix != 0).sum() - len(matrix)
    return sum(matrix.shape) * np.array([factors, sums])


def activation_density(
    x: np.ndarray, form: str, *, m: int = 2, points: str = "lavin", padding: int | Pair = 1
) -> float:
    """Share of a layer's activations that are not zero, measured where they meet the weights.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        The layer's input; integers are taken as floats.
    form : str
        As of `Layer`; for the two Winograd forms x is transformed, for ``"winograd-relu"`` clipped.
    m, points, padding
        As of the layer.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If there is no such form or transform, or x does not fit, or is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.report.multiplications import activation_density
    >>> activation_density(np.eye(4).reshape(1, 1, 4, 4), "spatial")
    0.25
    """
    if form not in FORMS:
        raise ValueError(
            f"activation_density: form must be one of {', '.join(FORMS)}, got {form!r}"
        )
    (x,) = arrays.take("activation_density", x=x)
    geometry.check_rank("activation_density", "x", x.shape, "N, C, H, W")
    if not x.size:
        raise ValueError(f"activation_density: x must not be empty, got shape {x.shape}")
    if form in ("dense", "spatial"):
        return float(np.count_nonzero(x) / x.size)
    x = x.astype(np.result_type(x, np.float32), copy=False)  # transforms subtract
    BT, _, AT = checked("activation_density", m, points)
    padding = geometry.window("activation_density", x.shape, 3, padding=padding).padding
    nonzero = size = 0
    for seen in transformed(x, padding, form == "winograd-relu", (BT, AT)):
        nonzero, size = nonzero + np.count_nonzero(seen), size + seen.size
    return float(nonzero / size)


def describe(layer: nn.Module, name: str, size: Pair, x: np.ndarray | None = None) -> Layer:
    """A layer of a network; its activations are measured on its input x, or else are dense.

    Parameters
    ----------
    layer : Module
        WinogradConv, MaskedConv, Conv or Linear.
    name : str
    size : pair of ints
        Of the output.
    x : array, shape (N, C, H, W), optional

    Returns
    -------
    Layer
    """
    if isinstance(layer, nn.WinogradConv):
        filters, channels = layer.weight.shape[2:]
        form = "winograd-relu" if layer.relu else "native"
        transform = {"m": layer.m, "points": layer.points}
        kernel, measure = 3, {**transform, "padding": layer.options["padding"]}
    else:
        filters, channels, *kernel = layer.weight.shape
        kernel, measure, transform = tuple(kernel) or 1, {}, {}
        form = "spatial" if isinstance(layer, nn.MaskedConv) else "dense"
    share = {} if form == "dense" else {"weight_density": layer.density}
    if x is not None and form in ("spatial", "winograd-relu"):
        share["activation_density"] = activation_density(x, form, **measure)
    return Layer(name, channels, filters, size, kernel, form, **share, **transform)


def measured(model: nn.Module, images: np.ndarray) -> list[Layer]:
    """The layers of a network that multiply, their activations measured on images.

    Parameters
    ----------
    model : Module
        With NumPy weights; it is run once, in evaluation mode, and left in it.
    images : array, shape (N, C, H, W)
        As the network takes them.

    Returns
    -------
    list of Layer
        In the order of computation.

    Raises
    ------
    ValueError
        If the network has no layer that can be pruned.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy import models
    >>> from mulfree_cupy.report.multiplications import measured
    >>> network = models.build("winograd-relu-vgg-nagadomi-8", size=8)
    >>> layers = measured(network, np.random.default_rng(0).normal(size=(2, 3, 8, 8)))
    >>> layers[1].form, 0.4 < layers[1].activation_density < 0.6
    ('winograd-relu', True)
    """
    names = {id(module): name for name, module in model.modules()}
    layers = []

    def watch(layer: nn.Module, answer: Tensor, _: float) -> None:
        if isinstance(layer, (nn.WinogradConv, nn.Conv, nn.Linear)):
            x = answer.node.inputs[0].data
            layers.append(describe(layer, names[id(layer)], answer.shape[2:] or (1, 1), x))

    if not any(hasattr(module, "prune") for _, module in model.modules()):
        raise ValueError("multiplications.measured: the network has no layer that can be pruned")
    with nn.observed(watch):
        model.eval()(Tensor(images))
    return layers


def reduction(layers: Iterable[Layer], count: str = "dynamic") -> float:
    """How many times fewer multiplications the layers take than their dense convolutions.

    Parameters
    ----------
    layers : iterable of Layer
    count : str
        ``"dynamic"``, ``"static"``, or ``"operations"``, against as many additions as products.

    Returns
    -------
    float
        Infinite if nothing is left to multiply.

    Raises
    ------
    ValueError
        If there is no such count, or no layer.
    """
    layers = list(layers)
    if count not in ("dynamic", "static", "operations"):
        raise ValueError(f"reduction: count must be dynamic, static or operations, got {count!r}")
    if not layers:
        raise ValueError("reduction: layers must not be empty")
    dense = sum(layer.direct for layer in layers) * (2 if count == "operations" else 1)
    left = sum(getattr(layer, count) for layer in layers)
    return dense / left if left else math.inf


def table(layers: Iterable[Layer]) -> str:
    """Multiplications by layer, of the layers that are not dense, and of all, as text.

    Parameters
    ----------
    layers : iterable of Layer

    Returns
    -------
    str

    Examples
    --------
    >>> from mulfree_cupy.report.multiplications import Layer, table
    >>> print(table([Layer("conv", 64, 64, 32, form="native", weight_density=0.5)]))
    layer             form          weights activations   direct M   static  dynamic operations
    conv              native          50.0%           -      37.75    4.50x    4.50x      4.27x
    all pruned                                               37.75    4.50x    4.50x      4.27x
    network                                                  37.75    4.50x    4.50x      4.27x
    """
    layers = list(layers)
    width = max([17, *(len(layer.name) for layer in layers)])
    lines = [
        f"{'layer':{width}} {'form':13} {'weights':>7} {'activations':>11} {'direct M':>10} "
        f"{'static':>8} {'dynamic':>8} {'operations':>10}"
    ]
    for layer in layers:
        ours = (
            f"{layer.activation_density:.1%}" if layer.form in ("spatial", "winograd-relu") else "-"
        )
        weights = f"{layer.weight_density:.1%}"
        lines.append(
            f"{layer.name:{width}} {layer.form:13} {weights:>7} {ours:>11} {_row([layer])}"
        )
    pruned = [layer for layer in layers if layer.form != "dense"]
    for name, chosen in (("all pruned", pruned), ("network", layers)):
        if chosen:
            lines.append(f"{name:{width}} {'':13} {'':7} {'':11} {_row(chosen)}")
    return "\n".join(lines)


def _row(layers: list[Layer]) -> str:
    static, dynamic, operations = (
        reduction(layers, count) for count in ("static", "dynamic", "operations")
    )
    direct = sum(layer.direct for layer in layers) / 1e6
    return f"{direct:10.2f} {static:7.2f}x {dynamic:7.2f}x {operations:9.2f}x"
