"""Cost of a network per image: operations, parameters, bytes and energy, step by step.

Steps are counted as executed: normalisations and sums after a convolution are fused into its step,
and only the output of a step is stored. There are two rules:

- ``"everything"``: each layer as it is, without pruned weights, with Winograd transforms,
  normalisations, biases, residual sums and the sums and factors of pooling;
- ``"papers"``, as in the published tables: only convolutions and fully connected layers, all
  counted as the kind of the majority, so that an AdderNet with ordinary first layer and classifier
  has no multiplications; without products with a zero weight or activation, and without transforms.

Comparisons (ReLU, maxima, signs) are not counted, nor is the normalisation of the image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike

import numpy as np

from mulfree_cupy.geometry import pair
from mulfree_cupy.inference.folding import Step, fold
from mulfree_cupy.inference.network import Layer, Network
from mulfree_cupy.report import energy, output
from mulfree_cupy.report.convolutions import (
    FORMS,
    Convolution,
    activation_density,
    operations_of,
)
from mulfree_cupy.report.energy import Operations

RULES = "everything", "papers"


@dataclass(frozen=True)
class StepCounts:
    """The costs of one step.

    Parameters
    ----------
    name, op : str
        The names of its layers, and the operation of the first.
    shape : tuple of ints
        Of its output, without the batch.
    parameters : int
        Number of parameters, without pruned ones.
    weight_bytes : int
        Of these as stored: signs as bits, and a mask bit for each prunable weight.
    activation_bytes : int
        Of its output.
    convolution : Convolution or None
        Its terms.
    moves : int
        Numbers moved by shifts, without arithmetic.
    others : Operations
        Operations besides the terms.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    weight_bytes: int
    activation_bytes: int
    convolution: Convolution | None
    moves: int
    others: Operations

    @property
    def operations(self) -> Operations:
        """All operations, by the rule ``"everything"``."""
        return self.others + (self.convolution.operations if self.convolution else Counter())


@dataclass(frozen=True)
class Counts:
    """A network's steps in order of execution, and their totals."""

    steps: list[StepCounts]

    @property
    def convolutions(self) -> list[Convolution]:
        """The convolutions of all steps that have one."""
        return [step.convolution for step in self.steps if step.convolution]

    @property
    def parameters(self) -> int:
        return sum(step.parameters for step in self.steps)

    @property
    def weight_bytes(self) -> int:
        return sum(step.weight_bytes for step in self.steps)

    @property
    def activation_bytes(self) -> int:
        return sum(step.activation_bytes for step in self.steps)

    @property
    def moves(self) -> int:
        return sum(step.moves for step in self.steps)

    @property
    def term(self) -> str:
        """The most frequent kind of term."""
        terms = Counter()
        for convolution in self.convolutions:
            terms[FORMS[convolution.form]] += convolution.direct
        return max(terms, key=terms.get, default="product")

    def by_step(self, rule: str = "everything") -> list[Operations]:
        """The operations of each step.

        Raises
        ------
        ValueError
            If there is no such rule.
        """
        if rule not in RULES:
            raise ValueError(f"Counts: rule must be one of {', '.join(RULES)}, got {rule!r}")
        if rule == "everything":
            return [step.operations for step in self.steps]
        term = self.term
        return [_published(step.convolution, term) for step in self.steps]

    def operations(self, rule: str = "everything") -> Operations:
        """The sum over all steps."""
        return sum(self.by_step(rule), Counter())

    def number(self, operation: str, rule: str = "everything") -> int:
        """Number of additions, multiplications or XNORs of any type: ``"addition"``, ...

        Examples
        --------
        >>> from mulfree_cupy import models
        >>> from mulfree_cupy.nn.description import network_of
        >>> from mulfree_cupy.report.counts import count
        >>> counts = count(network_of(models.build("adder-resnet20"), 3, 32))
        >>> [counts.number(what, "papers") for what in ("multiplication", "addition")]
        [0, 81626368]
        """
        return number(self.operations(rule), operation)

    @property
    def energy(self) -> float:
        """Energy of all arithmetic in joules, by the published table."""
        return energy.arithmetic(self.operations())

    @property
    def memory_energy(self) -> float:
        """Energy in joules of a small SRAM that holds everything: weights read once, outputs
        written and read once.

        A lower bound; DRAM takes 130 to 260 times as much.
        """
        return energy.memory(self.weight_bytes + 2 * self.activation_bytes)


def number(operations: Operations, operation: str) -> int:
    """Number of operations of one kind, of any type."""
    return round(sum(n for (name, _), n in operations.items() if name == operation))


