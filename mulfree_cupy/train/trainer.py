"""The training loop: epochs, checkpoints that resume bit for bit, and a clean stop."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mulfree_cupy import data, models, nn, optim
from mulfree_cupy.communicator import ALONE, Communicator, sum_gradients, totals
from mulfree_cupy.data.feed import Progress
from mulfree_cupy.progress import progress as progress_bar
from mulfree_cupy.progress import report
from mulfree_cupy.train import checkpoint
from mulfree_cupy.train.calibration import gather_statistics
from mulfree_cupy.train.checkpoint import Checkpoint
from mulfree_cupy.train.device import AHEAD, DeviceSteps, right_answers
from mulfree_cupy.train.evaluation import (
    check_data,
    evaluate,
    first_fault,
    in_order,
    in_training,
    namespace_of,
    own_part,
    shape_of,
)
from mulfree_cupy.train.objective import CrossEntropy, Distillation
from mulfree_cupy.train.recipe import History, Recipe


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved, if the run has a path."""


class Training:
    """One training run, from its first step or from a checkpoint.

    Parameters
    ----------
    recipe : Recipe
    train : data.Dataset
    test : data.Dataset or None
        None leaves the network untested.
    device : {"cpu", "cuda"}
    path : path, optional
        The checkpoint, written at the start, after every epoch and at an interruption. An existing
        file is overwritten; use `folder.taken` to protect other runs.
    teacher : Module, optional
        The recipe's trained teacher, as returned by `load_teacher`; a new one if it learns
        simultaneously.
    statistics : pair of arrays, shape (channels,), optional
        Mean and standard deviation for normalisation; by default those of the training images.
    communicator : Communicator
        This process is one of its ranks, each of which makes the same calls. The batches of the
        recipe are divided among the ranks; the first alone writes the checkpoint and reports.

    Raises
    ------
    TypeError
        If `train` or `test` is no `data.Dataset`.
    ValueError
        If all images are of one class, the test images differ from the training images in shape or
        classes, a batch would hold one image, which has no variance for batch normalisation, or
        teacher and recipe do not match; with several ranks if a batch or the test images are fewer
        than these, or gradients would be scaled before they are summed.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: data.Dataset,
        test: data.Dataset | None,
        *,
        device: str = "cpu",
        path: str | os.PathLike | None = None,
        teacher: nn.Module | None = None,
        statistics: tuple[np.ndarray, np.ndarray] | None = None,
        communicator: Communicator = ALONE,
    ):
        self.shape, self.classes = shape_of(train), tuple(train.classes)
        if len(self.classes) < 2:
            raise ValueError(
                f"there must be at least 2 classes, and {train.name} has "
                f"{', '.join(map(repr, self.classes)) or 'none'}"
            )
        if test is not None and (shape_of(test), tuple(test.classes)) != (self.shape, self.classes):
            raise ValueError(
                f"the test images must be as the training images, of {self.shape} and the same "
                f"classes, got {shape_of(test)} in {test.name}"
            )
        self.recipe, self.test = recipe, test
        self.xp = namespace_of(device)
        self.communicator = communicator
        self.path = None if path is None or communicator.rank else Path(path)
        self.history = History()
        self.epoch = self.step = 0
        self.sums = {"loss": 0.0, "right": 0, "seen": 0}  # of the current epoch
        self.mean, self.std = statistics or data.statistics(train)
        self.digest = data.digest(*(part for part in (train, test) if part is not None))
        self.model = models.build(recipe.model, seed=recipe.seed, **self.shape).to(self.xp)
        if teacher is None and recipe.teacher_learns:
            teacher = models.build(recipe.teacher, seed=recipe.seed, **self.shape)
        if (teacher is None) == bool(recipe.teacher):
            raise ValueError(
                "a teacher named by the recipe must be passed, unless it learns, and no other; got "
                f"{recipe.teacher!r} and {'none' if teacher is None else 'one'}"
            )
        self.teacher = None if teacher is None else teacher.to(self.xp)
        self.objective: CrossEntropy | Distillation = CrossEntropy(self.model)
        if self.teacher is not None:
            self.objective = Distillation(self.model, self.teacher, recipe)
        self.optimiser = optim.SGD(
            checkpoint.trained(recipe, self.model, self.teacher),
            recipe.rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            adder=recipe.adder,
            adder_scale=recipe.adder_scale,
            eta=recipe.eta,
        )
        self.loader = in_training(recipe, train, self.mean, self.std, communicator)
        if recipe.batch_size == 1 or len(train) % recipe.batch_size == 1:
            raise ValueError(
                f"batches of {recipe.batch_size} of {len(train)} images leave one of a single "
                "image, which batch normalisation cannot take; choose another batch size"
            )
        self._join_ranks()
        self.device_steps: DeviceSteps | None = None  # made when the first epoch begins
        self._test_feed: data.Feed | None = None

    def _join_ranks(self) -> None:
        ranks, loader = self.communicator.size, self.loader
        if ranks == 1:
            return
        smallest = min(loader.total(0), loader.total(len(loader) - 1))
        if smallest < ranks:
            raise ValueError(
                f"batches of {self.recipe.batch_size} of {len(loader.dataset)} images leave one of "
                f"{smallest}, which {ranks} ranks cannot divide; choose another batch size"
            )
        if self.test is not None and len(self.test) < ranks:
            raise ValueError(f"{ranks} ranks cannot divide {len(self.test)} test images")
        if self.recipe.adder == "adaptive in backward":
            raise ValueError(
                "adder='adaptive in backward' scales the gradients of each rank before they are "
                "summed; choose 'adaptive'"
            )
        for _, module in self._modules():
            if isinstance(module, nn.BatchNorm):
                module.communicator = self.communicator

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        return itertools.chain(*(network.modules() for network in self.networks))

    @property
    def networks(self) -> list[nn.Module]:
        """The network, and its teacher if it has one."""
        return [self.model] if self.teacher is None else [self.model, self.teacher]

    def run(self, *, progress: bool = True) -> History:
        """Train to the recipe's last epoch.

        Raises
        ------
        Interrupted
            At Ctrl-C, after the current step and the checkpoint.
        FloatingPointError
            If the loss is not finite; the message names the first faulty layer.
        ValueError
            If the ranks do not begin with the same recipe, images and weights.
        """
        progress = progress and self.communicator.rank == 0
        self._check_ranks()
        with _interruptible() as asked_to_stop:
            self._save()  # fail before an epoch is spent if the path cannot be written
            while self.epoch < self.recipe.epochs:
                self._run_epoch(progress, asked_to_stop)
                self._save()
        return self.history

    def _run_epoch(self, progress: bool, asked_to_stop: list) -> None:
        self.model.train()
        self.optimiser.rate = self.recipe.rate_in(self.epoch)
        self.loader.epoch = self.epoch
        start = time.perf_counter()
        steps = self._host_steps() if self.xp is np else self._device_steps()
        bar = steps
        if progress:
            title = f"epoch {self.epoch + 1}/{self.recipe.epochs}"
            bar = progress_bar(steps, title, "batch", len(self.loader) - self.step)
        show = getattr(bar, "set_postfix_str", lambda text: None)  # without tqdm there is no bar
        stops = False
        with contextlib.closing(steps), contextlib.closing(bar):
            for loss in bar:
                if loss is not None:
                    show(f"loss={loss:.3f}")
                if stops := self._stops(asked_to_stop):
                    break
        if stops:
            self._save()
            raise Interrupted
        running_accuracy, seen = self.evaluate(), self.sums["seen"]
        test_accuracy = running_accuracy
        if self.recipe.calibration:
            self._gather_statistics()
            test_accuracy = self.evaluate()
        self.history.train_loss.append(self.sums["loss"] / seen)
        self.history.train_accuracy.append(self.sums["right"] / seen)
        self.history.test_accuracy.append(test_accuracy)
        self.history.running_accuracy.append(running_accuracy)
        self.history.seconds.append(time.perf_counter() - start)
        self.epoch, self.step = self.epoch + 1, 0
        if progress:
            name = f"{self.recipe.model}, epoch {self.epoch}/{self.recipe.epochs}"
            report(f"{name}: {self.history.last()}")
        self.sums = dict.fromkeys(self.sums, 0)

    def _stops(self, asked_to_stop: list) -> bool:
        """Whether a rank was asked to stop, which all learn after the same step."""
        if self.communicator.size == 1:
            return bool(asked_to_stop)
        if self.xp is not np and self.step % AHEAD:
            return False  # the answer waits for the GPU
        return totals(self.communicator, len(asked_to_stop), xp=self.xp)[0] > 0

    def _host_steps(self) -> Iterator[float]:
        """Run the remaining steps of the epoch; yield the mean loss so far after each."""
        for images, labels in itertools.islice(self.loader, self.step, None):
            self._seed_dropout()
            loss, right = self._train_step(images, labels)
            self.sums["loss"] += loss
            self.sums["right"] += right
            self.sums["seen"] += self.loader.total(self.step)
            self.step += 1
            yield self.sums["loss"] / self.sums["seen"]

    def _train_step(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """The sum of the losses of the images of all ranks, and how many are classified right."""
        loss, right, backward = self.objective(images, labels)
        count, total = len(labels), self.loader.total(self.step)
        loss, right = totals(self.communicator, float(loss) * count, int(right))
        if not math.isfinite(loss):  # on all ranks, which find the layer together
            raise FloatingPointError(
                f"the loss is {loss / total} in epoch {self.epoch + 1}, step {self.step + 1}; "
                f"{first_fault(self.model, images)}"
            )
        self.optimiser.zero_grad()
        backward(count / total)
        sum_gradients(self.communicator, self.optimiser.parameters)
        self.optimiser.step()
        return loss, int(right)

    def _device_steps(self) -> Iterator[float | None]:
        """As `_host_steps`, on a GPU, where the loss is known later."""
        if self.device_steps is None:
            self.device_steps = DeviceSteps(
                self.networks, self.objective, self.optimiser, self.loader, self.xp
            )
        first, begun = self.step, self.sums
        if self.communicator.rank:  # each counts its own images, and one the earlier ones
            begun = dict.fromkeys(begun, 0)
        done = Progress(begun["loss"], begun["right"], first)
        try:
            for known in self.device_steps.epoch(self.epoch, done, self._seed_dropout):
                self.step += 1
                steps = known and int(self._finite(known).step) - first
                yield known.loss / (begun["seen"] + steps * self.loader.count(0)) if steps else None
        finally:
            known = self._finite(self.device_steps.progress())
            loss, right = totals(self.communicator, known.loss, known.right, xp=self.xp)
            seen = self._images_of(self.step)
            self.sums = {"loss": loss, "right": int(right), "seen": seen}

    def _images_of(self, steps: int) -> int:
        return min(steps * self.loader.batch_size, len(self.loader.dataset))

    def _finite(self, progress: Progress) -> Progress:
        if progress.fault >= 0:
            raise FloatingPointError(
                f"the loss is {progress.loss} in epoch {self.epoch + 1}, step "
                f"{int(progress.fault) + 1}; training has continued since: to find which "
                "layer is at fault, resume the last checkpoint with device='cpu'"
            )
        return progress

    def _seed_dropout(self) -> None:
        """Seed dropout, so that a step's masks depend only on its position."""
        for i, (_, module) in enumerate(self._modules()):
            if isinstance(module, nn.Dropout):
                rng = np.random.default_rng((self.recipe.seed, self.epoch, self.step, i))
                module.rng = rng if self.communicator.size == 1 else _Rows(rng, self)

    def _gather_statistics(self) -> None:
        source = self.loader if self.xp is np else self.device_steps.feed
        batches = -(-self.recipe.calibration // self.recipe.batch_size)
        images = source.first_images(self.epoch, batches)
        gather_statistics(self.model, images, self.communicator)

    def evaluate(self, dataset: data.Dataset | None = None) -> float:
        """Accuracy on a data set, the test set by default; NaN without one."""
        if dataset is None and self.test is None:
            return math.nan
        if dataset is not None or self.xp is np:
            images = dataset or self.test
            place = {"xp": self.xp, "communicator": self.communicator}
            return evaluate(self.model, images, self.mean, self.std, **place)
        if self._test_feed is None:  # copied to the GPU once, not in every epoch
            images = own_part(self.test, self.communicator)
            self._test_feed = data.Feed(in_order(images, self.mean, self.std), self.xp)
        right = right_answers(self.model.eval(), self._test_feed)
        return totals(self.communicator, right, xp=self.xp)[0] / len(self.test)

    def _check_ranks(self) -> None:
        """Raise unless all ranks are at the same place of the same run."""
        if self.communicator.size == 1:
            return
        digest = hashlib.sha256(repr((self.recipe, self.digest, self.epoch, self.sums)).encode())
        states = [network.state_dict() for network in self.networks]
        for array in itertools.chain(*map(dict.values, [*states, self.optimiser.state_dict()])):
            digest.update(np.ascontiguousarray(array))
        own = list(digest.digest())
        mean = [n / self.communicator.size for n in totals(self.communicator, *own, xp=self.xp)]
        if mean != own:
            raise ValueError(
                "the ranks must begin with the same recipe, images and weights, and those of rank "
                f"{self.communicator.rank} differ from the others'"
            )

    def _save(self) -> None:
        if self.path is None:
            return
        state = Checkpoint(
            recipe=self.recipe,
            history=self.history,
            epoch=self.epoch,
            sums=self.sums,
            shape=self.shape,
            classes=self.classes,
            data=self.digest,
            mean=self.mean,
            std=self.std,
            model=self.model,
            teacher=self.teacher,
            velocities=self.optimiser.state_dict(),
        )
        checkpoint.save(self.path, state)

    @classmethod
    def resume(
        cls,
        source: str | os.PathLike,
        train: data.Dataset,
        test: data.Dataset,
        *,
        device: str = "cpu",
        path: str | os.PathLike | None = None,
        communicator: Communicator = ALONE,
        schedule: str | None = None,
        **changes: Any,
    ) -> Training:
        """Resume from a checkpoint.

        Parameters
        ----------
        source : path
        train, test, device, path, communicator
            As in `Training`.
        schedule, **changes
            As in `Checkpoint.resumed`: the learning-rate schedule, and entries of the recipe to
            replace, such as ``epochs``.

        Raises
        ------
        ValueError
            If the checkpoint is of another network or of other images, or a change is not possible
            any more.
        """
        saved = checkpoint.load(source)
        check_data(source, saved, train)
        try:
            recipe = saved.resumed(schedule, **changes)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        place = {"device": device, "path": path, "communicator": communicator}
        run = cls(recipe, train, test, **place, teacher=saved.teacher)
        means = np.array_equal(run.mean, saved.mean) and np.array_equal(run.std, saved.std)
        if not means or saved.data not in (None, run.digest):
            raise ValueError(
                f"{source} was trained on other images than those of {train.name}: their pixels, "
                "labels or order differ, in the training or the test part"
            )
        run.history, run.epoch, run.sums = saved.history, saved.epoch, saved.sums
        run.step = -(-saved.sums["seen"] // recipe.batch_size)
        if run.sums["seen"] != run._images_of(run.step):
            raise ValueError(
                f"{source} is inside an epoch, after {run.sums['seen']} of {len(train)} images: "
                f"these must be all, or whole batches of {recipe.batch_size}"
            )
        run.model.load_state_dict(saved.weights)
        velocities = saved.velocities
        if recipe.momentum and (run.epoch or run.step) and not velocities:  # start at zero
            parameters = enumerate(run.optimiser.parameters)
            velocities = {f"velocity.{i}": np.zeros(p.shape, p.dtype) for i, p in parameters}
        run.optimiser.load_state_dict(velocities)
        return run


class _Rows:
    """A rank's part of what dropout draws for a batch: what one process would draw for it."""

    def __init__(self, rng: np.random.Generator, run: Training):
        self.rng, self.total, self.part = rng, run.loader.total(run.step), run.loader.part(run.step)

    def random(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return self.rng.random((self.total, *shape[1:]), dtype)[self.part]


@contextlib.contextmanager
def _interruptible() -> Iterator[list]:
    """Inside it the first Ctrl-C fills the list that this yields; a second one interrupts."""
    asked: list = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    # Background jobs ignore Ctrl-C, and only the main thread receives it.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
