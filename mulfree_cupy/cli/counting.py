"""``mulfree count``: the cost of a network per image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mulfree_cupy.cli import options

if TYPE_CHECKING:
    from mulfree_cupy.inference.network import Network

_SHAPE = "channels", "size", "classes"


def add(commands) -> None:
    command = commands.add_parser(
        "count",
        help="operations, parameters, bytes and energy of networks",
        description="Print the cost of a network per image: parameters, bytes of weights and "
        "outputs, multiplications, additions, XNORs and numbers moved, and the energy of these "
        "by the published 45 nm table. A multiply-add is a multiplication and an addition, "
        "abs(x - w) with its accumulation two additions, a binary term an XNOR and an addition.",
    )
    command.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="name of a network, or a file written by mulfree train, quantize or export",
    )
    command.add_argument("--layers", action="store_true", help="layer by layer")
    command.add_argument(
        "--rule",
        choices=["everything", "papers"],
        default="everything",
        help="'papers': as in AdderNet's tables, which count only the convolutions and the "
        "classifier, all of them as the kind of the majority (default: everything)",
    )
    command.add_argument("--csv", metavar="FILE", help="write the counts of all layers to it")
    for option, meaning in zip(
        _SHAPE, ("of the images", "image side in pixels", "labels"), strict=True
    ):
        command.add_argument(
            f"--{option}", type=options.whole(1), help=f"{meaning} (default: the network's)"
        )
    command.add_argument(
        "--data",
        help="for files with Winograd or masked layers: print the multiplications saved by zero "
        "weights and by zero activations, measured on this data: " + options.DATA_HELP,
    )
    options.add_image_size(command)
    command.add_argument(
        "--picture", metavar="FOLDER", help="plot the kernels of each Winograd layer into it"
    )
    command.set_defaults(run=_count)


def _count(chosen: argparse.Namespace) -> int:
    from mulfree_cupy.report import convolutions, counts, output, pruning, winograd
    from mulfree_cupy.report.accuracy import check_data

    if chosen.picture:
        output.pyplot()
    networks = {name: _network(name, chosen) for name in chosen.models}
    if chosen.data:
        _, test = options.load_data(chosen)
        for name, network in networks.items():
            check_data(name, network, test)
            print(convolutions.table(pruning.measured(network, test)))
    else:
        counted = {name: counts.count(network) for name, network in networks.items()}
        if chosen.csv:
            counts.write(chosen.csv, counted, chosen.rule)
        if chosen.layers:
            for name, each in counted.items():
                print(f"{name}\n{counts.table_of_steps(each, chosen.rule)}")
        else:
            print(counts.table(counted, chosen.rule))
    if chosen.picture:
        for network in networks.values():
            winograd.draw_all(Path(chosen.picture), network)
    return 0


def _network(name: str, chosen: argparse.Namespace) -> Network:
    from mulfree_cupy import models
    from mulfree_cupy.inference import file
    from mulfree_cupy.nn.description import network_of

    asked = {option: getattr(chosen, option) for option in _SHAPE}
    if Path(name).is_file() or Path(name).suffix in (".npz", ".safetensors"):
        network = file.read(name)
        channels, size, _ = network.image
        shape = {"channels": channels, "size": size, "classes": len(network.classes)}
        for option, number in asked.items():
            if number not in (None, shape[option]):
                raise ValueError(f"--{option} is {shape[option]} in {name}")
        return network
    if chosen.data:
        raise ValueError(f"--data needs a checkpoint, and {name} is not one")
    shape = models.default_shape(name)
    shape |= {option: number for option, number in asked.items() if number is not None}
    return network_of(models.build(name, **shape), shape["channels"], shape["size"])
