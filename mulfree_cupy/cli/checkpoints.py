"""``mulfree calibrate``: checkpoints made from others."""

from __future__ import annotations

import argparse
from pathlib import Path

from mulfree_cupy.cli import options


def add_calibrate(commands) -> None:
    command = commands.add_parser(
        "calibrate",
        help="gather a trained network's BatchNorm statistics anew",
        description="Gather the statistics of every BatchNorm anew, from batches of the data's "
        "training part as in training, write the checkpoint back, and print the share of right "
        "answers on the test part before and after. mulfree train does so after every epoch, "
        "unless told not to. Weights, optimiser and history stay as they are.",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="as written by mulfree train")
    options.add_data(command)
    command.add_argument(
        "--images",
        type=options.whole(1),
        help="how many, rounded up to whole batches (default: 2560, or all if there are fewer)",
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


def _new(path: str) -> Path:
    """The path of a file that is not there."""
    if Path(path).exists():
        raise FileExistsError(f"{path} is there already; choose another --out")
    return Path(path)