def table(networks: Mapping[str, Counts], rule: str = "everything") -> str:
    """A Markdown table with one row per network.

    Examples
    --------
    >>> from mulfree_cupy import models
    >>> from mulfree_cupy.nn.description import network_of
    >>> from mulfree_cupy.report.counts import count, table
    >>> network = network_of(models.build("adder-lenet", size=8), 1, 8)
    >>> table({"adder-lenet": count(network)}).splitlines()[2][:30]
    '| adder-lenet |     44,662 |  '
    """
    head = ["network", "parameters", "weights KiB", "outputs KiB", *_COLUMNS]
    rows = [
        [name, *_sizes(counts), *_cells(counts.operations(rule), counts.moves)]
        for name, counts in networks.items()
    ]
    return output.table(head, rows)


def table_of_steps(counts: Counts, rule: str = "everything") -> str:
    """A Markdown table with one row per step and the total."""
    head = ["layers", "output", "parameters", "weights KiB", "outputs KiB", *_COLUMNS]
    everything = counts.operations(rule)
    rows = [
        [step.name, " x ".join(map(str, step.shape)), *_sizes(step), *_cells(each, step.moves)]
        for step, each in zip(counts.steps, counts.by_step(rule), strict=True)
    ]
    rows.append(["all", "", *_sizes(counts), *_cells(everything, counts.moves)])
    return output.table(head, rows)


def write(path: str | PathLike, networks: Mapping[str, Counts], rule: str = "everything") -> None:
    """Write the counts of all steps as CSV."""
    head = ["network", "layers", "operation", "parameters", "weight_bytes", "activation_bytes"]
    head += [*_OPERATIONS, "moves", "joules"]
    rows = []
    for name, counts in networks.items():
        for step, each in zip(counts.steps, counts.by_step(rule), strict=True):
            sizes = step.parameters, step.weight_bytes, step.activation_bytes
            numbers = (number(each, operation) for operation in _OPERATIONS)
            cells = (*sizes, *numbers, step.moves, energy.arithmetic(each))
            rows.append([name, step.name, step.op, *cells])
    output.write_table(path, head, rows)


_OPERATIONS = "multiplication", "addition", "xnor"
_COLUMNS = "multiplications", "additions", "XNORs", "moves", "energy µJ"


def _sizes(counted: StepCounts | Counts) -> list[str]:
    kib = (counted.weight_bytes / 1024, counted.activation_bytes / 1024)
    return [f"{counted.parameters:,}", *(f"{size:,.1f}" for size in kib)]


def _cells(operations: Operations, moves: int) -> list[str]:
    numbers = [f"{number(operations, operation):,}" for operation in _OPERATIONS]
    return [*numbers, f"{moves:,}", f"{1e6 * energy.arithmetic(operations):,.3f}"]


def _published(convolution: Convolution | None, term: str) -> Operations:
    if convolution is None:
        return Counter()
    of_one = operations_of(term, convolution.dtype)
    return Counter({operation: n * convolution.dynamic for operation, n in of_one.items()})


def count(network: Network, images: np.ndarray | None = None) -> Counts:
    """Count the cost of a network per image.

    Parameters
    ----------
    network : inference.Network
    images : array, shape (N, C, H, W), optional
        Raw images, on which the activation density of prunable layers is measured. By default it is
        1.

    Returns
    -------
    Counts

    Examples
    --------
    >>> from mulfree_cupy import models
    >>> from mulfree_cupy.nn.description import network_of
    >>> from mulfree_cupy.report.counts import count
    >>> counts = count(network_of(models.build("conv-lenet", size=8), 1, 8))
    >>> counts.parameters, counts.steps[0].name, counts.number("multiplication")
    (44662, 'conv1 + bn1', 206462)
    """
    answers = None if images is None else network.answers(network.normalised(images))
    layers = {layer.name: layer for layer in network.layers}
    return Counts(
        [_count(network, step, [layers[n] for n in step.layers], answers) for step in fold(network)]
    )


