"""Cost of a convolution per image, in any form: its terms, and the operations of each.

A term of a sum is a product, AdderNet's abs(x - w), or an XNOR of two signs. The Winograd pruning
papers do not count products with a zero weight or activation, nor transforms. Only hardware that
skips zero activations achieves this; `static` counts the savings by zero weights only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mulfree_cupy import arrays, geometry
from mulfree_cupy.geometry import PaddingLike, Pair
from mulfree_cupy.launch.numpy_winograd import transformed
from mulfree_cupy.ops.winograd.matrices import checked, matrices
from mulfree_cupy.report.energy import Operations

# The term of each form.
FORMS = {
    "dense": "product",
    "spatial": "product",
    "native": "product",
    "winograd-relu": "product",
    "adder": "difference",
    "binary": "xnor",
}
PRUNABLE = "spatial", "native", "winograd-relu"


def operations_of(term: str, dtype: str = "float32") -> Operations:
    """Operations of one term with its accumulation: a multiply-add is a multiplication and an
    addition.

    8-bit numbers are accumulated in 32 bits.

    Examples
    --------
    >>> from mulfree_cupy.report.convolutions import operations_of
    >>> dict(operations_of("difference")), dict(operations_of("difference", "uint8"))
    ({('addition', 'float32'): 2}, {('addition', 'int8'): 1, ('addition', 'int32'): 1})
    """
    element, total = ("int8", "int32") if dtype == "uint8" else (dtype, dtype)
    return {
        "product": Counter([("multiplication", element), ("addition", total)]),
        "difference": Counter([("addition", element), ("addition", total)]),
        "xnor": Counter([("xnor", "bit"), ("addition", "bit")]),
    }[term]


@dataclass(frozen=True)
class Convolution:
    """One convolution of one image; a fully connected layer is a 1x1 convolution of one pixel.

    Parameters
    ----------
    name : str
    channels, filters : int
    size : int or pair of ints
        Of the output.
    kernel : int or pair of ints
    form : str
        ``"dense"``; ``"spatial"``: pruned spatial weights, clipped activations; ``"native"``:
        pruned Winograd weights, dense activations; ``"winograd-relu"``: both sparse; ``"adder"``;
        ``"binary"``.
    weight_density, activation_density : float
        Nonzero fractions, from 0 to 1, in the domain of the products.
    m, points
        As of `mulfree_cupy.winograd_matrices`.
    dtype : str
        Of the activations: ``"uint8"`` or a floating one.

    Raises
    ------
    ValueError
        If the form is unknown, it is in the Winograd domain and the kernel not 3x3, there is no
        such transform, or a density is out of range.

    Examples
    --------
    >>> from mulfree_cupy.report.convolutions import Convolution
    >>> layer = Convolution("conv2", 64, 64, 32, form="winograd-relu", weight_density=0.4)
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
    dtype: str = "float32"

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(
                f"Convolution: form must be one of {', '.join(FORMS)}, got {self.form!r} for "
                f"{self.name}"
            )
        for field in ("size", "kernel"):
            value = geometry.pair("Convolution", field, getattr(self, field), 1)
            object.__setattr__(self, field, value)
        if self.in_winograd_domain and self.kernel != (3, 3):
            raise ValueError(
                f"Convolution: form {self.form!r} needs a 3x3 kernel, got {self.kernel} for "
                f"{self.name}"
            )
        checked("Convolution", self.m, self.points)
        for field in ("weight_density", "activation_density"):
            share = getattr(self, field)
            if not 0 <= share <= 1:
                raise ValueError(
                    f"Convolution: {field} must be from 0 to 1, got {share} for {self.name}"
                )

    @property
    def in_winograd_domain(self) -> bool:
        return self.form in ("native", "winograd-relu")

    @property
    def tiles(self) -> int:
        """Output tiles of one image, including those that extend beyond it."""
        return int(np.prod([-(-size // self.m) for size in self.size]))

    @property
    def direct(self) -> int:
        """Terms of the dense convolution; 36 per tile of F(2x2, 3x3), as in the papers."""
        return self.channels * self.filters * int(np.prod(self.kernel) * np.prod(self.size))

    @property
    def static(self) -> float:
        """Terms with a nonzero weight."""
        dense = self.direct
        if self.in_winograd_domain:
            dense = self.channels * self.filters * (self.m + 2) ** 2 * self.tiles
        return dense * self.weight_density

    @property
    def dynamic(self) -> float:
        """Terms of `static` with a nonzero activation."""
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
    def operations(self) -> Operations:
        """Operations of the terms with a nonzero weight, transforms included."""
        term = operations_of(FORMS[self.form], self.dtype)
        counts = Counter({operation: n * self.static for operation, n in term.items()})
        for operation, count in zip(("multiplication", "addition"), self.transforms, strict=True):
            if count:
                counts[operation, self.dtype] += count
        return counts


def _cost(matrix: np.ndarray) -> np.ndarray:
    """Multiplications and additions of ``matrix @ tile @ matrix.T``."""
    factors = (~np.isin(matrix, (-1, 0, 1))).sum()
    sums = (matrix != 0).sum() - len(matrix)
    return sum(matrix.shape) * np.array([factors, sums])


def activation_density(
    x: np.ndarray, form: str, *, m: int = 2, points: str = "lavin", padding: PaddingLike = 1
) -> float:
    """Nonzero fraction of a layer's activations, in the domain of the products.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        The layer's input; integers are converted to floats.
    form : str
        As of `Convolution`; for the two Winograd forms x is transformed, for ``"winograd-relu"``
        clipped.
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
    >>> from mulfree_cupy.report.convolutions import activation_density
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
    if form not in ("native", "winograd-relu"):
        return float(np.count_nonzero(x) / x.size)
    x = x.astype(np.result_type(x, np.float32), copy=False)  # transforms subtract
    BT, _, AT = checked("activation_density", m, points)
    padding = geometry.window("activation_density", x.shape, 3, padding=padding).padding
    nonzero = size = 0
    for seen in transformed(x, padding, form == "winograd-relu", (BT, AT)):
        nonzero, size = nonzero + np.count_nonzero(seen), size + seen.size
    return float(nonzero / size)


def reduction(layers: Iterable[Convolution], count: str = "dynamic") -> float:
    """Ratio of the terms of the dense convolutions to the terms of the layers.

    Parameters
    ----------
    layers : iterable of Convolution
    count : str
        ``"dynamic"``, ``"static"``, or ``"operations"``: all operations, with a multiplication and
        an addition per dense term.

    Returns
    -------
    float
        Infinite if nothing is left.

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
    dense = sum(layer.direct for layer in layers)
    if count == "operations":
        dense, left = 2 * dense, sum(layer.operations.total() for layer in layers)
    else:
        left = sum(getattr(layer, count) for layer in layers)
    return dense / left if left else math.inf


def table(layers: Iterable[Convolution]) -> str:
    """Savings by pruning as text: per layer, over all prunable layers, and in total.

    Parameters
    ----------
    layers : iterable of Convolution

    Returns
    -------
    str

    Examples
    --------
    >>> from mulfree_cupy.report.convolutions import Convolution, table
    >>> print(table([Convolution("conv", 64, 64, 32, form="native", weight_density=0.5)]))
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
    pruned = [layer for layer in layers if layer.form in PRUNABLE]
    for name, chosen in (("all pruned", pruned), ("network", layers)):
        if chosen:
            lines.append(f"{name:{width}} {'':13} {'':7} {'':11} {_row(chosen)}")
    return "\n".join(lines)


def _row(layers: list[Convolution]) -> str:
    static, dynamic, operations = (
        reduction(layers, count) for count in ("static", "dynamic", "operations")
    )
    direct = sum(layer.direct for layer in layers) / 1e6
    return f"{direct:10.2f} {static:7.2f}x {dynamic:7.2f}x {operations:9.2f}x"
