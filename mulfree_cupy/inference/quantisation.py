"""Post-training quantisation to integers of few bits, from calibration images, with NumPy only.

Integers q represent ``(q - zero) * scale``. An adder convolution needs the same scale for weights
and activations, since ``|a - b| = scale * |qa - qb|``. As all activations lie in a range, ``|a - w|
= |a - clip(w)| + |w - clip(w)|``, so that weights outside the range cost no bits: their excess is a
constant per filter, and is folded into its bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mulfree_cupy import geometry
from mulfree_cupy.inference.folding import Step, fold
from mulfree_cupy.inference.network import IMAGES, Layer, Network
from mulfree_cupy.inference.operations import window_of
from mulfree_cupy.ops import packing
from mulfree_cupy.progress import progress

FEWEST_IMAGES = 64
FEWEST_BITS, MOST_BITS = 2, 8  # values are stored as uint8

# Candidate ranges, as the percentage of values inside. The one with the least squared error of
# clipping and rounding is chosen.
PERCENTILES = 99.0, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99, 100.0
_SAMPLE = 1 << 20  # largest number of values used to choose a range

# In trained networks they are within 4 % of 1; for filters that hardly vary they are arbitrary.
_SLOPES = 0.5, 2.0

_MOST = float(np.finfo(np.float32).max)  # "no limit" in JSON, which has no infinity
_SERVED = {
    *("conv", "adder_conv", "linear", "batch_norm", "relu", "add", "concatenate", "pad"),
    *("max_pool", "avg_pool", "global_average_pool", "flatten"),
}
_PASSING = "max_pool", "flatten"  # operations that work on integers too


@dataclass(frozen=True)
class Grid:
    """Integers q from 0 to `levels`, representing ``(q - zero) * scale``."""

    scale: float
    zero: int
    levels: int

    @classmethod
    def between(cls, low: float, high: float, levels: int) -> Grid:
        """A grid that represents 0 exactly, over a range extended to include 0."""
        low, high = min(0.0, float(low)), max(0.0, float(high))
        scale = (high - low) / levels or 1.0
        return cls(scale, round(-low / scale), levels)

    @property
    def low(self) -> float:
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        return (self.levels - self.zero) * self.scale

    def places(self, values: np.ndarray) -> np.ndarray:
        """Unrounded, unclipped positions of values on the grid."""
        return values / self.scale + self.zero

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Round and clip values to the grid."""
        whole = np.clip(np.rint(self.places(values)), 0, self.levels)
        return (whole - self.zero) * self.scale


@dataclass(frozen=True)
class Operands:
    """How the operands of a convolution were quantised.

    Parameters
    ----------
    name : str
        Of the layer.
    grid : Grid
        Of its input, and of an adder convolution's weights.
    clipped_activations, clipped_weights : float
        The fractions outside the range of the grid.
    """

    name: str
    grid: Grid
    clipped_activations: float
    clipped_weights: float


@dataclass(frozen=True)
class Quantised:
    """A quantised network, and a row for each of its quantised convolutions.

    `whole_sums` says whether these compute in integers, as adders do.
    """

    network: Network
    operands: list[Operands] = field(repr=False)
    whole_sums: bool


