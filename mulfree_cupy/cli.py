"""The command ``mulfree``."""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mulfree_cupy.launch.source import kernels
from mulfree_cupy.version import __version__

if TYPE_CHECKING:
    from mulfree_cupy.train import Training

_INTERRUPTED = 130  # what a shell reports for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        return chosen.run(chosen)
    except KeyboardInterrupt:
        print("mulfree: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"mulfree: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mulfree", description="Convolutions with no multiplications, or far fewer."
    )
    parser.add_argument("--version", action="version", version=f"mulfree_cupy {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_kernels(commands)
    _add_train(commands)
    _add_prune(commands)
    _add_evaluate(commands)
    _add_ablation(commands)
    _add_profile(commands)
    _add_count(commands)
    return parser


def _add_kernels(commands) -> None:
    command = commands.add_parser(
        "kernels",
        help="list the CUDA kernels: operation, idea and cost",
        description="List the CUDA kernels in reading order, with the idea and cost of each.",
    )
    command.add_argument(
        "--resources",
        action="store_true",
        help="compile them, without a GPU, and print registers, shared memory and occupancy "
        "(needs the extra 'static')",
    )
    command.add_argument(
        "--arch",
        nargs="+",
        default=["sm_90"],
        metavar="SM",
        help="architectures for --resources, such as sm_75 sm_120 (default: sm_90)",
    )
    command.set_defaults(run=_kernels)


def _kernels(chosen: argparse.Namespace) -> int:
    if chosen.resources:
        from mulfree_cupy.report import resources

        resources.print_table(chosen.arch)
        return 0
    for kernel in kernels():
        print(f"{kernel.operation}/{kernel.name}: {kernel.idea}")
        for label, text in (("fixes", kernel.fixes), ("cost", kernel.cost)):
            if text:
                indent = " " * 11
                print(
                    textwrap.fill(
                        text, 100, initial_indent=f"    {label:7}", subsequent_indent=indent
                    )
                )
    return 0


_DATA_HELP = "'digits', or the path of CIFAR binary files, idx files, or class folders of images"


def _add_data(command) -> None:
    command.add_argument("--data", default="digits", help=_DATA_HELP + " (default: digits)")
    _add_image_size(command)
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")


def _add_image_size(command) -> None:
    command.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="height and width to which images in class folders are resized",
    )


def _load_data(chosen: argparse.Namespace):
    from mulfree_cupy import data

    return data.load(chosen.data, image_size=chosen.image_size)


def _add_train(commands) -> None:
    command = commands.add_parser(
        "train",
        help="train a network; with no argument an AdderNet on handwritten digits",
        description="Train a network. With no argument: an AdderNet LeNet-5-BN on scikit-learn's "
        "handwritten digits, in under a minute. Writes checkpoint.npz at first and after every "
        "epoch, and curve.png and curve.csv at the end. Ctrl-C saves and stops; --resume goes on.",
    )
    command.add_argument("--model", help="name of the network (default: adder-lenet)")
    _add_data(command)
    command.add_argument("--epochs", type=int, help="default: 30 for digits, else 20")
    command.add_argument("--batch-size", type=int, help="default: 64 for digits, else 256")
    command.add_argument("--rate", type=float, help="first learning rate (default: 0.1)")
    command.add_argument(
        "--augment",
        choices=["none", "crop", "crop and flip"],
        help="default: 'crop and flip' for colour images, else none",
    )
    command.add_argument("--seed", type=int, help="of weights and batches (default: 0)")
    command.add_argument(
        "--resume", metavar="CHECKPOINT", help="go on from there; other options change its recipe"
    )
    command.add_argument(
        "--out",
        help="folder without a run (default: that of --resume, or mulfree-run, mulfree-run-2 ...)",
    )
    command.set_defaults(run=_train)


