"""``mulfree quantize``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mulfree_cupy.cli import options
from mulfree_cupy.inference.quantisation import FEWEST_BITS, FEWEST_IMAGES, MOST_BITS, PERCENTILES

if TYPE_CHECKING:
    from mulfree_cupy.inference.quantisation import Operands


def add(commands) -> None:
    command = commands.add_parser(
        "quantize",
        help="quantise a trained network to integers of 8 bits or fewer",
        description="Quantise the adder convolutions of a trained network to uint8, with ranges "
        "from images of the data's training part. Prints the scale, range and clipped fraction of "
        "each, and the accuracy on the test part before and after; writes a "
        "file that mulfree_cupy.load and mulfree evaluate read. A network of ordinary convolutions "
        "is quantised for comparison only, and is not faster.",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="as written by mulfree train")
    options.add_images(command)
    command.add_argument(
        "--bits",
        type=options.whole(FEWEST_BITS, MOST_BITS),
        default=8,
        help=f"of activations and weights, {FEWEST_BITS} to {MOST_BITS} (default: 8)",
    )
    command.add_argument(
        "--images",
        type=options.whole(FEWEST_IMAGES),
        help="number to compute ranges and means from, all in memory at once (default: "
        "512, or all if fewer)",
    )
    few, many = PERCENTILES[0], PERCENTILES[-1]
    command.add_argument(
        "--percentile",
        type=options.percentile,
        help="percentage of values inside a range, such as 99.9 (default: per layer, the one with "
        f"the least squared error, from {few:g} to {many:g})",
    )
    command.add_argument(
        "--out", metavar="FILE", help="default: next to CHECKPOINT, such as checkpoint-8-bit.npz"
    )
    command.set_defaults(run=_quantize)


def _quantize(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import data, inference
    from mulfree_cupy.inference.quantisation import quantize
    from mulfree_cupy.report.accuracy import accuracy, check_data

    source = Path(chosen.checkpoint)
    out = Path(chosen.out or source.with_name(f"{source.stem}-{chosen.bits}-bit.npz"))
    options.beside_data(chosen, out.parent)
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"--out {out} is the network itself; choose another")
    if out.suffix != ".npz":
        raise ValueError(f"--out must end in .npz, got {out}")
    network = inference.read(source)
    train, test = options.load_data(chosen)
    check_data(source, network, test)
    if len(train) < FEWEST_IMAGES:
        raise ValueError(
            f"{train.name} has too few training images, {len(train)}: ranges and means are "
            f"computed from at least {FEWEST_IMAGES}"
        )
    count = chosen.images or min(512, len(train))
    if count > len(train):
        raise ValueError(f"--images asks for {count}, and {train.name} has {len(train)} to train")
    images = data.sample(train, count).images
    try:
        quantised = quantize(network, images, bits=chosen.bits, percentile=chosen.percentile)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    inference.save_npz(out, quantised.network)
    _print_table(quantised.operands)
    before, after = (
        accuracy(inference.Predictor(each), test) for each in (network, quantised.network)
    )
    if not quantised.whole_sums:
        print("Rounded and computed as float32: to compare the accuracy only, and not faster")
    print(
        f"{source} on {test.name}: test accuracy {before:.2%} before, {after:.2%} with "
        f"{chosen.bits} bits, of {len(test)} images; ranges from {count} training images"
    )
    print(f"Network {out}, {os.path.getsize(out):,} bytes")
    return 0


def _print_table(rows: list[Operands]) -> None:
    widest = max(len(row.name) for row in rows)
    print(f"{'convolution':{widest}} {'scale':>10} {'range':>20} {'clipped x':>10} {'w':>7}")
    for row in rows:
        ends = f"{row.grid.low:.4g} to {row.grid.high:.4g}"
        print(
            f"{row.name:{widest}} {row.grid.scale:10.4g} {ends:>20} "
            f"{row.clipped_activations:10.3%} {row.clipped_weights:7.1%}"
        )
