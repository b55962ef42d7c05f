"""``mulfree kernels``."""

from __future__ import annotations

import argparse
import textwrap

from mulfree_cupy.cli import options
from mulfree_cupy.launch.source import cuda_directory, kernels

_NAME = "such as adder/2_shared_tile, or adder 2; an operation alone means its first kernel"


def add(commands) -> None:
    command = commands.add_parser(
        "kernels",
        help="the CUDA kernels one at a time: list, show, run, trace, or write them yourself",
        description="The CUDA kernels one at a time; lists them by default. No GPU is "
        "needed: the emulator runs them, with all its checks.",
    )
    _add_list_options(command)
    command.set_defaults(run=_list)
    lessons = command.add_subparsers(metavar="COMMAND")

    every = lessons.add_parser("list", help="all of them: operation, idea and cost")
    _add_list_options(every)
    every.set_defaults(run=_list)

    show = _add(lessons, "show", _show, "print a kernel's source")
    _add_name(show)

    run = _add(lessons, "run", _run, "run a kernel and compare its result with the formula")
    _add_name(run)
    run.add_argument("--device", choices=["emulator", "cuda"], default="emulator")

    trace = _add(
        lessons, "trace", _trace, "count a kernel's memory accesses, next to the previous kernel's"
    )
    _add_name(trace)
    trace.add_argument("--file", help="your own CUDA C++ instead of the kernel's")
    trace.add_argument(
        "--html",
        metavar="FILE",
        help="write a page that shows a block step by step: threads, lines, memory",
    )
    trace.add_argument(
        "--block",
        type=options.whole(0),
        nargs="+",
        metavar="INDEX",
        help="x, y and z of the block on the page (default: 0)",
    )

    check = _add(
        lessons,
        "check",
        _check,
        "run your own file instead of a kernel: findings, wrong results, counts",
    )
    check.add_argument("file", metavar="FILE", help="CUDA C++ with the kernel's functions")
    check.add_argument(
        "--as",
        dest="name",
        metavar="NAME",
        nargs="+",
        help=f"the kernel, {_NAME}; an exercise names its own",
    )

    exercise = _add(
        lessons,
        "exercise",
        _exercise,
        "write a kernel's file with the body left out",
    )
    _add_name(exercise)
    exercise.add_argument("--out", metavar="FILE", help="default: OPERATION_KERNEL.cu here")


def _add(lessons, name: str, run, text: str) -> argparse.ArgumentParser:
    parser = lessons.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=run)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="+", help=_NAME)


def _add_list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resources",
        action="store_true",
        help="compile them, without a GPU, and print registers, shared memory and occupancy "
        "(needs the extra 'static')",
    )
    parser.add_argument(
        "--arch",
        nargs="+",
        default=["sm_90"],
        metavar="SM",
        help="architectures for --resources, such as sm_75 sm_120 (default: sm_90)",
    )


def _list(chosen: argparse.Namespace) -> int:
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


def _show(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import lessons

    path = lessons.find(" ".join(chosen.name)).path
    print((cuda_directory() / path).read_text(encoding="utf-8"), end="")
    return 0


def _run(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import lessons

    trial = lessons.attempt(lessons.find(" ".join(chosen.name)), device=chosen.device)
    for finding in trial.report.findings:
        print(finding)
    if trial.passed:
        print(
            f"{trial.case.call}: {trial.outputs} numbers right, largest relative error "
            f"{trial.error:.1e}, {trial.seconds:.2f} s with compilation"
        )
    elif trial.wrong:
        print(f"{trial.case.call}: {trial.wrong}")
    return 0 if trial.passed else 1


def _trace(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import lessons

    name = " ".join(chosen.name)
    if chosen.html:
        print(lessons.page(name, chosen.html, tuple(chosen.block or (0,)), file=chosen.file))
    elif chosen.block:
        raise ValueError("--block is a block on the page of --html")
    else:
        print(lessons.trace(name, file=chosen.file))
    return 0


def _check(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import lessons

    verdict = lessons.check(chosen.file, " ".join(chosen.name) if chosen.name else None)
    print(verdict)
    return 0 if verdict.solved else 1


def _exercise(chosen: argparse.Namespace) -> int:
    from mulfree_cupy import lessons

    path = lessons.exercise(" ".join(chosen.name), chosen.out)
    print(f"{path}: fill it in, then `mulfree kernels check {path}`")
    return 0
