"""A trained network as plain data: a list of layers, and the arrays they refer to.

The list is all that another program needs to run it. Each layer is an operation of `OPERATIONS` on
the outputs of earlier layers, with arrays and options; nothing in it is code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mulfree_cupy import arrays as kinds
from mulfree_cupy.arrays import Array
from mulfree_cupy.inference.operations import OPERATIONS, OPTIONS, dtypes

IMAGES = "images"  # name of the network's normalised input


@dataclass(frozen=True)
class Layer:
    """One operation of a network.

    Parameters
    ----------
    op : str
        A key of `OPERATIONS`.
    name : str
        Of the layer and of its output.
    inputs : tuple of str
        Names of the layers whose outputs it takes; ``"images"`` are the normalised images.
    arrays : dict of str to str
        Names of arrays in the network, by their role, such as ``"weight"``.
    options : dict
        Numbers, strings and lists of them.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    arrays: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        operation = OPERATIONS.get(self.op)
        if operation is None:
            raise ValueError(
                f"layer {self.name!r}: there is no operation {self.op!r}; "
                f"there are {', '.join(sorted(OPERATIONS))}"
            )
        fewest, most = operation.inputs
        if not fewest <= len(self.inputs) <= most:
            raise ValueError(
                f"layer {self.name!r}: {self.op} takes the outputs of {fewest} to {most} layers, "
                f"got {len(self.inputs)}"
            )
        for what, given, known in (
            ("array", self.arrays, operation.arrays),
            ("option", self.options, operation.options),
        ):
            for name, needed in known.items():
                if needed and name not in given:
                    raise ValueError(f"layer {self.name!r}: {self.op} needs the {what} {name!r}")
            for name in given:
                if name not in known:
                    raise ValueError(f"layer {self.name!r}: {self.op} has no {what} {name!r}")
        for name, value in self.options.items():
            serves, what = OPTIONS[name]
            if not serves(value):
                raise ValueError(f"layer {self.name!r}: {name} must be {what}, got {value!r:.50}")
        low, high = (self.options.get(end, 0) for end in ("low", "high"))
        if low > high or (self.options.get("dtype") == "uint8" and (low < 0 or high > 255)):
            raise ValueError(
                f"layer {self.name!r}: low must be at most high, and both 0 to 255 for uint8, got "
                f"{low} and {high}"
            )

    def described(self) -> dict[str, Any]:
        """The layer as a JSON-compatible dict; the inverse of `from_description`."""
        return {
            "op": self.op,
            "name": self.name,
            "inputs": list(self.inputs),
            "arrays": dict(self.arrays),
            "options": dict(self.options),
        }

    def answer(self, answers: Mapping[str, Array], arrays: Mapping[str, Array]) -> Array:
        """Compute its output with the package's functions."""
        inputs = [answers[name] for name in self.inputs]
        xp = kinds.namespace(inputs[0])
        given = {role: xp.asarray(arrays[name]) for role, name in self.arrays.items()}
        try:
            return OPERATIONS[self.op].run(*inputs, **given, **self.options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {self.name!r}: {error}") from error

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Layer:
        """Raise a TypeError or ValueError unless it describes a layer."""
        wanted = {"op": str, "name": str, "inputs": list, "arrays": dict, "options": dict}
        if not isinstance(description, dict) or description.keys() != wanted.keys():
            raise ValueError(
                f"a layer must have the entries {', '.join(wanted)}, got {description!r:.80}"
            )
        for entry, kind in wanted.items():
            if not isinstance(description[entry], kind):
                raise TypeError(
                    f"layer {description['name']!r:.50}: {entry} must be of type {kind.__name__}, "
                    f"got {description[entry]!r:.50}"
                )
        for entry in ("inputs", "arrays"):
            values = description[entry]
            names = values.values() if isinstance(values, dict) else values
            if not all(isinstance(name, str) for name in names):
                raise TypeError(f"layer {description['name']!r:.50}: {entry} must be names")
        return cls(**{**description, "inputs": tuple(description["inputs"])})


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network, fully validated on construction.

    Parameters
    ----------
    layers : tuple of Layer
        In topological order; the last one's output is the network's.
    arrays : dict of str to array
        The layers' arrays; read-only here.
    image : tuple of 3 ints
        Channels, height and width.
    classes : tuple of str
        Their names.
    mean, std : arrays, shape (channels,)
        ``(images - mean) / std``, in units of a pixel value, is what the first layer takes.

    Attributes
    ----------
    forms : dict of str to (tuple of ints, dtype)
        Shape, without the batch, and dtype of every layer's output, and of the images.

    Raises
    ------
    TypeError, ValueError
        If something is missing, invalid or inconsistent; the message names the layer.
    FloatingPointError
        If a number is not finite.
    """

    layers: tuple[Layer, ...]
    arrays: Mapping[str, np.ndarray]
    image: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    forms: dict[str, tuple[tuple[int, ...], np.dtype]] = field(init=False, repr=False)

    def __post_init__(self):
        if not self.layers:
            raise ValueError("a network must have layers")
        if max(self.image) > _MOST_SIDE:
            raise ValueError(f"image must be at most {_MOST_SIDE} each way, got {self.image}")
        known = {IMAGES}
        for layer in self.layers:
            for name in layer.inputs:
                if name not in known:
                    raise ValueError(f"layer {layer.name!r}: no layer before it is named {name!r}")
            if layer.name in known:
                raise ValueError(f"two layers have the name {layer.name!r}")
            known.add(layer.name)
            for role, name in layer.arrays.items():
                if name not in self.arrays:
                    raise ValueError(f"layer {layer.name!r}: its {role}, {name!r}, is missing")
                array, served = self.arrays[name], dtypes(layer.op, role)
                if array.dtype not in served:
                    raise TypeError(
                        f"layer {layer.name!r}: {name} must be of one of "
                        f"{', '.join(np.dtype(t).name for t in served)}, got {array.dtype}"
                    )
                if role == "variance" and (array < 0).any():
                    raise ValueError(f"layer {layer.name!r}: {name} is a variance below 0")
        for name in ("mean", "std"):
            if getattr(self, name).shape != self.image[:1]:
                raise ValueError(
                    f"{name} must have shape {self.image[:1]}, got {getattr(self, name).shape}"
                )
        for name, array in {"mean": self.mean, "std": self.std, **self.arrays}.items():
            if array.dtype.kind not in "fiub":
                raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")
            if not np.isfinite(array).all():
                raise FloatingPointError(f"{name} holds numbers that are not finite")
        if not (self.std > 0).all():
            raise ValueError(f"std must be positive, got {self.std}")
        arrays = {name: _read_only(array) for name, array in self.arrays.items()}
        object.__setattr__(self, "arrays", arrays)
        answers = self.answers(np.zeros((1, *self.image), np.float32))
        forms = {name: (a.shape[1:], a.dtype) for name, a in answers.items()}
        object.__setattr__(self, "forms", forms)
        wanted, found = (len(self.classes),), forms[self.layers[-1].name][0]
        if found != wanted:
            raise ValueError(
                f"the last layer must answer with one number for each of {wanted[0]} classes, and "
                f"its answer has shape {found}"
            )

    def normalised(self, images: Array) -> Array:
        """Normalise raw images for the first layer."""
        xp = kinds.namespace(images)
        mean, std = (xp.asarray(a, np.float32)[:, None, None] for a in (self.mean, self.std))
        return (images.astype(np.float32) - mean) / std

    def __call__(self, images: Array) -> Array:
        """The logits of normalised images, computed layer by layer with the package's functions.

        Parameters
        ----------
        images : array, shape (N, C, H, W)
            NumPy or CuPy.

        Returns
        -------
        array, shape (N, number of classes)
        """
        return self.answers(images)[self.layers[-1].name]

    def answers(self, images: Array) -> dict[str, Array]:
        """The outputs of all layers for normalised images, by name."""
        answers = {IMAGES: images}
        for layer in self.layers:
            answers[layer.name] = layer.answer(answers, self.arrays)
        return answers


_MOST_SIDE = 4096  # channels too


def _read_only(array: np.ndarray) -> np.ndarray:
    view = np.ascontiguousarray(array).view()  # as kernels require
    view.flags.writeable = False
    return view
