"""A trained network as an ONNX model of standard operators."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from mulfree_cupy import files
from mulfree_cupy.inference.file import ENTRY, as_json
from mulfree_cupy.inference.network import IMAGES, Network
from mulfree_cupy.inference.onnx.functions import DOMAIN, OPSET
from mulfree_cupy.inference.onnx.graph import Graph
from mulfree_cupy.inference.onnx.layers import WRITERS
from mulfree_cupy.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

LOGITS = "logits"  # the model's output
IR_VERSION = 8  # the first that has functions


def save_onnx(path: str | os.PathLike, network: Network) -> None:
    """Write the model of `to_onnx` atomically."""
    model = to_onnx(network)
    with files.replaced(path) as file:
        file.write(model.SerializeToString())


def to_onnx(network: Network) -> ModelProto:
    """The network as an ONNX model, for any number of images.

    Parameters
    ----------
    network : Network

    Returns
    -------
    onnx.ModelProto
        From ``images``, raw pixels as float32 of shape (N, C, H, W), to ``logits``, of shape
        (N, number of classes). Its metadata hold ``classes`` and ``network``, the description that
        `save_npz` writes, as JSON. All operators are standard ones: adder and Winograd convolutions
        are functions defined in the model.

    Raises
    ------
    ImportError
        If the package onnx is not installed.
    ValueError
        If the network cannot be expressed in ONNX.

    Examples
    --------
    >>> from mulfree_cupy import inference
    >>> network = inference.read("mulfree-run/checkpoint.npz")                   # doctest: +SKIP
    >>> [node.op_type for node in inference.to_onnx(network).graph.node][:3]     # doctest: +SKIP
    ['Sub', 'Div', 'AdderConv']
    """
    try:
        import onnx
    except ImportError:
        raise ImportError(
            "to_onnx needs the package onnx: pip install 'mulfree_cupy[export]'"
        ) from None
    graph = Graph(onnx, network, taken=[IMAGES, LOGITS])
    for layer in network.layers:
        inputs = [graph.answers[name] for name in layer.inputs]
        graph.answers[layer.name] = WRITERS[layer.op](graph, layer, *inputs)
    graph.nodes.append(onnx.helper.make_node("Identity", [graph.answers[layer.name]], [LOGITS]))
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape])
        for name, shape in ((IMAGES, network.image), (LOGITS, [len(network.classes)]))
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "network", values[:1], values[1:], graph.constants),
        functions=graph.functions.values(),
        opset_imports=[onnx.helper.make_opsetid(*pair) for pair in (("", OPSET), (DOMAIN, 1))],
        ir_version=IR_VERSION,
        producer_name="mulfree_cupy",
        producer_version=__version__,
    )
    facts = {"classes": json.dumps(network.classes), ENTRY: as_json(network)}
    onnx.helper.set_model_props(model, facts)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"to_onnx: this network is no valid ONNX model: {error}") from error
    return model
