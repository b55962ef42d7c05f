"""The command ``mulfree``."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Sequence

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
from mulfree_cupy.data.dataset import OtherData
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
    except OtherData as error:
        print(f"mulfree: {error}; choose the data set with --data", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        print(f"mulfree: {_with_options(str(error), vars(chosen))}", file=sys.stderr)
        return 1


def _with_options(message: str, names: Iterable[str]) -> str:
    """The message with the names of arguments as the command has them: ``--image-size``."""
    for name in names:
        option = f"--{name.replace('_', '-')}"
        if message.startswith(f"{name}:"):
            message = option + message.removeprefix(name)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
