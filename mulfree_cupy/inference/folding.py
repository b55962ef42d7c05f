"""Layers fused into steps: what follows a convolution becomes its epilogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mulfree_cupy.inference.network import Layer, Network
from mulfree_cupy.ops.batch_norm import scale_of

# Operations whose CPU kernels have an `Epilogue`. A Winograd convolution folds scale and offset
# into weights and bias; its epilogue has only the residual and the ReLU.
WITH_EPILOGUE = "conv", "adder_conv", "binary_conv", "shift_conv", "shift_adder_conv", "linear"


@dataclass(frozen=True, eq=False)
class Epilogue:
    """The operations applied to a step's sums before they are stored.

    ``clip((sum - origin) * scale + offset + residual * residual_scale, low, high)``, rounded if the
    output is uint8. The arrays hold one number per filter, None for 0, 1 and 0; `residual` is the
    name of an output. An adder's sums are many standard deviations away from 0, so the origin is
    subtracted first.
    """

    origin: np.ndarray | None = None
    scale: np.ndarray | None = None
    offset: np.ndarray | None = None
    residual: str | None = None
    residual_scale: float = 1.0
    low: float = -np.inf
    high: float = np.inf

    @property
    def is_none(self) -> bool:
        """Whether the sums are stored unchanged."""
        return self.is_open and self.origin is self.scale is self.offset is None

    @property
    def is_open(self) -> bool:
        """Whether a sum or a clip may follow."""
        return self.residual is None and self.low == -np.inf and self.high == np.inf


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a kernel, for one layer or for several.

    Parameters
    ----------
    op : str
        Operation of its first layer.
    layers : tuple of str
        The names of its layers; the last one's output is the step's.
    inputs : tuple of str
        Names of its inputs, without the residual.
    arrays : dict of str to array
        By their role in the operation.
    options : dict
    epilogue : Epilogue
    """

    op: str
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]
    options: Mapping[str, Any]
    epilogue: Epilogue = field(default_factory=Epilogue)

    @property
    def output(self) -> str:
        return self.layers[-1]

    @property
    def title(self) -> str:
        return title(self.layers)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all its inputs, with the residual."""
        residual = self.epilogue.residual
        return self.inputs if residual is None else (*self.inputs, residual)


def title(layers: Sequence[str]) -> str:
    """The names of a step's layers, with their common prefix once."""
    parent = layers[0].rpartition(".")[0] + "."
    return " + ".join([layers[0], *(name.removeprefix(parent) for name in layers[1:])])


def fold(network: Network) -> list[Step]:
    """The steps of a network, in topological order."""
    uses = Counter(name for layer in network.layers for name in layer.inputs)
    steps: dict[str, Step] = {}  # by the name of the output
    for layer in network.layers:
        for host in layer.inputs:
            joined = uses[host] == 1 and host in steps and _joined(steps[host], layer, network)
            if joined:  # at the layer's position, after the residual is computed
                del steps[host]
                steps[layer.name] = joined
                break
        else:
            arrays = {role: network.arrays[name] for role, name in layer.arrays.items()}
            if layer.op == "conv" and "mask" in arrays:
                arrays["weight"] = arrays["weight"] * arrays.pop("mask")
            steps[layer.name] = Step(layer.op, (layer.name,), layer.inputs, arrays, layer.options)
    return list(steps.values())


def _joined(step: Step, layer: Layer, network: Network) -> Step | None:
    """The step fused with the next layer, or None if its epilogue cannot hold it."""
    join = _JOINS.get(layer.op)
    others = [name for name in layer.inputs if name != step.output]
    if join is None or len(others) != len(layer.inputs) - 1 or not step.epilogue.is_open:
        return None
    joined = join(step, layer, network, *others)
    return joined and replace(joined, layers=(*step.layers, layer.name))


def _batch_norm(step: Step, layer: Layer, network: Network, residual: str | None = None):
    if layer.inputs[0] != step.output or not step.epilogue.is_none:
        return None  # it is the residual, or scaled already
    weight, bias, mean, variance = (
        network.arrays[layer.arrays[role]] for role in ("weight", "bias", "mean", "variance")
    )
    scale = scale_of(weight, variance, layer.options["eps"])
    low = 0.0 if layer.options["relu"] else -np.inf
    if step.op == "winograd_conv":
        arrays = dict(step.arrays)
        arrays["weight"] = arrays["weight"] * scale[:, None]
        arrays["bias"] = bias + (arrays.get("bias", 0) - mean) * scale
        return replace(step, arrays=arrays, epilogue=Epilogue(residual=residual, low=low))
    if step.op in WITH_EPILOGUE:
        return replace(step, epilogue=Epilogue(mean, scale, bias, residual, low=low))
    return None


def _rescale(step: Step, layer: Layer, network: Network, residual: str | None = None):
    if layer.inputs[0] != step.output or not step.epilogue.is_none:
        return None
    if step.op not in WITH_EPILOGUE:
        return None
    options = {name: layer.options[name] for name in ("low", "high")}
    if residual is not None and "residual_scale" in layer.options:
        options["residual_scale"] = layer.options["residual_scale"]
    scale, offset = (network.arrays[layer.arrays[role]] for role in ("scale", "offset"))
    return replace(step, epilogue=Epilogue(None, scale, offset, residual, **options))


def _add(step: Step, layer: Layer, network: Network, residual: str):
    if step.op in (*WITH_EPILOGUE, "winograd_conv"):
        return replace(step, epilogue=replace(step.epilogue, residual=residual))
    return None


def _relu(step: Step, layer: Layer, network: Network):
    if step.op in (*WITH_EPILOGUE, "winograd_conv", "batch_norm", "add"):
        return replace(step, epilogue=replace(step.epilogue, low=0.0))
    return None


_JOINS = {"batch_norm": _batch_norm, "rescale": _rescale, "add": _add, "relu": _relu}
