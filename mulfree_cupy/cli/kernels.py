"""``mulfree kernels``."""

from __future__ import annotations

import argparse
import textwrap

from mulfree_cupy.launch.source import kernels


def add(commands) -> None:
    command = commands.add_parser(
        "kernels",
        help="list the CUDA kernels: operation, idea and cost",
        description="List the CUDA kernels in reading order, with the idea and cost of each.",
    )
    command.add_argument(
        "--resources",
        action="store_true",
        help="compile them, without a GPU, and print registers, shared memory and occupancy "
        "(needs the extra 'static')",
    )
    command.add_argument(
        "--arch",
        nargs="+",
        default=["sm_90"],
        metavar="SM",
        help="architectures for --resources, such as sm_75 sm_120 (default: sm_90)",
    )
    command.set_defaults(run=_kernels)


def _kernels(chosen: argparse.Namespace) -> int:
    if chosen.resources:
        from mulfree_cupy.report import resources

        resources.print_table(chosen.arch)
        return 0
    for kernel in kernels():
        print(f"{kernel.operation}/{kernel.name}: {kernel.idea}")
        for label, text in (("fixes", kernel.fixes), ("cost", kernel.cost)):
            if text:
                indent = " " * 11
                print(
                    textwrap.fill(
                        text, 100, initial_indent=f"    {label:7}", subsequent_indent=indent
                    )
                )
    return 0
