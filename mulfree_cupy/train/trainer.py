"""The training loop: epochs, checkpoints that resume bit for bit, and a clean stop."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mulfree_cupy import data, models, nn, optim
from mulfree_cupy.arrays import Array
from mulfree_cupy.autograd import Tensor, apply, no_grad
from mulfree_cupy.data.feed import Progress
from mulfree_cupy.train import checkpoint
from mulfree_cupy.train.device import DeviceSteps, right_answers

AUGMENTATIONS = {
    "none": None,
    "crop": data.RandomCrop(),
    "crop and flip": data.Compose(data.RandomCrop(), data.RandomFlip()),
}


@dataclass(frozen=True)
class Recipe:
    """How to train: everything that decides the result, besides the data.

    The defaults are the AdderNet reference's for CIFAR, with fewer epochs. `augment` is a key of
    `AUGMENTATIONS`; the rest is as in `mulfree_cupy.optim.SGD`.
    """

    model: str
    epochs: int = 20
    batch_size: int = 256
    rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    adder: str = "adaptive"
    adder_scale: float = 1.0
    eta: float = 0.2
    augment: str = "crop and flip"
    seed: int = 0


@dataclass
class History:
    """One number an epoch in each list."""

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; what it had done is saved, if the run has a path."""


class Training:
    """One training run, from its first step or from a checkpoint.

    Parameters
    ----------
    recipe : Recipe
    train, test : data.Dataset
    device : {"cpu", "cuda"}
    path : path, optional
        Where the checkpoint goes: at the start, after every epoch and at an interruption.

    Raises
    ------
    ValueError
        If there are no epochs, or a batch would hold one image, which has no variance for batch
        normalisation.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: data.Dataset,
        test: data.Dataset,
        *,
        device: str = "cpu",
        path: str | os.PathLike | None = None,
    ):
        if recipe.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {recipe.epochs}")
        self.recipe, self.test = recipe, test
        self.xp = namespace_of(device)
        self.path = None if path is None else Path(path)
        self.history = History()
        self.epoch = self.step = 0
        self.sums = {"loss": 0.0, "right": 0, "seen": 0}  # of the epoch under way
        self.mean, self.std = data.statistics(train)
        self.model = models.build(recipe.model, seed=recipe.seed, **shape_of(train)).to(self.xp)
        self.optimiser = optim.SGD(
            self.model.parameters(),
            recipe.rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            adder=recipe.adder,
            adder_scale=recipe.adder_scale,
            eta=recipe.eta,
        )
        self.schedule = optim.cosine(recipe.rate, recipe.epochs)
        self.loader = data.Loader(
            train,
            recipe.batch_size,
            shuffle=True,
            augment=AUGMENTATIONS[recipe.augment],
            mean=self.mean,
            std=self.std,
            seed=recipe.seed,
        )
        if recipe.batch_size == 1 or len(train) % recipe.batch_size == 1:
            raise ValueError(
                f"batches of {recipe.batch_size} of {len(train)} images leave one of a single "
                "image, which batch normalisation cannot take; choose another batch size"
            )
        self.classes = train.classes
        self.device_steps: DeviceSteps | None = None  # made when the first epoch begins
        self._test_feed: data.Feed | None = None

    def run(self, *, progress: bool = True) -> History:
        """Train to the recipe's last epoch.

        Raises
        ------
        Interrupted
            At Ctrl-C, after the step under way and the checkpoint.
        FloatingPointError
            If the loss is not finite; the message names the first layer that is at fault.
        """
        with _interruptible() as asked_to_stop:
            self._save()  # so that a place that cannot be written is known before an epoch is spent
            while self.epoch < self.recipe.epochs:
                self._run_epoch(progress, asked_to_stop)
                self._save()
        return self.history

    def _run_epoch(self, progress: bool, asked_to_stop: list) -> None:
        self.model.train()
        self.optimiser.rate = self.schedule(self.epoch)
        self.loader.epoch = self.epoch
        start = time.perf_counter()
        steps = self._host_steps() if self.xp is np else self._device_steps()
        bar = tqdm(
            steps,
            total=len(self.loader),
            initial=self.step,
            desc=f"epoch {self.epoch + 1}/{self.recipe.epochs}",
            disable=None if progress else True,  # None: where nobody watches
            leave=False,
        )
        with contextlib.closing(steps), bar:
            for loss in bar:
                if loss is not None:
                    bar.set_postfix(loss=f"{loss:.3f}")
                if asked_to_stop:
                    break
        if asked_to_stop:
            self._save()
            raise Interrupted
        seen = self.sums["seen"]
        self.history.train_loss.append(self.sums["loss"] / seen)
        self.history.train_accuracy.append(self.sums["right"] / seen)
        self.history.test_accuracy.append(self.evaluate())
        self.history.seconds.append(time.perf_counter() - start)
        self.epoch, self.step = self.epoch + 1, 0
        self.sums = dict.fromkeys(self.sums, 0)

    def _host_steps(self) -> Iterator[float]:
        """Do the steps that are left of the epoch; after each, the mean loss so far."""
        for images, labels in itertools.islice(self.loader, self.step, None):
            self._seed_dropout()
            loss, right = self._train_step(images, labels)
            self.step += 1
            self.sums["loss"] += loss * len(labels)
            self.sums["right"] += right
            self.sums["seen"] += len(labels)
            yield self.sums["loss"] / self.sums["seen"]

    def _train_step(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        logits = self.model(Tensor(images))
        loss = apply("cross_entropy", logits, labels=labels)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} in epoch {self.epoch + 1}, step {self.step + 1}; "
                f"{_first_fault(self.model, images)}"
            )
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return value, int((logits.data.argmax(axis=1) == labels).sum())

    def _device_steps(self) -> Iterator[float | None]:
        """The same on a GPU, whose loss is known later."""
        if self.device_steps is None:
            self.device_steps = DeviceSteps(self.model, self.optimiser, self.loader, self.xp)
        done = Progress(self.sums["loss"], self.sums["right"], self.step)
        # An interrupted run may have had batches of another size.
        others = self.sums["seen"] - self._images_of(self.step)
        try:
            for known in self.device_steps.epoch(self.epoch, done, self._seed_dropout):
                self.step += 1
                seen = known and others + self._images_of(int(self._finite(known).step))
                yield known.loss / seen if seen else None
        finally:
            known = self._finite(self.device_steps.progress())
            seen = others + self._images_of(self.step)
            self.sums = {"loss": known.loss, "right": int(known.right), "seen": seen}

    def _images_of(self, steps: int) -> int:
        return min(steps * self.loader.batch_size, len(self.loader.dataset))

    def _finite(self, progress: Progress) -> Progress:
        if progress.fault >= 0:
            raise FloatingPointError(
                f"the loss is {progress.loss} in epoch {self.epoch + 1}, step "
                f"{int(progress.fault) + 1}; the network has gone on from there: to learn which "
                "layer is at fault, resume the last checkpoint with device='cpu'"
            )
        return progress

    def _seed_dropout(self) -> None:
        """A step's masks depend on the place of the step alone."""
        for i, (_, module) in enumerate(self.model.modules()):
            if isinstance(module, nn.Dropout):
                module.rng = np.random.default_rng((self.recipe.seed, self.epoch, self.step, i))

    def evaluate(self, dataset: data.Dataset | None = None) -> float:
        """Share of right answers on a data set, the test set by default."""
        if dataset is not None or self.xp is np:
            return evaluate(self.model, dataset or self.test, self.mean, self.std, self.xp)
        if self._test_feed is None:  # copied to the GPU once, not in every epoch
            self._test_feed = data.Feed(_in_order(self.test, self.mean, self.std), self.xp)
        return right_answers(self.model.eval(), self._test_feed) / len(self.test)

    def _save(self) -> None:
        if self.path is None:
            return
        state = {f"model/{name}": array for name, array in self.model.state_dict().items()}
        state |= {f"optim/{name}": array for name, array in self.optimiser.state_dict().items()}
        state |= {"mean": self.mean, "std": self.std}
        facts = {
            "recipe": asdict(self.recipe),
            "history": asdict(self.history),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "shape": shape_of(self.test),
            "classes": list(self.classes),
        }
        checkpoint.save(self.path, state, facts)

    @classmethod
    def resume(
        cls,
        source: str | os.PathLike,
        train: data.Dataset,
        test: data.Dataset,
        *,
        device: str = "cpu",
        path: str | os.PathLike | None = None,
        **changes: Any,
    ) -> Training:
        """Go on from a checkpoint; `changes` replace entries of its recipe, such as ``epochs``.

        Raises
        ------
        ValueError
            If the checkpoint is of another network or of other images.
        """
        state, facts = checkpoint.load(source)
        check_data(source, facts, train)
        recipe = Recipe(**{**facts["recipe"], **changes})
        if recipe.model != facts["recipe"]["model"]:
            raise ValueError(
                f"{source} is of the network {facts['recipe']['model']}, not {recipe.model}"
            )
        run = cls(recipe, train, test, device=device, path=path)
        if not (np.array_equal(run.mean, state["mean"]) and np.array_equal(run.std, state["std"])):
            raise ValueError(
                f"{source} was trained on other images than those of {train.name}: their mean or "
                "standard deviation differs"
            )
        run.model.load_state_dict(_below("model/", state))
        run.optimiser.load_state_dict(_below("optim/", state))
        run.history = History(**facts["history"])
        run.epoch, run.step, run.sums = facts["epoch"], facts["step"], facts["sums"]
        return run