def quantize(
    network: Network, images: np.ndarray, *, bits: int = 8, percentile: float | None = None
) -> Quantised:
    """Quantise the convolutions of a trained network to integers of few bits.

    Convolutions of the images, unless they are adders, and linear layers are left unchanged.

    Parameters
    ----------
    network : Network
        With adder convolutions, or only ordinary ones: see Notes.
    images : array, shape (N, C, H, W)
        Raw training images, from which ranges and means are computed.
    bits : int, default 8
        2 to 8, of activations and weights, which are stored as uint8.
    percentile : float, optional
        The percentage of an output's values inside its range; outputs of both signs are clipped on
        both sides. By default, for each output, the one of `PERCENTILES` with the least squared
        error of clipping and rounding.

    Returns
    -------
    Quantised

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If there are too few images or they have the wrong shape, `bits` or `percentile` is out of
        range, or the network has no convolutions that can be quantised, or some that cannot.

    Notes
    -----
    Adder convolutions take uint8 and accumulate in int32; up to 4 bits they use the low-bit
    kernels. The scale and offset of the following normalisation become those of a ``rescale`` to
    the next layer's uint8, which also adds a residual. They are corrected so that each filter's
    sums keep the mean and standard deviation that they had on the calibration images.

    In a network without adder convolutions the ordinary ones are quantised for comparison only, and
    are not faster: weights are rounded with one scale per filter, activations to uint8, and both
    are computed with as float32.

    Examples
    --------
    >>> from mulfree_cupy import data, inference
    >>> from mulfree_cupy.inference.quantisation import quantize
    >>> train, test = data.load("digits")
    >>> network = inference.read("mulfree-run/checkpoint.npz")          # doctest: +SKIP
    >>> small = quantize(network, train.images[:512], bits=8).network   # doctest: +SKIP
    >>> inference.save_npz("8-bit.npz", small)                          # doctest: +SKIP
    """
    bits = geometry.integer("quantize", "bits", bits)
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise ValueError(f"quantize: bits must be {FEWEST_BITS} to {MOST_BITS}, got {bits}")
    if percentile is not None and not 50 < percentile <= 100:
        raise ValueError(f"quantize: percentile must be above 50 and at most 100, got {percentile}")
    steps = fold(network)
    operands = _operands(steps)
    if images.ndim != 4 or images.shape[1:] != network.image or images.dtype.kind not in "uif":
        sizes = ", ".join(map(str, network.image))
        raise ValueError(
            f"quantize: images must be numbers of shape (N, {sizes}), got dtype {images.dtype} and "
            f"shape {images.shape}"
        )
    if len(images) < FEWEST_IMAGES:
        raise ValueError(
            f"quantize: images must be at least {FEWEST_IMAGES} to take ranges and means from, "
            f"got {len(images)}"
        )
    if not np.isfinite(images).all():
        raise ValueError("quantize: images must be finite")
    return _Quantiser(network, steps, operands, 2**bits - 1, percentile).run(images)


def _operands(steps: list[Step]) -> list[Step]:
    """The steps to quantise."""
    others = sorted({step.op for step in steps} - _SERVED)
    if "rescale" in others:
        raise ValueError("quantize: the network is quantised already")
    if others:
        raise ValueError(f"quantize: a network with {', '.join(others)} cannot be quantised")
    found = [step for step in steps if step.op == "adder_conv"] or [
        step for step in steps if step.op == "conv" and step.inputs != (IMAGES,)
    ]
    if not found:
        raise ValueError(
            "quantize: the network has no adder convolution, and no other behind the first layer"
        )
    return found


