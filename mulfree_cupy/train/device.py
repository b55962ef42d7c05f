"""Asynchronous training steps on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mulfree_cupy import data, nn, optim
from mulfree_cupy.arrays import Array, namespace
from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.communicator import sum_gradients
from mulfree_cupy.data.feed import Feed, Progress, Reading
from mulfree_cupy.ops.cross_entropy import cross_entropy
from mulfree_cupy.train.replay import Replay

AHEAD = 32  # steps between two readings of the progress; the host is at most two readings ahead


class DeviceSteps:
    """The steps of an epoch: batch, forward, backward and update, all on the device.

    Full batches are replayed as a CUDA graph where the network allows it (see `Replay`); a partial
    batch at the end of an epoch is launched normally.

    Parameters
    ----------
    networks : list of Module
        Their arrays persist from step to step.
    objective : callable
        Such as `CrossEntropy`, of these networks.
    optimiser : SGD
    loader : Loader
        With several ranks each runs its part of every step; gradients are summed over the ranks
        before the update, and nothing is replayed.
    xp : module
        CuPy, or NumPy inside `mulfree_cupy.emulated_cuda`, which has no graphs.
    """

    def __init__(
        self,
        networks: list[nn.Module],
        objective: Callable,
        optimiser: optim.SGD,
        loader: data.Loader,
        xp: Any,
    ):
        self.networks, self.objective, self.optimiser = networks, objective, optimiser
        self.feed = Feed(loader, xp)
        self.communicator = loader.communicator
        self.replay = Replay() if xp is not np and self.communicator.size == 1 else None
        self._stream = self.replay.stream if self.replay else contextlib.nullcontext()
        self._xp = xp

    def epoch(
        self, epoch: int, done: Progress, before: Callable[[], None]
    ) -> Iterator[Progress | None]:
        """Run the remaining steps of an epoch; yield the latest known progress after each.

        Parameters
        ----------
        epoch : int
        done : Progress
            Progress of an earlier, interrupted run of this epoch.
        before : callable
            Called before each step, and again if the step is restarted after a failed capture.
        """
        if self.replay is not None:
            self._xp.cuda.get_current_stream().synchronize()  # its updates of the network included
            self.replay.start_anew(self._state)
        with self._stream:
            self.feed.start(epoch, done)
        reading: Reading | None = None
        loader = self.feed.loader
        for step in range(int(done.step), len(loader)):
            before()
            count, total = loader.count(step), loader.total(step)
            known = None
            with self._stream:
                whole = total == loader.batch_size
                self._whole(before, count, total) if whole else self._step(count, total)
                if step % AHEAD == AHEAD - 1:
                    known = reading and reading.wait()
                    reading = self.feed.read()
            yield known

    def progress(self) -> Progress:
        """Progress of the epoch; synchronises with the device."""
        with self._stream:
            return self.feed.read().wait()

    def _whole(self, before: Callable[[], None], count: int, total: int) -> None:
        def step():
            before()
            self._step(count, total)

        step() if self.replay is None else self.replay(step, self._state, self._settings())

    def _step(self, count: int, total: int) -> None:
        images, labels = self.feed.take(count)
        loss, right, backward = self.objective(images, labels)
        self.optimiser.zero_grad()
        backward(count / total)
        sum_gradients(self.communicator, self.optimiser.parameters)
        self.optimiser.step()
        self.feed.tally(loss, right, count)

    def _settings(self) -> list[dict[str, Any]]:
        """The scalar settings of the optimiser and modules, which may be baked into launches.

        Not the learning rate: it is on the device.
        """
        modules = (module for network in self.networks for _, module in network.modules())
        return [_plain(vars(owner)) for owner in (self.optimiser, self.objective, *modules)]

    def _state(self) -> dict[str, Array]:
        """The device arrays that persist between steps."""
        state = {
            f"{i}.{name}" if i else name: a.data if isinstance(a, Tensor) else a
            for i, network in enumerate(self.networks)
            for name, *_, a in network.named_state()
        }
        state |= {f"velocity {i}": v for i, v in enumerate(self.optimiser.velocities)}
        return {
            name: array
            for name, array in state.items()
            if array is not None and namespace(array) is self._xp
        }


def _plain(container: dict) -> dict:
    """Its public numbers and strings, also in dicts and tuples."""
    found = {}
    for name, value in container.items():
        if isinstance(value, tuple):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            value = _plain(value)
        if isinstance(value, (bool, int, float, str, np.generic, dict)) and not str(
            name
        ).startswith("_"):
            found[name] = value
    return found


def right_answers(model: nn.Module, feed: Feed) -> int:
    """Number of images that a network in evaluation mode classifies correctly; synchronises once,
    at the end.

    Raises
    ------
    FloatingPointError
        If the loss of a batch is not finite.
    """
    images, batch_size = len(feed.loader.dataset), feed.loader.batch_size
    feed.start(0)
    with no_grad():
        for first in range(0, images, batch_size):
            count = min(batch_size, images - first)
            x, labels = feed.take(count)
            loss, right, _ = cross_entropy(model(Tensor(x)).data, labels)
            feed.tally(loss, right, count)
    done = feed.read().wait()
    if done.fault >= 0:
        raise FloatingPointError(
            f"the network's answers on {feed.loader.dataset.name} are not finite in batch "
            f"{int(done.fault) + 1} of {batch_size}"
        )
    return int(done.right)