def _count(
    network: Network, step: Step, layers: list[Layer], answers: Mapping[str, np.ndarray] | None
) -> StepCounts:
    shape, dtype = network.forms[step.output]
    moves, convolution, others = 0, None, Counter()
    for layer in layers:
        answer, answer_type = network.forms[layer.name]
        if "shifts" in layer.arrays:
            moves += network.forms[layer.inputs[0]][0][0] * math.prod(answer[1:])
        if layer.op in SUMS:
            convolution = _convolution(network, layer, answers)
        kind = answer_type.name if answer_type.kind == "f" else "float32"  # for rescale
        for operation, each in OTHERS[layer.op](network, layer).items():
            others[operation, kind] += each * math.prod(answer)
    stored = 0 if step.op == "flatten" else math.prod(shape) * dtype.itemsize
    kept = [_kept(network, layer) for layer in layers]
    return StepCounts(
        step.title,
        step.op,
        shape,
        sum(parameters for parameters, _ in kept),
        sum(nbytes for _, nbytes in kept),
        stored,
        convolution,
        moves,
        +others,
    )


def _kept(network: Network, layer: Layer) -> tuple[int, int]:
    """Parameters of a layer, and their bytes."""
    parameters = nbytes = 0
    for role, name in layer.arrays.items():
        array = network.arrays[name]
        if role not in ("weight", "bias", "scale", "offset"):
            continue
        left = array.size
        if role == "weight" and "mask" in layer.arrays:
            mask = network.arrays[layer.arrays["mask"]]
            left = int(mask.sum())
            nbytes += 0 if left == mask.size else -(-mask.size // 8)
        parameters += left
        if role == "weight" and layer.op == "binary_conv":
            scales = len(array) if layer.options.get("scale", True) else 0
            nbytes += -(-left // 8) + scales * array.itemsize
        else:
            nbytes += left * array.itemsize
    return parameters, nbytes


def _convolution(
    network: Network, layer: Layer, answers: Mapping[str, np.ndarray] | None
) -> Convolution:
    """The terms of a layer; activations are measured if outputs for images are given."""
    weight = network.arrays[layer.arrays["weight"]]
    form, mask = SUMS[layer.op], layer.arrays.get("mask")
    details: dict = {"dtype": network.forms[layer.inputs[0]][1].name}
    measure = {}
    if layer.op == "winograd_conv":
        filters, channels = weight.shape[2:]
        kernel = 3
        details |= {"m": len(weight) - 2, "points": layer.options["points"]}
        measure = {name: details[name] for name in ("m", "points")}
        measure["padding"] = layer.options.get("padding", 1)
        if layer.options.get("relu"):
            form = "winograd-relu"
    else:
        filters, channels, *window = weight.shape
        kernel = tuple(window) or 1
        if mask:
            form = "spatial"
    if mask:
        details["weight_density"] = float(network.arrays[mask].mean())
    if answers and form in ("spatial", "winograd-relu"):
        x = answers[layer.inputs[0]]
        details["activation_density"] = activation_density(x, form, **measure)
    size = network.forms[layer.name][0][1:] or (1, 1)
    return Convolution(layer.name, channels, filters, size, kernel, form, **details)


# The form of `Convolution` of each layer, which a mask or a ReLU may change.
SUMS = {
    "conv": "dense",
    "linear": "dense",
    "adder_conv": "adder",
    "binary_conv": "binary",
    "shift_conv": "dense",
    "shift_adder_conv": "adder",
    "winograd_conv": "native",
}


def _bias(network: Network, layer: Layer) -> dict[str, int]:
    return {"addition": int("bias" in layer.arrays)}


def _scaled(network: Network, layer: Layer) -> dict[str, int]:
    """Operations per number: scale and offset; residual addition; and the residual's scale."""
    residual = len(layer.inputs) - 1
    factor = int("residual_scale" in layer.options)
    return {"multiplication": 1 + residual * factor, "addition": 1 + residual}


def _filter_scale(network: Network, layer: Layer) -> dict[str, int]:
    return {"multiplication": int(layer.options.get("scale", True))}


def _window(network: Network, layer: Layer) -> dict[str, int]:
    size = math.prod(pair("count", "kernel_size", layer.options["kernel_size"], 1))
    return {"multiplication": 1, "addition": size}


def _mean(network: Network, layer: Layer) -> dict[str, int]:
    return {"multiplication": 1, "addition": math.prod(network.forms[layer.inputs[0]][0][1:])}


# Operations per output number, besides the terms of sums.
OTHERS: dict[str, Callable[[Network, Layer], dict[str, int]]] = {
    **dict.fromkeys(SUMS, _bias),
    "binary_conv": _filter_scale,
    "batch_norm": _scaled,
    "rescale": _scaled,
    "add": lambda network, layer: {"addition": 1},
    "avg_pool": _window,
    "global_average_pool": _mean,
    **dict.fromkeys(
        ("shift", "pad", "relu", "concatenate", "max_pool", "flatten"), lambda network, layer: {}
    ),
}