def load_model(
    path: str | os.PathLike, xp: Any = np
) -> tuple[nn.Module, np.ndarray, np.ndarray, dict]:
    """The trained network of a checkpoint, the mean and std of its images, and its facts."""
    state, facts = checkpoint.load(path)
    model = models.build(facts["recipe"]["model"], **facts["shape"])
    model.load_state_dict(_below("model/", state))
    return model.to(xp).eval(), state["mean"], state["std"], facts


def evaluate(
    model: nn.Module,
    dataset: data.Dataset,
    mean: np.ndarray,
    std: np.ndarray,
    xp: Any = np,
    batch_size: int = 500,
) -> float:
    """Share of right answers of a network on a data set."""
    model.eval()
    loader = _in_order(dataset, mean, std, batch_size)
    if xp is not np:
        return right_answers(model, data.Feed(loader, xp)) / len(dataset)
    right = 0
    with no_grad():
        for images, labels in loader:
            right += int((model(Tensor(images)).data.argmax(axis=1) == labels).sum())
    return right / len(dataset)


def _in_order(dataset, mean, std, batch_size: int = 500) -> data.Loader:
    return data.Loader(dataset, batch_size, shuffle=False, mean=mean, std=std, seed=0)


def namespace_of(device: str) -> Any:
    """NumPy for ``"cpu"``, CuPy for ``"cuda"``."""
    if device == "cpu":
        return np
    if device != "cuda":
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    try:
        import cupy
    except ImportError:
        raise ValueError("device 'cuda' needs CuPy: install the extra cuda12 or cuda13") from None
    if not cupy.is_available():
        raise ValueError("device 'cuda' needs a GPU, and CuPy finds none")
    return cupy


