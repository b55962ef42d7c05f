"""``mulfree train`` and ``mulfree ablation``."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from mulfree_cupy import files
from mulfree_cupy.cli import options

if TYPE_CHECKING:
    from mulfree_cupy.train import Communicator, Training

INTERRUPTED = 130  # what a shell reports for Ctrl-C
OF_TEACHERS = "temperature", "teacher_share", "teacher_features"


def add_train(commands) -> None:
    command = commands.add_parser(
        "train",
        help="train a network; by default an AdderNet on handwritten digits",
        description="Train a network. By default: an AdderNet LeNet-5-BN on scikit-learn's "
        "handwritten digits, in under a minute. Writes checkpoint.npz at first and after every "
        "epoch, curve.png and curve.csv at the end. Ctrl-C saves and stops; --resume continues. "
        "The test accuracy is that of the network as saved, with the BatchNorm statistics that "
        "--calibration computes; running_accuracy in curve.csv, dotted in curve.png, is of the "
        "same weights with the running statistics of training.",
    )
    command.add_argument("--model", help="name of the network (default: adder-lenet)")
    options.add_data(command)
    options.add_recipe(command)
    command.add_argument(
        "--epochs",
        type=options.whole(1),
        help="in total, including those before --resume (default: 30 for digits, else 20)",
    )
    command.add_argument(
        "--seed", type=options.whole(0), help="of weights and batches (default: 0)"
    )
    command.add_argument(
        "--calibration",
        type=options.whole(0),
        metavar="IMAGES",
        help="training images from which BatchNorm's statistics are recomputed after each "
        "epoch, before the test; 0 keeps the running statistics (default: 2560)",
    )
    command.add_argument(
        "--teacher",
        metavar="NETWORK",
        help="distil from a teacher: the checkpoint of a trained network, or the name "
        "of one to be trained alongside, such as conv-lenet",
    )
    command.add_argument(
        "--teacher-share",
        type=options.rate,
        metavar="SHARE",
        help="weight of the distillation loss (default: 0.9)",
    )
    command.add_argument(
        "--teacher-features",
        type=options.rate,
        metavar="WEIGHT",
        help="weight of the distance between its features and the network's (default: 0)",
    )
    command.add_argument(
        "--temperature",
        type=options.rate,
        help="divisor of both networks' logits in the distillation loss (default: 4)",
    )
    command.add_argument(
        "--resume", metavar="CHECKPOINT", help="resume from it; other options change its recipe"
    )
    command.add_argument(
        "--schedule",
        choices=["continue", "restart"],
        help="with --resume: the rate decays to 0 over the remaining epochs, from its current "
        "or from its last initial value (default: as before; 'continue' if --epochs changes)",
    )
    command.add_argument(
        "--out",
        help="new folder (default: that of --resume, or mulfree-run, mulfree-run-2 ...)",
    )
    command.add_argument(
        "--distributed",
        choices=["mpi", "nccl"],
        help="divide every batch among the processes of 'mpirun -n RANKS mulfree train ...': on "
        "CPUs (mpi), or with --device cuda on as many GPUs (nccl). The weights are those of one "
        "process, but for rounding",
    )
    command.set_defaults(run=_train)


def _train(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.report import output
    from mulfree_cupy.train import connect
    from mulfree_cupy.train.distributed import DEVICES

    output.pyplot()  # fail now, not after training, if Matplotlib is missing
    if chosen.schedule and not chosen.resume:
        raise ValueError("--schedule is for resumed runs, and needs --resume")
    if chosen.teacher and chosen.resume:
        raise ValueError("--teacher is for new runs; a resumed one keeps its teacher, or has none")
    if not (chosen.teacher or chosen.resume):
        _refuse(chosen, OF_TEACHERS, "needs a --teacher")
    if chosen.distributed is None:
        options.alone("--distributed mpi divides the training among them")
    device = DEVICES.get(chosen.distributed, chosen.device)
    if device != chosen.device:
        raise ValueError(f"--distributed {chosen.distributed} needs --device {device}")
    with connect(chosen.distributed) as communicator:
        return _train_as(communicator, chosen)


def _train_as(communicator: Communicator, chosen: argparse.Namespace) -> int:
    """Train as one of the ranks, of which the first has the folder and prints."""
    from mulfree_cupy.report import curves
    from mulfree_cupy.train import Interrupted, Recipe, Training

    start = time.perf_counter()
    is_first = communicator.rank == 0
    asked = recipe_of(
        chosen,
        *("model", "epochs", "batch_size", "rate", "augment", "seed", "calibration"),
        *OF_TEACHERS,
    )
    with _folder(chosen) if is_first else contextlib.nullcontext() as out:
        where = {"device": chosen.device, "communicator": communicator}
        if is_first:
            where["path"] = out / files.CHECKPOINT
        pair = options.load_data(chosen)
        if chosen.resume:
            asked["schedule"] = chosen.schedule
            run = Training.resume(chosen.resume, *pair, **where, **asked)
            if run.teacher is None:
                _refuse(chosen, OF_TEACHERS, "needs a teacher, and that run has none")
        else:
            asked |= _taught(chosen.teacher, pair[0], where)
            run = Training(Recipe(**{**defaults(chosen.data, pair[0]), **asked}), *pair, **where)
        if is_first:
            print(_describe(run, pair), flush=True)
        try:
            history = run.run()
        except Interrupted:
            if not is_first:
                return 0  # a status other than 0 would end the first before it has written
            again = _again(chosen, run.path, communicator.size)
            print(f"Stopped in epoch {run.epoch + 1}; resume with: {again}")
            return INTERRUPTED
        if not is_first:
            return 0
        picture = out / "curve.png"
        name = run.recipe.model
        curves.write(picture, {name: history}, title=f"{name} on {pair[0].name}")
    print(f"Checkpoint {run.path}, learning curve {picture}")
    epochs = options.counted(len(history.test_accuracy), "epoch")
    gathered = f" ({history.running_accuracy[-1]:.2%} with the running statistics)"
    print(
        f"Test accuracy {history.test_accuracy[-1]:.2%}{gathered if run.recipe.calibration else ''}"
        f" after {epochs}, {time.perf_counter() - start:.1f} s"
    )
    return 0


def _refuse(chosen: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(chosen, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def recipe_of(chosen: argparse.Namespace, *names: str) -> dict:
    """The entries of ``--recipe``, overridden by those of `names` that were given as options."""
    from mulfree_cupy.train import RECIPES

    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    return {**(RECIPES[chosen.recipe] if chosen.recipe else {}), **given}


def _folder(chosen: argparse.Namespace) -> AbstractContextManager[Path]:
    """The folder of a run; an existing run is overwritten only when it is itself resumed."""
    from mulfree_cupy.train import folder

    if chosen.resume is None:
        out = options.beside_data(chosen, chosen.out or "mulfree-run")
        return folder.taken(out) if chosen.out else folder.next_free(str(out))
    source = files.existing(chosen.resume, "checkpoint")
    out = options.beside_data(chosen, chosen.out or source.parent)
    its_own = out.is_dir() and out.samefile(source.parent)
    return folder.taken(out, resumed=source.name if its_own else None)


def _taught(teacher: str | None, train, where: dict) -> dict:
    """The recipe's entries for a teacher; a trained one is copied to `where`."""
    from mulfree_cupy import models
    from mulfree_cupy.train import load_teacher

    if teacher is None:
        return {}
    place = Path(teacher)
    if teacher in models.MODELS and not place.is_file():
        return {"teacher": teacher, "teacher_learns": True}
    if not (place.exists() or place.suffix):
        try:
            models.default_shape(teacher)
        except ValueError as error:  # with the nearest names
            raise ValueError(
                f"--teacher must be a checkpoint or the name of a network: {error}"
            ) from None
    name, where["teacher"] = load_teacher(teacher, train)
    return {"teacher": name}


