"""``mulfree completion``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SHELLS = "bash", "zsh", "tcsh"
_PATHS = {"checkpoint", "csv", "data", "file", "html", "out", "picture", "resume", "teacher"}


def add(commands, parser: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "completion",
        help="print a script for shell completion of these commands",
        description="Print a script that makes a shell complete the commands, their options and "
        'files: eval "$(mulfree completion bash)" in ~/.bashrc. Needs the package shtab.',
    )
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(run=lambda chosen: _print(parser, chosen.shell))


def _print(parser: argparse.ArgumentParser, shell: str) -> int:
    try:
        import shtab
    except ImportError as error:
        raise ImportError("mulfree completion needs shtab: pip install shtab") from error
    for action in _actions(parser):
        if action.dest in _PATHS:
            action.complete = shtab.FILE
    print(shtab.complete(parser, shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        yield action
