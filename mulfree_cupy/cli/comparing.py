"""``mulfree compare``: the variants of one network side by side."""

from __future__ import annotations

import argparse

from mulfree_cupy.cli import options
from mulfree_cupy.cli.training import INTERRUPTED, defaults, recipe_of


def add(commands) -> None:
    command = commands.add_parser(
        "compare",
        help="train five variants of a network and compare accuracy and cost",
        description="Train ResNet-20 as CNN, AdderNet, binary, shift and sparse Winograd network; "
        "by default on handwritten digits, in a few minutes. Prints a table of accuracy, "
        "operations, energy, size and time, and writes it as comparison.md, .csv and .html, the "
        "last with all plots: accuracy against energy, learning curves, weights, filters "
        "and features. Ctrl-C saves and stops; the same command resumes, and trains nothing twice.",
    )
    command.add_argument(
        "--models",
        metavar="NAMES",
        help="networks to compare, separated by commas; adder-resnet20@conv-resnet20 is "
        "distilled from that CNN, earlier in the list (default: the five variants of ResNet-20)",
    )
    options.add_data(command)
    options.add_recipe(command)
    command.add_argument(
        "--epochs",
        type=options.whole(1),
        help="of each network, including those after pruning (default: 20)",
    )
    command.add_argument(
        "--seeds", type=options.whole(1), default=1, help="runs of each network (default: 1)"
    )
    command.add_argument(
        "--out", default="mulfree-compare", help="folder, new or of a comparison to resume"
    )
    command.set_defaults(run=_compare)


def _compare(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import models
    from mulfree_cupy.report import comparison, output
    from mulfree_cupy.train import Interrupted, Recipe, compare

    output.pyplot()
    options.alone()
    names = list(models.RESNET20.values())
    if chosen.models is not None:
        names = [name.strip() for name in chosen.models.split(",")]
    names = list(dict.fromkeys(names))
    out = options.beside_data(chosen, chosen.out)
    pair = options.load_data(chosen)
    asked = recipe_of(chosen, "epochs", "batch_size", "rate", "augment")
    usual = {**defaults(chosen.data, pair[0]), "epochs": 20, "model": names[0]}
    recipe = Recipe(**{**usual, **asked})
    where = {"out": out, "device": chosen.device}
    try:
        runs = compare(names, recipe, *pair, **where, seeds=chosen.seeds)
        plane = compare(list(comparison.PLANE), recipe, *pair, **where)
    except Interrupted:
        print("Stopped; run the same command to resume")
        return INTERRUPTED
    notes = _notes(recipe, chosen.seeds, pair)
    rows = comparison.write(out, runs, plane, pair[1], notes)
    print(comparison.table(rows))
    print("\n".join(notes))
    print(f"Page {out / 'comparison.html'}, table also as .md and .csv, plots in the same folder")
    return 0


def _notes(recipe, seeds: int, pair) -> list[str]:
    from mulfree_cupy.config import get_num_threads

    train, test = pair
    runs = f"{seeds} runs each, mean ± standard deviation" if seeds > 1 else "one run each"
    return [
        f"{train.name}: {len(train)} training and {len(test)} test images. "
        f"{options.counted(recipe.epochs, 'epoch')} in batches of {recipe.batch_size}, rate "
        f"{recipe.rate:g}, {'Nesterov ' * recipe.nesterov}momentum {recipe.momentum:g}, "
        f"augmentation: {recipe.augment}; {runs}.",
        "Of one image, with normalisations, biases and the ordinary first and last layers. Energy: "
        "of the arithmetic alone, by Horowitz's 45 nm table (ISSCC 2014); XNOR and its sum, which "
        "it lacks, are assumed to take an eighth of an 8-bit addition. Moves: numbers that shifts "
        "put elsewhere.",
        f"Time: of one image in batches, on this machine's CPU, "
        f"{options.counted(get_num_threads(), 'thread')}.",
    ]