def defaults(name: str, train) -> dict:
    if name == "digits":
        return {"model": "adder-lenet", "epochs": 30, "batch_size": 64, "augment": "none"}
    colour = train.images.shape[1] == 3
    return {
        "model": "adder-resnet20" if colour else "adder-lenet",
        "augment": "crop and flip" if colour else "none",
    }


def _describe(run: Training, pair) -> str:
    train, test = pair
    recipe, done = run.recipe, run.epoch
    count = sum(p.size for p in run.model.parameters())
    epochs = options.counted(recipe.epochs, "epoch")
    if done or run.step:
        rate = f"; rate {recipe.rate_in(done):.3g}" if done < recipe.epochs else ""
        epochs = f"from epoch {done + 1}, {recipe.epochs - done} more, {recipe.epochs} in all{rate}"
    return (
        f"{recipe.model}, {count:,} parameters, on {train.name}: {len(train)} training and "
        f"{len(test)} test images; batches of {min(recipe.batch_size, len(train))}; {epochs}"
    )


def _again(chosen: argparse.Namespace, checkpoint: Path, ranks: int) -> str:
    """The command that resumes a run."""
    words = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    words += ["mulfree", "train", "--resume", str(checkpoint), "--data", chosen.data]
    words += ["--image-size", str(chosen.image_size)] if chosen.image_size else []
    words += ["--distributed", chosen.distributed] if ranks > 1 else []
    return shlex.join([*words, "--device", chosen.device])


def add_ablation(commands) -> None:
    command = commands.add_parser(
        "ablation",
        help="AdderNet's ablation: full or sign gradient, adaptive or fixed rate",
        description="Train LeNet-5-BN four times, with the full-precision or the sign gradient of "
        "the filters, at the adaptive rate or at a fixed one 100 times larger. Prints a table and "
        "writes ablation.png and ablation.csv.",
    )
    options.add_data(command)
    for name, least, default in (("epochs", 1, 30), ("batch-size", 2, 64), ("seed", 0, 0)):
        command.add_argument(
            f"--{name}", type=options.whole(least), default=default, help=f"default: {default}"
        )
    command.add_argument(
        "--out",
        help="new folder (default: mulfree-ablation, mulfree-ablation-2 ...)",
    )
    command.set_defaults(run=_ablation)


def _ablation(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.report import curves, output
    from mulfree_cupy.train import ablation, folder

    output.pyplot()
    options.alone()
    out = options.beside_data(chosen, chosen.out or "mulfree-ablation")
    with folder.taken(out) if chosen.out else folder.next_free(str(out)) as out:
        train, test = options.load_data(chosen)
        histories = ablation(
            train,
            test,
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            seed=chosen.seed,
            device=chosen.device,
        )
        # Printed first: writing may fail on a full disk.
        print(f"{'filters of LeNet-5-BN':30} {'test accuracy':>14} {'best':>8}")
        for name, history in histories.items():
            accuracies = history.test_accuracy
            if len(accuracies) < chosen.epochs:
                print(f"{name:30} diverged in epoch {len(accuracies) + 1}")
            else:
                print(f"{name:30} {accuracies[-1]:14.2%} {max(accuracies):8.2%}")
        curves.write(out / "ablation.png", histories, title=f"AdderNet's ablation on {train.name}")
    print(f"Curves {out / 'ablation.png'}")
    return 0