def _train(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.report import curves
    from mulfree_cupy.train import Interrupted, Recipe, Training

    start = time.perf_counter()
    out = _run_folder(chosen.out, chosen.resume)
    checkpoint = out / "checkpoint.npz"
    pair = _load_data(chosen)
    asked = {
        name: getattr(chosen, name)
        for name in ("model", "epochs", "batch_size", "rate", "augment", "seed")
        if getattr(chosen, name) is not None
    }
    if chosen.resume:
        run = Training.resume(chosen.resume, *pair, device=chosen.device, path=checkpoint, **asked)
    else:
        recipe = Recipe(**{**_defaults(chosen.data, pair[0]), **asked})
        run = Training(recipe, *pair, device=chosen.device, path=checkpoint)
    print(_describe(run, pair))
    try:
        history = run.run()
    except Interrupted:
        again = ["mulfree", "train", "--resume", str(checkpoint), "--data", chosen.data]
        again += ["--image-size", str(chosen.image_size)] if chosen.image_size else []
        again += ["--device", chosen.device]
        print(f"Stopped in epoch {run.epoch + 1}; go on with: {shlex.join(again)}")
        return _INTERRUPTED
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "curve.png"
    name = run.recipe.model
    curves.write(picture, {name: history}, title=f"{name} on {pair[0].name}")
    print(f"Checkpoint {checkpoint}, learning curve {picture}")
    print(
        f"Test accuracy {history.test_accuracy[-1]:.2%} after {len(history.test_accuracy)} epochs, "
        f"{time.perf_counter() - start:.1f} s"
    )
    return 0


def _run_folder(asked: str | None, resume: str | None) -> Path:
    """Where a run goes; one that is there is only ever replaced by itself gone on with."""
    if resume:
        return Path(asked or Path(resume).parent)
    numbers = itertools.count(2)
    out = Path(asked or "mulfree-run")
    while (out / "checkpoint.npz").exists():
        if asked:
            raise ValueError(
                f"{out} holds a run; go on with it by --resume {out / 'checkpoint.npz'}, or give "
                "another folder to --out"
            )
        out = Path(f"mulfree-run-{next(numbers)}")
    return out


def _defaults(name: str, train) -> dict:
    if name == "digits":
        return {"model": "adder-lenet", "epochs": 30, "batch_size": 64, "augment": "none"}
    colour = train.images.shape[1] == 3
    return {
        "model": "adder-resnet20" if colour else "adder-lenet",
        "augment": "crop and flip" if colour else "none",
    }


def _describe(run: Training, pair) -> str:
    train, test = pair
    count = sum(p.size for p in run.model.parameters())
    where = f"from epoch {run.epoch + 1}, " if run.epoch else ""
    return (
        f"{run.recipe.model}, {count:,} parameters, on {train.name}: {len(train)} training and "
        f"{len(test)} test images; {where}{run.recipe.epochs} epochs of batches of "
        f"{run.recipe.batch_size}"
    )


def _add_prune(commands) -> None:
    command = commands.add_parser(
        "prune",
        help="prune a trained network and train it again, in steps",
        description="Prune a trained spatial-, winograd- or winograd-relu- network to one density "
        "after another, and train it after each. Prints what is left of accuracy and of the "
        "multiplications; writes a checkpoint for each density, and pruning.png and pruning.csv.",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="as written by mulfree train")
    command.add_argument(
        "--schedule",
        default="0.8,0.7,0.6,0.5,0.4",
        metavar="DENSITIES",
        help="shares of the weights to keep (default: 0.8,0.7,0.6,0.5,0.4)",
    )
    for option, kind, default, meaning in (
        ("first-layer", float, 0.8, "least density of the layer that sees the image"),
        ("epochs", int, 5, "of training at each density"),
        ("rate", float, 0.01, "first learning rate at each density"),
        ("together", int, 1, "filters that keep or lose a weight together; 4 is fast on a CPU"),
    ):
        command.add_argument(
            f"--{option}", type=kind, default=default, help=f"{meaning} (default: {default})"
        )
    command.add_argument(
        "--score",
        choices=["magnitude", "importance"],
        default="magnitude",
        help="which weights go first (default: magnitude)",
    )
    _add_data(command)
    command.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, given the same options"
    )
    command.add_argument("--out", default="mulfree-prune", help="folder (default: mulfree-prune)")
    command.set_defaults(run=_prune)


