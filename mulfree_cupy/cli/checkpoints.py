"""``mulfree calibrate`` and ``import``: checkpoints from checkpoints and from foreign files."""

from __future__ import annotations

import argparse
from pathlib import Path

from mulfree_cupy.cli import options


def add_calibrate(commands) -> None:
    command = commands.add_parser(
        "calibrate",
        help="recompute a trained network's BatchNorm statistics",
        description="Recompute the statistics of every BatchNorm from batches of the data's "
        "training part as in training, write the checkpoint back, and print the accuracy "
        "on the test part before and after. mulfree train does so after every epoch "
        "by default. Weights, optimiser and history stay as they are.",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="as written by mulfree train")
    options.add_data(command)
    command.add_argument(
        "--images",
        type=options.whole(1),
        help="how many, rounded up to whole batches (default: 2560, or all if fewer)",
    )
    command.add_argument(
        "--out", metavar="FILE", help="a new checkpoint (default: CHECKPOINT is replaced)"
    )
    command.set_defaults(run=_calibrate)


def _calibrate(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.train import (
        calibrated,
        checkpoint,
        evaluate,
        folder,
        load_model,
        namespace_of,
    )

    xp = namespace_of(chosen.device)
    out = chosen.checkpoint if chosen.out is None else _new(chosen.out)
    train, test = options.load_data(chosen)
    with folder.of_file(out):
        saved = calibrated(chosen.checkpoint, train, images=chosen.images, xp=xp)
        before, _ = load_model(chosen.checkpoint, xp)
        accuracies = [evaluate(m, test, saved.mean, saved.std, xp) for m in (before, saved.model)]
        checkpoint.save(out, saved)
    print(
        f"{saved.recipe.model} on {test.name}: test accuracy {accuracies[0]:.2%} before, "
        f"{accuracies[1]:.2%} after, of {len(test)} images"
    )
    print(f"Checkpoint {out}")
    return 0


def add_import(commands) -> None:
    command = commands.add_parser(
        "import",
        help="import a network trained by AdderNet's published code",
        description="Read a state dict saved by AdderNet's published code with torch.save (no "
        "PyTorch is needed, and nothing in the file is executed) or as safetensors, and write it "
        "as a checkpoint, with the normalisation of images that the published networks were "
        "trained with. torchvision's names for ResNets are read too. If anything is missing, "
        "unknown or of another shape, everything that differs is listed and nothing is written.",
    )
    command.add_argument("file", metavar="FILE", help=".pth, .pt or .safetensors")
    command.add_argument(
        "--model", required=True, help="such as adder-resnet20; also -32, -18, -50 and conv-"
    )
    command.add_argument(
        "--classes",
        metavar="FILE",
        help="their names, one per line in the order of the labels (default: CIFAR-10's for ten "
        "classes, else 0, 1, ...)",
    )
    command.add_argument(
        "--out", metavar="FILE", help="a new checkpoint (default: FILE's name with .npz, here)"
    )
    command.set_defaults(run=_import)


def _import(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.foreign import imported
    from mulfree_cupy.train import checkpoint, folder

    out = _new(chosen.out or Path(chosen.file).with_suffix(".npz").name)
    classes = chosen.classes and Path(chosen.classes).read_text(encoding="utf-8").splitlines()
    saved = imported(chosen.file, chosen.model, classes=classes)
    with folder.of_file(out):
        checkpoint.save(out, saved)
    count = sum(p.size for p in saved.model.parameters())
    print(f"{chosen.model}, {count:,} parameters, {len(saved.classes)} classes")
    print(f"Checkpoint {out}")
    return 0


def _new(path: str) -> Path:
    """The path of a file that does not exist yet."""
    if Path(path).exists():
        raise FileExistsError(f"{path} exists already; choose another --out")
    return Path(path)
