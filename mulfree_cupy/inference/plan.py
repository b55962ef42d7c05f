"""The steps of a network bound to memory planned once: a call allocates nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mulfree_cupy.inference.folding import Step, fold
from mulfree_cupy.inference.kernels import kernel_for
from mulfree_cupy.inference.network import IMAGES, Network

_LINE = 64  # bytes; alignment of arrays

# Memory of a call, beyond which the batch is split: as much as stays in a cache, but no less than
# the weights, which are read again in every part.
_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class Place:
    """The location of a step's output: bytes per image from the start of the memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Plan:
    """A network as a sequence of kernel calls, with the memory layout of their outputs.

    Parameters
    ----------
    network : Network

    Attributes
    ----------
    steps : list of Step
    places : dict of str to Place
        Of the images and of the output of every step, by name.
    nbytes : int
        Of the memory for one image.
    images : int
        Number computed at once.
    """

    def __init__(self, network: Network):
        self.steps = fold(network)
        self._bindings = [kernel_for(step) for step in self.steps]
        self.places, self.nbytes = _placed(self.steps, network)
        weights = sum(array.nbytes for step in self.steps for array in step.arrays.values())
        self.images = max(1, max(_AT_ONCE, weights) // self.nbytes)
        self.output = self.steps[-1].output
        self._mean, self._std = (
            np.broadcast_to(a[:, None, None], network.image).astype(np.float32)
            for a in (network.mean, network.std)
        )

    def memory(self) -> np.ndarray:
        """Memory for `bind`, aligned to a cache line."""
        raw = np.empty(self.images * self.nbytes + _LINE, np.uint8)
        return raw[-raw.ctypes.data % _LINE :][: self.images * self.nbytes]

    def bind(self, memory: np.ndarray, images: int) -> Program:
        """The calls for a number of images, with all arrays bound."""
        arrays = {}
        for name, place in self.places.items():
            start = place.offset * self.images
            flat = memory[start : start + images * place.nbytes].view(place.dtype)
            arrays[name] = flat.reshape(images, *place.shape)
        raw = arrays[IMAGES]
        calls: list[Callable[[], Any]] = [
            partial(np.subtract, raw, self._mean, out=raw),
            partial(np.divide, raw, self._std, out=raw),
        ]
        for step, bind in zip(self.steps, self._bindings, strict=True):
            residual = step.epilogue.residual
            call = bind(
                [arrays[name] for name in step.inputs],
                None if residual is None else arrays[residual],
                arrays[step.output],
            )
            calls.append(call)
        return Program(calls, raw, arrays[self.output])


@dataclass(frozen=True)
class Program:
    """The sequence of calls from raw images to logits: two that normalise, and one per step."""

    calls: list[Callable[[], Any]]
    images: np.ndarray
    answers: np.ndarray

    def run(self) -> None:
        for call in self.calls:
            call()

    def timed(self) -> list[float]:
        """As `__call__`; returns the seconds of each call."""
        times = [time.perf_counter()]
        for call in self.calls:
            call()
            times.append(time.perf_counter())
        return np.diff(times).tolist()


def _placed(steps: list[Step], network: Network) -> tuple[dict[str, Place], int]:
    """Places in which no output overlaps one still to be read; and the total bytes."""
    last_use = {IMAGES: 0}
    for i, step in enumerate(steps):
        for name in (*step.sources, step.output):
            last_use[name] = i
    owner = {IMAGES: IMAGES}  # of the memory: outputs computed in place share their input's
    for i, step in enumerate(steps):
        source = owner[step.inputs[0]]
        in_place = step.op in _IN_PLACE and last_use[source] == i and _same(network, source, step)
        if step.op == "flatten" or in_place:
            owner[step.output] = source
            last_use[source] = max(last_use[source], last_use[step.output])
        else:
            owner[step.output] = step.output
    born = {IMAGES: 0, **{step.output: i for i, step in enumerate(steps)}}
    size = {name: _in_lines(network, name) for name in owner}
    offsets: dict[str, int] = {}
    for name in sorted({*owner.values()}, key=lambda name: (-size[name], born[name])):
        busy = sorted(
            (offsets[other], offsets[other] + size[other])
            for other in offsets
            if born[other] <= last_use[name] and born[name] <= last_use[other]
        )
        offset = 0
        for start, end in busy:
            if offset + size[name] <= start:
                break
            offset = max(offset, end)
        offsets[name] = offset
    places = {name: Place(offsets[owner[name]], *network.forms[name]) for name in owner}
    return places, max(offsets[name] + size[name] for name in offsets)


_IN_PLACE = "batch_norm", "add", "relu"  # element-wise


def _same(network: Network, source: str, step: Step) -> bool:
    return network.forms[source] == network.forms[step.output]


def _in_lines(network: Network, name: str) -> int:
    shape, dtype = network.forms[name]
    return -(-math.prod(shape) * dtype.itemsize // _LINE) * _LINE
