"""Builder of an ONNX graph's nodes and constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mulfree_cupy.inference.network import IMAGES, Layer, Network
from mulfree_cupy.inference.onnx.functions import DOMAIN, FUNCTIONS


class Graph:
    """An ONNX graph under construction, beginning with the normalisation of the images.

    Parameters
    ----------
    onnx : module
    network : Network
    taken : iterable of str
        Names that no node or constant may have.

    Attributes
    ----------
    nodes, constants : lists of onnx.NodeProto and onnx.TensorProto
    functions : dict of str to onnx.FunctionProto
        Functions that nodes call.
    answers : dict of str to str
        Graph outputs by the name of the layer.
    """

    def __init__(self, onnx: Any, network: Network, taken: Iterable[str]):
        self.network = network
        self.nodes, self.constants, self.functions = [], [], {}
        self._onnx, self._taken = onnx, set(taken)
        self._shared: dict[str, str] = {}  # constants, by the names of the network's arrays
        mean, std = (
            self.constant(array.astype(np.float32)[:, None, None], name)
            for name, array in (("mean", network.mean), ("std", network.std))
        )
        centred = self.node("Sub", [IMAGES, mean], "centred")
        self.answers = {IMAGES: self.node("Div", [centred, std], "normalised")}

    def node(self, op: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:
        """Add a node and return its only output, named `name` with a suffix if taken."""
        output = self._free(name)
        make = self._onnx.helper.make_node
        self.nodes.append(make(op, list(inputs), [output], name=output, **attributes))
        return output

    def call(self, function: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:
        """The output of one of `FUNCTIONS`."""
        if function not in self.functions:
            self.functions[function] = self._onnx.parser.parse_function(FUNCTIONS[function])
        return self.node(function, inputs, name, domain=DOMAIN, **attributes)

    def constant(self, array: Any, name: str) -> str:
        name = self._free(name)
        array = np.ascontiguousarray(array)
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def weight(self, layer: Layer, role: str, form: Callable | None = None) -> str:
        """An array of a layer as a constant, shared by all layers that use it."""
        name = layer.arrays[role]
        if form is not None or (role == "weight" and "mask" in layer.arrays):
            array = self.array(layer, role)
            return self.constant(array if form is None else form(array), name)
        if name not in self._shared:
            self._shared[name] = self.constant(self.array(layer, role), name)
        return self._shared[name]

    def array(self, layer: Layer, role: str) -> np.ndarray:
        """The array, masked, and as float32 if it is floating-point."""
        array = self.network.arrays[layer.arrays[role]]
        if role == "weight" and "mask" in layer.arrays:
            array = array * self.network.arrays[layer.arrays["mask"]]
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def dtype(self, answer: str) -> np.dtype:
        """Of a layer's answer."""
        return self.network.forms[answer][1]

    def cast(self, x: str, dtype: Any) -> str:
        to = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", [x], f"{x}/{np.dtype(dtype)}", to=to)

    def floats(self, layer: Layer, x: str) -> str:
        """The layer's first input as float32."""
        return x if self.dtype(layer.inputs[0]).kind == "f" else self.cast(x, np.float32)

    def _free(self, name: str) -> str:
        free, count = name, 1
        while not free or free in self._taken:
            count += 1
            free = f"{name}/{count}"
        self._taken.add(free)
        return free
