"""The command ``mulfree``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mulfree_cupy.cli import kernels, networks, pruning, training
from mulfree_cupy.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        return chosen.run(chosen)
    except KeyboardInterrupt:
        print("mulfree: interrupted", file=sys.stderr)
        return training.INTERRUPTED
    except MemoryError as error:
        print(f"mulfree: there is not enough memory: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"mulfree: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mulfree", description="Convolutions with no multiplications, or far fewer."
    )
    parser.add_argument("--version", action="version", version=f"mulfree_cupy {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    kernels.add(commands)
    training.add_train(commands)
    pruning.add(commands)
    networks.add_evaluate(commands)
    training.add_ablation(commands)
    networks.add_profile(commands)
    networks.add_count(commands)
    return parser