def check_data(source: str | os.PathLike, facts: dict, dataset: data.Dataset) -> None:
    """Raise a ValueError unless a checkpoint's network is for images and classes like these."""
    if facts["shape"] != shape_of(dataset):
        raise ValueError(
            f"{source} was trained on images of {facts['shape']}, {dataset.name} has "
            f"{shape_of(dataset)}"
        )
    if facts["classes"] != list(dataset.classes):
        raise ValueError(f"{source} was trained on other classes than those of {dataset.name}")


def shape_of(dataset: data.Dataset) -> dict[str, int]:
    """What a network must know of the images."""
    _, channels, height, width = dataset.images.shape
    if height != width:
        raise ValueError(f"the networks take square images, got {height} x {width}")
    return {"channels": channels, "size": height, "classes": len(dataset.classes)}


def _below(prefix: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }


def _first_fault(model: nn.Module, x: Array) -> str:
    """The first layer, in the order of computation, whose answer is not finite."""
    names = {id(module): name for name, module in model.modules()}
    faults = []

    def watch(module: nn.Module, answer: Tensor, _: float) -> None:
        if not faults and not bool(np.isfinite(answer.data).all()):
            faults.append(f"{names[id(module)]} ({type(module).__name__})")

    with nn.observed(watch), no_grad():
        model(Tensor(x))
    return (
        f"the first layer that is not finite is {faults[0]}" if faults else "every layer is finite"
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[list]:
    """Inside it the first Ctrl-C fills the list that this yields; a second one interrupts."""
    asked: list = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    # A background job ignores Ctrl-C, and only the main thread hears of it.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