class _Quantiser:
    """Runs a network step by step on the calibration images, quantising as it goes.

    Outputs keep their names of the original network; each has one layer in the new network for
    every dtype in which it is needed, uint8 and float32.
    """

    def __init__(
        self,
        network: Network,
        steps: list[Step],
        operands: list[Step],
        levels: int,
        percentile: float | None,
    ):
        self.network, self.steps, self.operands = network, steps, operands
        self.levels = levels
        self.percentiles = PERCENTILES if percentile is None else (percentile,)
        self.whole = {step.inputs[0] for step in operands}  # outputs to store as uint8
        for step in reversed(steps):
            if step.op in _PASSING and step.output in self.whole:
                self.whole.add(step.inputs[0])
        self.before: dict[str, np.ndarray] = {}  # outputs of the original network
        self.grids: dict[str, Grid] = {}
        self.forms: dict[str, dict[str, str]] = {}  # to the new layers, by dtype
        self.layers: list[Layer] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.answers: dict[str, np.ndarray] = {}  # outputs of the new layers
        self.rows: list[Operands] = []

    def run(self, images: np.ndarray) -> Quantised:
        old = self.network
        by_name = {layer.name: layer for layer in old.layers}
        self.before[IMAGES] = self.answers[IMAGES] = old.normalised(images)
        self.forms[IMAGES] = {"float32": IMAGES}
        for i, step in enumerate(progress(self.steps, "quantising", "layer")):
            for name in step.layers:
                self.before[name] = by_name[name].answer(self.before, old.arrays)
            convolves = step in self.operands or (
                step.op == "conv" and len(step.layers) > 1 and step.output in self.whole
            )
            if convolves:
                self._convolution(step)
            else:
                for name in step.layers:
                    self._copy(by_name[name])
            self._forget(i + 1)
        layers = tuple(self.layers)
        new = Network(layers, self.arrays, old.image, old.classes, old.mean, old.std)
        return Quantised(new, self.rows, self.operands[0].op == "adder_conv")

    def _forget(self, done: int) -> None:
        """Free outputs that no later step reads."""
        names = {name for step in self.steps[done:] for name in step.sources}
        layers = {layer for name in names for layer in self.forms.get(name, {}).values()}
        self.before = {name: a for name, a in self.before.items() if name in names}
        self.answers = {name: a for name, a in self.answers.items() if name in layers}

    def _add(
        self,
        op: str,
        name: str,
        inputs: list[str],
        arrays: Mapping[str, np.ndarray],
        options: Mapping[str, object],
    ) -> str:
        """Add a layer to the new network and compute its output."""
        names = {role: f"{name}.{role}" for role in arrays}
        self.arrays |= {names[role]: np.ascontiguousarray(a) for role, a in arrays.items()}
        layer = Layer(op, name, tuple(inputs), names, options)
        self.layers.append(layer)
        self.answers[name] = layer.answer(self.answers, self.arrays)
        return name

    def _copy(self, layer: Layer) -> None:
        """Keep the step unchanged, on integers if its output must be uint8."""
        whole = layer.op in _PASSING and layer.name in self.whole
        dtype = "uint8" if whole else "float32"
        inputs = [self._form(name, dtype) for name in layer.inputs]
        arrays = {role: self.network.arrays[name] for role, name in layer.arrays.items()}
        self._add(layer.op, layer.name, inputs, arrays, layer.options)
        self.forms[layer.name] = {dtype: layer.name}
        if whole:
            self.grids[layer.name] = self.grids[layer.inputs[0]]

    def _form(self, name: str, dtype: str) -> str:
        """The new layer that holds an output of the original network in a dtype."""
        forms = self.forms[name]
        if dtype not in forms:
            ((_, source),) = forms.items()
            if dtype == "uint8":
                grid = self.grids[name] = self._grid(name)
                scale, offset, low, high = 1 / grid.scale, grid.zero, 0.0, float(grid.levels)
            else:
                grid = self.grids[name]
                scale, offset, low, high = grid.scale, grid.low, -_MOST, _MOST
            each = np.ones(self.before[name].shape[1], np.float32)
            arrays = {"scale": each * np.float32(scale), "offset": each * np.float32(offset)}
            options = {"low": low, "high": high, "dtype": dtype}
            forms[dtype] = self._add("rescale", f"{name}.{dtype}", [source], arrays, options)
        return forms[dtype]

    def _grid(self, name: str) -> Grid:
        values = self.before[name].ravel()
        if values.size > _SAMPLE:
            values = values[np.random.default_rng(0).integers(values.size, size=_SAMPLE)]
        ends = np.percentile(values, [(100 - share, share) for share in self.percentiles])
        grids = [Grid.between(low, high, self.levels) for low, high in ends]
        if len(grids) == 1:
            return grids[0]
        return min(grids, key=lambda grid: np.square(grid.nearest(values) - values).mean())

    def _convolution(self, step: Step) -> None:
        """A convolution followed by a rescale, which replaces its epilogue."""
        joined = len(step.layers) > 1
        name = step.layers[0] if joined else f"{step.output}.sums"
        kind = self._adder_conv if step.op == "adder_conv" else self._conv
        unit, constant = kind(step, name)
        sums = self.answers[name] * unit + np.reshape(constant, (-1, 1, 1))
        slope, shift = _match(sums, self.before[step.layers[0]])
        self._rescale(step, name, slope * unit, slope * constant + shift)

    def _adder_conv(self, step: Step, name: str) -> tuple[float, np.ndarray]:
        """Sums in int32, with the scale and per-filter offset that restore the original sums."""
        (source,) = step.inputs
        x, grid, options = self._form(source, "uint8"), self.grids[source], dict(step.options)
        places = grid.places(step.arrays["weight"].astype(np.float64))
        within = np.clip(places, 0, grid.levels)
        excess = np.abs(places - within).sum(axis=(1, 2, 3))
        if grid.zero and "padding" in options:
            _, sides, _ = window_of(step.op, options, step.arrays["weight"].shape[2:])
            del options["padding"]
            if any(map(any, sides)):
                border = {"border": [list(side) for side in sides], "value": grid.zero}
                x = self._add("pad", f"{name}.padded", [x], {}, border)
        bits = grid.levels.bit_length()
        if bits <= packing.MOST_BITS:
            options["bits"] = bits
        weight = np.rint(within).astype(np.uint8)
        # The mean of the sums is subtracted as well, because it would cost float32 its precision.
        layer = Layer("adder_conv", name, (x,), {"weight": "weight"}, options)
        mean = np.rint(layer.answer(self.answers, {"weight": weight}).mean(axis=(0, 2, 3)))
        bias = -np.rint(excess) - mean
        if np.abs(bias).max() > np.iinfo(np.int32).max:
            raise ValueError(
                f"quantize: layer {name!r}: its weights are too large for int32 sums, with inputs "
                f"from {grid.low:g} to {grid.high:g}"
            )
        arrays = {"weight": weight, "bias": bias.astype(np.int32)}
        self._add("adder_conv", name, [x], arrays, options)
        self._note(name, source, (places != within).mean())
        constant = grid.scale * (-excess - bias)
        return grid.scale, constant + step.arrays.get("bias", 0)

    def _conv(self, step: Step, name: str) -> tuple[float, np.ndarray]:
        """Sums of rounded operands as float32, or of the original ones if it is not quantised."""
        (source,) = step.inputs
        weight = step.arrays["weight"]
        if step in self.operands:
            self._form(source, "uint8")
            most = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
            unit = np.where(most > 0, most, 1) / (self.levels // 2)
            weight = (np.rint(weight / unit) * unit).astype(np.float32)
            self._note(name, source, 0.0)
        self._add("conv", name, [self._form(source, "float32")], {"weight": weight}, step.options)
        return 1.0, np.zeros(len(weight)) + step.arrays.get("bias", 0)

    def _note(self, name: str, source: str, clipped_weights: float) -> None:
        grid = self.grids[source]
        places = grid.places(self.before[source])
        beyond = ((places < -0.5) | (places > grid.levels + 0.5)).mean()
        self.rows.append(Operands(name, grid, float(beyond), float(clipped_weights)))

    def _rescale(self, step: Step, sums: str, unit: np.ndarray, constant: np.ndarray) -> None:
        """The epilogue of a step, whose sums were ``sums * unit + constant``."""
        old, inputs, options = step.epilogue, [sums], {}
        scale = np.ones(len(unit)) if old.scale is None else old.scale.astype(np.float64)
        offset = (constant - (0 if old.origin is None else old.origin)) * scale
        offset = offset + (0 if old.offset is None else old.offset)
        scale = scale * unit
        low, high, dtype = max(old.low, -_MOST), min(old.high, _MOST), "float32"
        if old.residual is not None:
            form, residual = next(iter(self.forms[old.residual].items()))
            inputs.append(residual)
            options["residual_scale"] = old.residual_scale
            if form == "uint8":
                grid = self.grids[old.residual]
                options["residual_scale"] *= grid.scale
                offset = offset + grid.low * old.residual_scale
        if step.output in self.whole:
            grid = self.grids[step.output] = self._grid(step.output)
            options = {name: value / grid.scale for name, value in options.items()}
            scale, offset = scale / grid.scale, grid.places(offset)
            low, high = max(grid.places(low), 0.0), min(grid.places(high), float(grid.levels))
            dtype = "uint8"
        arrays = {"scale": scale.astype(np.float32), "offset": offset.astype(np.float32)}
        options |= {"low": low, "high": high, "dtype": dtype}
        self._add("rescale", step.output, inputs, arrays, options)
        self.forms[step.output] = {dtype: step.output}


def _match(sums: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and shift that give each filter's sums the wanted mean and standard deviation."""
    over = {"axis": (0, 2, 3), "dtype": np.float64}
    deviation = sums.std(**over)
    varies = deviation > 0
    slope = np.ones(len(deviation))
    slope[varies] = wanted.std(**over)[varies] / deviation[varies]
    slope = np.clip(slope, *_SLOPES)
    return slope, wanted.mean(**over) - slope * sums.mean(**over)
