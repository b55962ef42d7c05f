"""Time of a training step by layer."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from mulfree_cupy import nn, optim
from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.autograd import Tensor, apply

REPEATS = 5


@dataclass
class LayerTime:
    """Median seconds of one layer in a step; `kind` is its class."""

    name: str
    kind: str
    forward: float
    backward: float


@dataclass(frozen=True)
class StepProfile:
    """Median seconds of a whole training step, and of its layers."""

    step: float
    layers: list[LayerTime]

    @property
    def convolutions(self) -> float:
        """The fraction of the step spent in convolutions."""
        return sum(t.forward + t.backward for t in self.layers if "Conv" in t.kind) / self.step

    def __str__(self) -> str:
        lines = [f"{'layer':34} {'kind':18} {'forward ms':>10} {'backward ms':>11} {'share':>6}"]
        for t in self.layers:
            share = (t.forward + t.backward) / self.step
            lines.append(
                f"{t.name:34} {t.kind:18} {1e3 * t.forward:10.2f} {1e3 * t.backward:11.2f} "
                f"{share:6.1%}"
            )
        lines.append(f"step {1e3 * self.step:.1f} ms, {self.convolutions:.1%} of it convolutions")
        return "\n".join(lines)


def profile(model: nn.Module, images: Array, labels: Array) -> StepProfile:
    """Time training steps of a model on one batch.

    Parameters
    ----------
    model : Module
        Its weights change, as in training.
    images : array, shape (N, C, H, W)
    labels : array, shape (N,)

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy import models
    >>> from mulfree_cupy.train import profile
    >>> images = np.random.default_rng(0).random((8, 1, 8, 8), np.float32)
    >>> times = profile(models.build("adder-lenet", size=8), images, np.arange(8))
    >>> times.layers[0].name, times.layers[0].kind
    ('conv1', 'AdderConv')
    """
    names = {id(module): name for name, module in model.modules()}
    leaves = {
        id(module)
        for _, module in model.modules()
        if not any(module.children()) and not isinstance(module, nn.Sequential)
    }
    optimiser = optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    synchronise = _synchroniser(images)
    runs: list[dict[str, LayerTime]] = []

    def watch(module: nn.Module, answer: Tensor, seconds: float) -> None:
        if id(module) not in leaves or answer.node is None:
            return
        start = time.perf_counter()
        synchronise()
        seconds += time.perf_counter() - start
        name = names[id(module)]
        row = runs[-1][name] = LayerTime(name, type(module).__name__, seconds, 0.0)
        pullback = answer.node.pullback

        def timed(gradient: Array) -> tuple:
            start = time.perf_counter()
            gradients = pullback(gradient)
            synchronise()
            row.backward += time.perf_counter() - start
            return gradients

        answer.node.pullback = timed

    steps = []
    model.train()
    for _ in range(REPEATS + 1):
        runs.append({})
        start = time.perf_counter()
        with nn.observed(watch):
            loss = apply("cross_entropy", model(Tensor(images)), labels=labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        synchronise()
        steps.append(time.perf_counter() - start)
    measured = runs[1:]  # the first step warms up
    layers = [
        LayerTime(
            row.name,
            row.kind,
            float(np.median([run[row.name].forward for run in measured])),
            float(np.median([run[row.name].backward for run in measured])),
        )
        for row in measured[0].values()
    ]
    return StepProfile(float(np.median(steps[1:])), layers)


def _synchroniser(images: Array):
    """A function that synchronises with the device, for host timing."""
    xp = namespace(images)
    return (lambda: None) if xp is np else xp.cuda.get_current_stream().synchronize
