"""A network in evaluation mode, traced on the tape, as layers of `inference.Network`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.autograd.tensor import Node, from_first_to_last
from mulfree_cupy.geometry import pair, window_options
from mulfree_cupy.inference.network import IMAGES, Layer, Network
from mulfree_cupy.nn.module import Module


def describe(model: Module, channels: int, size: int) -> list[Layer]:
    """The layers of a network in evaluation mode, in topological order.

    Parameters
    ----------
    model : Module
        With NumPy weights. It is run once and left in evaluation mode.
    channels, size : int
        Of the images, which are square.

    Returns
    -------
    list of Layer
        Their arrays have the names of `Module.state_dict`.

    Raises
    ------
    NotImplementedError
        If the network has an operation without a layer.

    Examples
    --------
    >>> from mulfree_cupy import models
    >>> from mulfree_cupy.nn.description import describe
    >>> for layer in describe(models.build("conv-lenet", size=8), 1, 8)[:3]:
    ...     print(layer.name, layer.op, layer.inputs, layer.arrays["weight"])
    conv1 conv ('images',) conv1.weight
    bn1 batch_norm ('conv1',) bn1.weight
    conv2 conv ('bn1',) conv2.weight
    """
    images = Tensor(np.zeros((1, channels, size, size), np.float32), requires_grad=True)
    answer = model.eval()(images)
    # Layers may have replaced their arrays when run, so these are named only now.
    known = {id(value): name for name, _, _, value in model.named_state()}
    reader = _Reader(known, images)
    for tensor in from_first_to_last(answer):
        if tensor.node is not None:
            reader.read(tensor, tensor.node)
    return reader.layers


def network_of(
    model: Module,
    channels: int,
    size: int,
    *,
    classes: Sequence[str] | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Network:
    """A network for `mulfree_cupy.inference`, with copies of the weights.

    Parameters
    ----------
    model, channels, size
        As in `describe`.
    classes : sequence of str, optional
        Their names; by default "0", "1", ...
    mean, std : number or one per channel
        Of a pixel: the network's input is ``(images - mean) / std``.

    Returns
    -------
    inference.Network

    Raises
    ------
    NotImplementedError
        As `describe`.
    ValueError
        If the number of classes, means or deviations does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy import inference, models
    >>> from mulfree_cupy.nn.description import network_of
    >>> network = network_of(models.build("adder-lenet", size=8), 1, 8, mean=127.5, std=64)
    >>> inference.Predictor(network)(np.zeros((5, 1, 8, 8), np.uint8)).shape
    (5, 10)
    """
    layers = describe(model, channels, size)
    if classes is None:
        with no_grad():
            answer = model(Tensor(np.zeros((1, channels, size, size), np.float32)))
        classes = [str(i) for i in range(answer.shape[1])]
    statistics = (np.array(np.broadcast_to(np.asarray(a, float), channels)) for a in (mean, std))
    return Network(
        tuple(layers), model.state_dict(), (channels, size, size), tuple(classes), *statistics
    )


class _Reader:
    """Converts the tape's operations, in order, to `layers`."""

    def __init__(self, known: dict[int, str], images: Tensor):
        self.known = known  # names of parameters and buffers
        self.answers = {id(images): IMAGES}
        self.weights: dict[int, dict[str, str]] = {}  # computed from parameters only
        self.layers: list[Layer] = []

    def read(self, tensor: Tensor, node: Node) -> None:
        if all(self._weight(source) is not None for source in node.inputs):
            self.weights[id(tensor)] = self._of_weights(node)
        elif node.operation == "add" and self._weight(node.inputs[1]) is not None:
            self._add_bias(tensor, node)
        else:
            op, options = _LAYERS.get(node.operation, _unknown)(node)
            inputs, arrays = self._sources(op, node)
            name = self._free_name(op, arrays)
            self.layers.append(Layer(op, name, inputs, arrays, options))
            self.answers[id(tensor)] = name

    def _weight(self, tensor: Tensor) -> dict[str, str] | None:
        if id(tensor) in self.known:
            return {"weight": self.known[id(tensor)]}
        return self.weights.get(id(tensor))

    def _of_weights(self, node: Node) -> dict[str, str]:
        (weight,) = map(self._weight, node.inputs)
        if node.operation == "masked":
            return {**weight, "mask": self.known[id(node.options["mask"])]}
        if node.operation == "transpose":  # of a linear layer's weight
            return weight
        _unknown(node)

    def _add_bias(self, tensor: Tensor, node: Node) -> None:
        """The bias of a linear layer, which is a separate operation on the tape."""
        source, bias = node.inputs
        last = self.layers[-1] if self.layers else None
        if last is None or last.op != "linear" or self.answers.get(id(source)) != last.name:
            _unknown(node)
        arrays = {**last.arrays, "bias": self._weight(bias)["weight"]}
        self.layers[-1] = Layer(last.op, last.name, last.inputs, arrays, last.options)
        self.answers[id(tensor)] = last.name

    def _sources(self, op: str, node: Node) -> tuple[tuple[str, ...], dict[str, str]]:
        """The inputs of an operation, and its arrays by role."""
        inputs, arrays, roles = [], {}, iter(("weight", "bias"))
        for source in node.inputs:
            weight = self._weight(source)
            if weight is None:
                inputs.append(self.answers[id(source)])
            else:
                arrays |= {next(roles): weight.pop("weight"), **weight}
        buffers = dict(node.options)
        if op == "winograd_conv":
            buffers["mask"] = node.options["weights"].mask
        for role in ("mask", "shifts", "mean", "variance"):
            if role in buffers:
                arrays[role] = self.known[id(buffers[role])]
        return tuple(inputs), arrays

    def _free_name(self, op: str, arrays: dict[str, str]) -> str:
        """The name of the module that has these arrays, or of the operation with a number."""
        array = arrays.get("weight", arrays.get("shifts"))
        name = f"{op}1" if array is None else array.rpartition(".")[0] or op
        taken, count = {layer.name for layer in self.layers}, 1
        stem = op if array is None else f"{name}."
        while name in taken:
            count += 1
            name = f"{stem}{count}"
        return name


