"""``mulfree prune``."""

from __future__ import annotations

import argparse

from mulfree_cupy.cli import options
from mulfree_cupy.cli.training import INTERRUPTED


def add(commands) -> None:
    command = commands.add_parser(
        "prune",
        help="prune and retrain a trained network in steps",
        description="Prune a trained spatial-, winograd- or winograd-relu- network to one density "
        "after another, and retrain it after each. Prints the remaining accuracy and "
        "multiplications; writes a checkpoint for each density, and pruning.png and pruning.csv.",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="as written by mulfree train")
    command.add_argument(
        "--schedule",
        type=options.densities,
        default="0.8,0.7,0.6,0.5,0.4",
        metavar="DENSITIES",
        help="fractions of the weights to keep (default: 0.8,0.7,0.6,0.5,0.4)",
    )
    for option, kind, default, meaning in (
        ("first-layer", options.share, 0.8, "minimum density of the first layer"),
        ("epochs", options.whole(1), 5, "of training at each density"),
        ("rate", options.rate, 0.01, "initial learning rate at each density"),
        (
            "block",
            options.whole(1),
            1,
            "number of filters pruned together; 4 is fast on a CPU",
        ),
    ):
        command.add_argument(
            f"--{option}", type=kind, default=default, help=f"{meaning} (default: {default})"
        )
    command.add_argument(
        "--score",
        choices=["magnitude", "importance"],
        default="magnitude",
        help="which weights are pruned first (default: magnitude)",
    )
    options.add_data(command)
    command.add_argument(
        "--resume", action="store_true", help="resume the run in --out, given the same options"
    )
    command.add_argument("--out", default="mulfree-prune", help="folder (default: mulfree-prune)")
    command.set_defaults(run=_prune)


def _prune(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.report import output, pruning
    from mulfree_cupy.train import Interrupted, Plan, load_model, prune

    output.pyplot()
    options.alone()
    plan = Plan(
        chosen.schedule,
        first_layer=chosen.first_layer,
        epochs=chosen.epochs,
        rate=chosen.rate,
        score=chosen.score,
        block=chosen.block,
    )
    out = options.beside_data(chosen, chosen.out)
    train, test = options.load_data(chosen)
    where = {"out": out, "device": chosen.device, "resume": chosen.resume}
    try:
        steps = prune(chosen.checkpoint, plan, train, test, **where)
    except Interrupted:
        print("Stopped; resume with the same command and --resume")
        return INTERRUPTED
    rows = pruning.measure(steps, test)
    print(pruning.table(rows))
    picture = out / "pruning.png"
    name = load_model(chosen.checkpoint)[1].recipe.model
    pruning.write(picture, {name: rows}, title=f"{name} on {test.name}")
    print(f"Last network {steps[-1].path}, curve {picture}")
    return 0
