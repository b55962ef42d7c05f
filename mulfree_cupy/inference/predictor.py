"""A trained network as a function of images."""

from __future__ import annotations

import collections
import warnings
from typing import Any

import numpy as np

from mulfree_cupy import arrays, launch
from mulfree_cupy.arrays import Array
from mulfree_cupy.inference.network import Network
from mulfree_cupy.inference.plan import Plan, Program

_KEPT = 8  # programs for different batch sizes, per workspace


class Predictor:
    """A trained network, as `mulfree_cupy.load` returns it.

    On NumPy arrays it runs as a plan: normalisations folded into the preceding convolutions,
    weights packed once, memory planned once and reused by later calls. On CuPy arrays it runs layer
    by layer. It is thread-safe, can be pickled and copied, and works after a fork.

    Parameters
    ----------
    network : Network

    Attributes
    ----------
    network : Network
    classes : tuple of str
        Their names, in the order of the logits.
    plan : Plan or None
        Used for NumPy arrays; None without compiled kernels, or for a float64 network.

    Raises
    ------
    ValueError
        If no kernel supports a step of the plan.

    Examples
    --------
    >>> import mulfree_cupy as mf, numpy as np
    >>> from mulfree_cupy import inference, models
    >>> from mulfree_cupy.nn.description import network_of
    >>> predictor = inference.Predictor(network_of(models.build("conv-lenet", size=8), 1, 8))
    >>> predictor(np.zeros((5, 1, 8, 8), np.uint8)).shape
    (5, 10)
    """

    def __init__(self, network: Network):
        self.network = network
        # Created here; workspaces are taken and returned without a lock, which a fork might leave
        # locked: a deque's operations at its ends are atomic.
        self.plan = _plan_of(network)
        self._free: collections.deque[_Memory] = collections.deque()
        if self.plan is not None:  # run once on zeros, to check that every kernel supports its call
            self._free.append(_Memory(self.plan))
            program = self._free[0].program(1)
            program.images.fill(0)
            program.run()
        self._takes_whole = any(dtype == np.uint8 for _, dtype in network.forms.values())

    @property
    def classes(self) -> tuple[str, ...]:
        return self.network.classes

    def __call__(self, images: Array, *, out: np.ndarray | None = None) -> Array:
        """Logits of raw images.

        Parameters
        ----------
        images : array, shape (N, C, H, W)
            Raw pixels as in training, usually 0 to 255, of an integer or floating dtype; they are
            normalised here.
        out : array of float32, shape (N, number of classes), optional
            Receives the result for NumPy images.

        Returns
        -------
        array of float32, shape (N, number of classes)

        Raises
        ------
        TypeError
            If the images are not real numbers.
        ValueError
            If they or `out` have the wrong shape, or an image is not finite and the network is
            quantised.
        """
        images = self._checked(images)
        shape, dtype = (len(images), len(self.classes)), np.dtype(np.float32)
        out = arrays.output_array("predictor", out, shape, dtype, images=images)
        if launch.device_for(images) is not None or self.plan is None:
            return arrays.deliver(self._layer_by_layer(images), out)
        answer = np.empty(shape, dtype) if out is None else out
        memory = self._free.pop() if self._free else _Memory(self.plan)
        try:
            for first in range(0, len(images), self.plan.images):
                part = images[first : first + self.plan.images]
                program = memory.program(len(part))
                np.copyto(program.images, part, casting="unsafe")
                program.run()
                answer[first : first + len(part)] = program.answers
        finally:
            self._free.append(memory)
        return answer

    def predict(self, images: Array) -> np.ndarray:
        """The names of the most likely classes.

        Parameters
        ----------
        images : array, shape (N, C, H, W)
            As for the call.

        Returns
        -------
        array of str, shape (N,)

        Raises
        ------
        FloatingPointError
            If a logit is not finite.
        """
        logits = self(images)
        logits = logits if isinstance(logits, np.ndarray) else logits.get()
        if not np.isfinite(logits).all():
            raise FloatingPointError("predictor: the network's answers are not finite")
        return np.array(self.classes)[logits.argmax(axis=1)]

    def _checked(self, images: Any) -> Array:
        images = arrays.take_one("predictor", "images", images)
        if images.ndim != 4 or images.shape[1:] != self.network.image:
            sizes = ", ".join(map(str, self.network.image))
            raise ValueError(
                f"predictor: images must have shape (N, {sizes}), got shape {images.shape} and "
                f"dtype {images.dtype}{layout_remedy('images', images.shape, self.network.image)}"
            )
        if images.dtype.kind not in "uifb":
            raise TypeError(
                f"predictor: images must be integers or floating-point numbers, got dtype "
                f"{images.dtype} and shape {images.shape}"
            )
        if images.dtype.kind == "f" and images.size:
            least, most = images.min(), images.max()
            if self._takes_whole and not np.isfinite(float(most - least)):
                raise ValueError(
                    "predictor: images must be finite for a network of whole numbers, got numbers "
                    f"from {least} to {most}"
                )
            mean = self.network.mean.mean()
            scaled = (
                "lie between 0 and 1; multiply them by 255"
                if 0 <= least < most <= 1
                else "have pixels below 0; pass them as they were before normalisation"
            )
            if mean > 2 and (0 <= least < most <= 1 or least < 0):
                warnings.warn(
                    f"predictor: the network was trained on pixels of mean {mean:.0f}, and the "
                    f"images {scaled}",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return images

    def _layer_by_layer(self, images: Array) -> Array:
        with arrays.device_of(images):
            answer = self.network(self.network.normalised(images))
            return answer.astype(np.float32, copy=False)

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.network.image))
        count = sum(a.size for a in self.network.arrays.values())
        return (
            f"Predictor(images of {sizes}, {len(self.classes)} classes, "
            f"{len(self.network.layers)} layers, {count:,} numbers)"
        )

    def __reduce__(self):
        return Predictor, (self.network,)


def _plan_of(network: Network) -> Plan | None:
    dtypes = {dtype for _, dtype in network.forms.values()}
    if not dtypes <= _PLANNED or not hasattr(launch.cpu_kernels(), "conv_fused"):
        return None
    return Plan(network)


class _Memory:
    """Memory for one call at a time, with the programs bound to it."""

    def __init__(self, plan: Plan):
        self.plan, self.memory = plan, plan.memory()
        self.programs: collections.OrderedDict[int, Program] = collections.OrderedDict()

    def program(self, images: int) -> Program:
        if images not in self.programs:
            if len(self.programs) == _KEPT:
                self.programs.popitem(last=False)
            self.programs[images] = self.plan.bind(self.memory, images)
        return self.programs[images]


def layout_remedy(name: str, given: tuple[int, ...], wanted: tuple[int, int, int]) -> str:
    """What to do with the array `name` of shape `given` for images of `wanted`, if that is plain;
    the end of a message."""
    channels, height, width = wanted
    if given == wanted:
        return f"; for one image: {name}[None]"
    if channels == 1 and given[-2:] == (height, width) and len(given) in (2, 3):
        axes = "[:, None]" if len(given) == 3 else "[None, None]"
        return f"; grey images have one channel: {name}{axes}"
    if given[-3:] == (height, width, channels) and len(given) in (3, 4):
        axes = ".transpose(0, 3, 1, 2)" if len(given) == 4 else ".transpose(2, 0, 1)[None]"
        return f"; channels come before the rows: {name}{axes}"
    return ""


_PLANNED = {np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.int32)}