def _unknown(node: Node) -> Any:
    raise NotImplementedError(
        f"no layer of a trained network computes {node.operation!r} as it is used here, on "
        f"{', '.join(str(source.shape) for source in node.inputs)}"
    )


def _with(*options: str) -> Callable[[Node], tuple[str, dict[str, Any]]]:
    """The layer's options, restricted to these."""
    return lambda node: (
        node.operation,
        {name: _plain(node.options[name]) for name in options if name in node.options},
    )


def _plain(value: Any) -> Any:
    """As a JSON value."""
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _with_window(*options: str) -> Callable[[Node], tuple[str, dict[str, Any]]]:
    """As `_with`; a padding by name becomes numbers."""

    def read(node: Node) -> tuple[str, dict[str, Any]]:
        op, given = _with(*options)(node)
        if isinstance(given.get("padding"), str):
            steps = {name: given[name] for name in _STEPS if name in given}
            _, sides, _ = window_options(op, _kernel(node), **steps)
            given["padding"] = _plain(sides)
        return op, given

    return read


def _kernel(node: Node) -> tuple[int, int]:
    if node.operation == "winograd_conv":
        return 3, 3
    if "kernel_size" in node.options:
        return pair(node.operation, "kernel_size", node.options["kernel_size"], 1)
    return node.inputs[1].shape[2:]


def _winograd_conv(node: Node) -> tuple[str, dict[str, Any]]:
    _, options = _with_window("padding", "relu")(node)
    return "winograd_conv", {**options, "points": node.options["weights"].points}


def _linear(node: Node) -> tuple[str, dict[str, Any]]:
    if node.inputs[0].ndim != 2:
        _unknown(node)
    return "linear", {}


def _add(node: Node) -> tuple[str, dict[str, Any]]:
    if node.inputs[0].shape != node.inputs[1].shape:
        _unknown(node)
    return "add", {}


def _mean(node: Node) -> tuple[str, dict[str, Any]]:
    if node.options != {"axis": (2, 3), "keepdims": False}:
        _unknown(node)
    return "global_average_pool", {}


def _reshape(node: Node) -> tuple[str, dict[str, Any]]:
    (source,) = node.inputs
    if source.ndim != 4 or tuple(node.options["shape"]) not in ((1, -1), (1, source.size)):
        _unknown(node)
    return "flatten", {}


def _concatenate(node: Node) -> tuple[str, dict[str, Any]]:
    if node.options["axis"] != 1:
        _unknown(node)
    return "concatenate", {}


_STEPS = "stride", "padding", "dilation"
_WINDOW = *_STEPS, "groups"
_POOL = "kernel_size", "stride", "padding"
_LAYERS = {
    "conv": _with_window(*_WINDOW),
    "adder_conv": _with_window(*_WINDOW),
    "binary_conv": _with_window(*_WINDOW, "scale"),
    "shift": _with("stride"),
    "shift_conv": _with("stride"),
    "shift_adder_conv": _with("stride"),
    "winograd_conv": _winograd_conv,
    "matmul": _linear,
    "batch_norm": _with("eps", "relu"),
    "relu": _with(),
    "add": _add,
    "concatenate": _concatenate,
    "max_pool": _with_window(*_POOL),
    "avg_pool": _with_window(*_POOL),
    "mean": _mean,
    "reshape": _reshape,
}