def _prune(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.report import pruning
    from mulfree_cupy.train import Interrupted, Plan, load_model, prune

    plan = Plan(
        _densities(chosen.schedule),
        first_layer=chosen.first_layer,
        epochs=chosen.epochs,
        rate=chosen.rate,
        score=chosen.score,
        together=chosen.together,
    )
    train, test = _load_data(chosen)
    out = Path(chosen.out)
    options = {"out": out, "device": chosen.device, "resume": chosen.resume}
    try:
        steps = prune(chosen.checkpoint, plan, train, test, **options)
    except Interrupted:
        print("Stopped; go on with the same command and --resume")
        return _INTERRUPTED
    rows = pruning.measure(steps, test)
    print(pruning.table(rows))
    picture = out / "pruning.png"
    name = load_model(chosen.checkpoint)[1].recipe.model
    pruning.write(picture, {name: rows}, title=f"{name} on {test.name}")
    print(f"Last network {steps[-1].path}, curve {picture}")
    return 0


def _densities(text: str) -> list[float]:
    try:
        return [float(density) for density in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--schedule must be numbers with commas between them, such as 0.8,0.6, got {text!r}"
        ) from None


def _add_evaluate(commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="test a trained network",
        description="Print the share of right answers of a checkpoint on a data set's test part.",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="as written by mulfree train")
    _add_data(command)
    command.set_defaults(run=_evaluate)


def _evaluate(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.train import check_data, evaluate, load_model, namespace_of

    xp = namespace_of(chosen.device)
    model, saved = load_model(chosen.checkpoint, xp)
    _, test = _load_data(chosen)
    check_data(chosen.checkpoint, saved, test)
    accuracy = evaluate(model, test, saved.mean, saved.std, xp)
    name = saved.recipe.model
    print(f"{name} on {test.name}: test accuracy {accuracy:.2%} of {len(test)} images")
    return 0


def _add_ablation(commands) -> None:
    command = commands.add_parser(
        "ablation",
        help="AdderNet's ablation: full or sign gradient, adaptive or fixed rate",
        description="Train LeNet-5-BN four times, with the full-precision or the sign gradient of "
        "the filters, at the adaptive rate or at a fixed one 100 times larger. Prints a table and "
        "writes ablation.png and ablation.csv.",
    )
    _add_data(command)
    command.add_argument("--epochs", type=int, default=30, help="default: 30")
    command.add_argument("--batch-size", type=int, default=64, help="default: 64")
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    command.add_argument("--out", default="mulfree-run", help="folder (default: mulfree-run)")
    command.set_defaults(run=_ablation)


def _ablation(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.report import curves
    from mulfree_cupy.train import ablation

    train, test = _load_data(chosen)
    histories = ablation(
        train,
        test,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        seed=chosen.seed,
        device=chosen.device,
    )
    out = Path(chosen.out)
    out.mkdir(parents=True, exist_ok=True)
    curves.write(out / "ablation.png", histories, title=f"AdderNet's ablation on {train.name}")
    print(f"{'filters of LeNet-5-BN':30} {'test accuracy':>14} {'best':>8}")
    for name, history in histories.items():
        accuracies = history.test_accuracy
        if len(accuracies) < chosen.epochs:
            print(f"{name:30} diverged in epoch {len(accuracies) + 1}")
        else:
            print(f"{name:30} {accuracies[-1]:14.2%} {max(accuracies):8.2%}")
    print(f"Curves {out / 'ablation.png'}")
    return 0


def _add_profile(commands) -> None:
    command = commands.add_parser(
        "profile",
        help="where the time of a training step goes, layer by layer",
        description="Time training steps on random images and print the median by layer.",
    )
    command.add_argument("--model", default="adder-resnet20", help="default: adder-resnet20")
    command.add_argument("--batch-size", type=int, default=256, help="default: 256")
    command.add_argument("--size", type=int, default=32, help="pixels a side (default: 32)")
    command.add_argument("--channels", type=int, default=3, help="default: 3")
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    command.set_defaults(run=_profile)


def _profile(chosen: argparse.Namespace) -> int:
    import numpy as np

    from mulfree_cupy import models
    from mulfree_cupy.train import namespace_of, profile

    xp = namespace_of(chosen.device)
    model = models.build(chosen.model, channels=chosen.channels, size=chosen.size, classes=10)
    shape = chosen.batch_size, chosen.channels, chosen.size, chosen.size
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    labels = np.arange(chosen.batch_size) % 10
    print(profile(model.to(xp), xp.asarray(images), xp.asarray(labels)))
    return 0


def _add_count(commands) -> None:
    command = commands.add_parser(
        "count",
        help="parameters, multiplications and additions of a network, layer by layer",
        description="Print the parameters of a network and what one image costs it, layer by "
        "layer. A product-sum counts as a multiplication and an addition, abs(x - w) as two "
        "additions, a shift as nothing; normalisations, activations, pooling and residual sums "
        "are left out, as in the papers.",
    )
    command.add_argument(
        "model", metavar="MODEL", help="name of the network, or a checkpoint of mulfree train"
    )
    for option, meaning in (
        ("channels", "of the images"),
        ("size", "pixels a side"),
        ("classes", "of the labels"),
    ):
        command.add_argument(f"--{option}", type=int, help=f"{meaning} (default: the network's)")
    command.add_argument(
        "--data",
        help="print how many multiplications a checkpoint with Winograd or masked layers saves, by "
        "zero weights and by zero activations as measured on this data: " + _DATA_HELP,
    )
    _add_image_size(command)
    command.add_argument(
        "--picture", metavar="FOLDER", help="draw the kernels of each Winograd layer there"
    )
    command.set_defaults(run=_count)


def _count(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import models
    from mulfree_cupy.report import multiplications, operations, pruning
    from mulfree_cupy.train import check_data, load_model

    if Path(chosen.model).is_file():
        model, saved = load_model(chosen.model)
        shape = saved.shape
        for option in shape:
            if getattr(chosen, option) not in (None, shape[option]):
                raise ValueError(f"--{option} is {shape[option]} in {chosen.model}")
    elif chosen.data:
        raise ValueError(f"--data needs a checkpoint, and {chosen.model} is none")
    else:
        shape = {
            option: default if getattr(chosen, option) is None else getattr(chosen, option)
            for option, default in models.default_shape(chosen.model).items()
        }
        model = models.build(chosen.model, **shape)
    if chosen.data:
        _, test = _load_data(chosen)
        check_data(chosen.model, saved, test)
        images = pruning.sample(test, saved.mean, saved.std)
        print(multiplications.table(multiplications.measured(model, images)))
    else:
        print(operations.count(model, shape["channels"], shape["size"]))
    if chosen.picture:
        _draw_kernels(model, Path(chosen.picture))
    return 0


def _draw_kernels(model, folder: Path) -> None:
    from mulfree_cupy import nn
    from mulfree_cupy.report import winograd

    layers = {name: layer for name, layer in model.modules() if isinstance(layer, nn.WinogradConv)}
    if not layers:
        raise ValueError("--picture draws Winograd layers, and the network has none")
    folder.mkdir(parents=True, exist_ok=True)
    for name, layer in layers.items():
        winograd.draw(folder / f"{name}.png", layer.weights, title=f"{name}: {layer.weights!r}")


if __name__ == "__main__":
    sys.exit(main())
