"""Options shared by several commands, and the parsing of numbers."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path

DATA_HELP = "'digits', or the path of CIFAR binary files, idx files, or class folders of images"


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """For `type=`: an integer within limits, which the error message states."""
    limits = f"at least {least}" if most is None else f"from {least} to {most}"

    def parsed(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be a whole number, {limits}, got {text:.50}")
        return number

    return parsed


def share(text: str) -> float:
    """For `type=`: above 0 and at most 1."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text:.50}")
    return number


def rate(text: str) -> float:
    """For `type=`: a finite number that is not negative."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number, at least 0, got {text:.50}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def densities(text: str) -> list[float]:
    """For `type=`: decreasing densities separated by commas."""
    numbers = [_number(density) for density in text.split(",")]
    falling = all(a > b for a, b in itertools.pairwise([*numbers, 0.0]))
    if not falling or numbers[0] > 1:
        raise argparse.ArgumentTypeError(
            "must be decreasing densities, each above 0 and at most 1, separated by commas, "
            f"such as 0.8,0.6, got {text:.50}"
        )
    return numbers


def percentile(text: str) -> float:
    """For `type=`: above 50 and at most 100."""
    number = _number(text)
    if not 50 < number <= 100:
        raise argparse.ArgumentTypeError(f"must be above 50 and at most 100, got {text:.50}")
    return number


def add_data(command: argparse.ArgumentParser) -> None:
    add_images(command)
    add_device(command)


def add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data", default="digits", help=f"{DATA_HELP} (default: digits)")
    add_image_size(command)


def add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--recipe",
        choices=["paper", "fast"],
        help="defaults of the options below: AdderNet's, for hundreds of epochs, or for few, in "
        "smaller batches and with Nesterov momentum (default: paper, but for digits in batches "
        "of 64)",
    )
    command.add_argument(
        "--batch-size",
        type=whole(2),
        help="default: 64 with --recipe fast, 256 with --recipe paper; without either, 64 for "
        "digits, else 256",
    )
    command.add_argument("--rate", type=rate, help="initial learning rate (default: 0.1)")
    command.add_argument(
        "--augment",
        choices=["none", "crop", "crop and flip"],
        help="default: 'crop and flip' for colour images, else none",
    )


def add_image_size(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--image-size",
        type=whole(1, 4096),
        metavar="PIXELS",
        help="height and width to which images in class folders are resized",
    )


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")


def counted(number: int, what: str) -> str:
    """As in "1 epoch", "20 epochs"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def load_data(chosen: argparse.Namespace):
    """The training and the test part of ``--data``."""
    from mulfree_cupy import data

    return data.load(chosen.data, image_size=chosen.image_size)


def alone(remedy: str = "it runs in one process: start it without mpirun") -> None:
    """Raise if MPI started several processes, each of which would do all of the same run."""
    from mulfree_cupy.train.distributed import launched

    if launched() > 1:
        raise ValueError(f"MPI started {launched()} processes of this command; {remedy}")


def beside_data(chosen: argparse.Namespace, out: str | Path) -> Path:
    """The folder of a run; raises inside the folder of ``--data``, where it would be read as a
    class."""
    place, out = Path(chosen.data).expanduser(), Path(out)
    is_folder = chosen.data != "digits" and place.is_dir()
    if is_folder and out.resolve().is_relative_to(place.resolve()):
        raise ValueError(
            f"the run would be written to {out}, inside --data {chosen.data}, where a folder is a "
            "class; choose an --out elsewhere"
        )
    return out
