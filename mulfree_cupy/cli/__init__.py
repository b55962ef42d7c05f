"""The command ``mulfree``."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence

from mulfree_cupy.cli import (
    checkpoints,
    comparing,
    completion,
    counting,
    exporting,
    kernels,
    networks,
    pruning,
    quantisation,
    training,
)
from mulfree_cupy.config import keep_freed_memory
from mulfree_cupy.data import OtherData, OtherSize, is_resizable
from mulfree_cupy.files import reason
from mulfree_cupy.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    if arguments is None:  # called as the command, not from Python
        keep_freed_memory()
    chosen = _parser().parse_args(arguments)
    with contextlib.suppress(AttributeError):  # a stream that the caller replaced
        sys.stdout.reconfigure(errors="backslashreplace")  # for names it cannot encode
    try:
        return _printed(chosen.run(chosen))
    except BrokenPipeError:
        return _printed(1)
    except KeyboardInterrupt:
        print("mulfree: interrupted", file=sys.stderr)
        return training.INTERRUPTED
    except MemoryError as error:
        print(f"mulfree: there is not enough memory: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        print(f"mulfree: {_explained(error, chosen)}", file=sys.stderr)
        return 1


def _explained(error: Exception, chosen: argparse.Namespace) -> str:
    """The message in terms of the command, with the remedy for other data."""
    message = str(error)
    if isinstance(error, OtherSize) and is_resizable(chosen.data):
        return f"{message}; resize them with --image-size {error.size or 'PIXELS'}"
    if isinstance(error, OtherData):
        return f"{message}; choose the data set with --data"
    options = {name: f"--{name.replace('_', '-')}" for name in vars(chosen)}
    if "size" not in options and getattr(chosen, "image_size", None):
        options["size"] = "--image-size"  # as the networks call it
    return _with_options(message, options)


def _with_options(message: str, options: Mapping[str, str]) -> str:
    """The message with the names of arguments as the command has them: ``--image-size``."""
    for name, option in options.items():
        message = re.sub(rf"^(\w+: )?{name}(?=:| must )", rf"\1{option}", message)
        if "_" in name:
            message = re.sub(rf"(?<![\w/.-]){name}(?![\w/.-])", option, message)
    return message


def _printed(status: int) -> int:
    """The status after flushing standard output, or 1 if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would flush the rest once more at exit, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # a reader such as head closed the pipe
            print(f"mulfree: standard output cannot be written: {reason(error)}", file=sys.stderr)
        return 1
    return status


class _Parser(argparse.ArgumentParser):
    """Refuses unknown arguments with the usage of their subcommand, and empty paths and names."""

    def parse_known_args(self, args=None, namespace=None):
        chosen, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        for name, value in vars(chosen).items():
            if value == "":
                self.error(f"argument {name}: must not be empty")
        return chosen, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mulfree", description="Convolutions with no multiplications, or far fewer."
    )
    parser.add_argument("--version", action="version", version=f"mulfree_cupy {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    kernels.add(commands)
    training.add_train(commands)
    pruning.add(commands)
    networks.add_models(commands)
    networks.add_evaluate(commands)
    checkpoints.add_calibrate(commands)
    quantisation.add(commands)
    checkpoints.add_import(commands)
    training.add_ablation(commands)
    comparing.add(commands)
    exporting.add(commands)
    networks.add_profile(commands)
    counting.add(commands)
    completion.add(commands, parser)
    return parser
