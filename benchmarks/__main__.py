"""Command line of the benchmarks: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import timing

THREAD_VARIABLES = (
    "MULFREE_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)

# Environment variables that restrict other libraries to an instruction set.
INSTRUCTION_SETS = {
    "baseline": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
        "FAISS_OPT_LEVEL": "generic",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "FAISS_OPT_LEVEL": "avx2",
    },
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Check and time mulfree_cupy, compared with other libraries.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    adder = commands.add_parser(
        "adder",
        help="the adder convolution on the CPU beside torch, scipy and FAISS (about 5 minutes)",
        description="Times adder_conv (float32, uint8, backward) and conv on layers of ResNet-20 "
        "and ResNet-18, beside the other libraries that are installed, in one process on the "
        "same threads. A wrong answer stops the run with exit status 1.",
    )
    _timed(adder, _adder)
    _layers(adder)

    winograd = commands.add_parser(
        "winograd",
        help="the sparse Winograd convolution by density beside torch and SciPy (about 5 minutes)",
        description="Times winograd_conv, dense and pruned to several densities, beside conv2d, "
        "im2col + BLAS and SciPy's sparse products, and prints each kernel's break-even density. "
        "A wrong answer stops the run with exit status 1.",
    )
    _timed(winograd, _winograd)
    _layers(winograd)

    shift = commands.add_parser(
        "shift",
        help="the shift operations on the CPU beside memcpy and torch (about 4 minutes)",
        description="Times shift beside memcpy, and shift_conv beside torch's 1x1, depthwise 3x3 + "
        "1x1 and 3x3 convolutions, in one process on the same threads. A wrong answer stops the "
        "run with exit status 1.",
    )
    _timed(shift, _shift)

    binary = commands.add_parser(
        "binary",
        help="the binary convolution and adders of 1 to 4 bits beside torch (about 5 minutes)",
        description="Times binary_conv beside torch's conv2d, and adder_conv of few bits beside "
        "that of uint8, on layers of ResNet-20, ResNet-18 and VGG-small, in one process on the "
        "same threads. A wrong answer stops the run with exit status 1.",
    )
    _timed(binary, _binary)
    _layers(binary)

    distances = commands.add_parser(
        "distances",
        help="distances of rows beside scikit-learn, SciPy and FAISS (about a minute)",
        description="Times pairwise_l1 and nearest_l1 of float32 and uint8 beside the other "
        "libraries that are installed, in one process on the same threads. A wrong answer stops "
        "the run with exit status 1.",
    )
    _timed(distances, _distances)

    batch1 = commands.add_parser(
        "batch1",
        help="one image at a time, with packed weights, beside torch (about a minute)",
        description="Times conv and adder_conv of packed weights on every convolution of ResNet-20 "
        "with one image, beside torch's conv2d, in one process on the same threads. A wrong answer "
        "stops the run with exit status 1.",
    )
    _timed(batch1, _batch1)

    inference = commands.add_parser(
        "inference",
        help="trained networks as one function beside PyTorch and ONNX Runtime (about 5 minutes)",
        description="Times predictions of the AdderNet ResNet-20 in float32 and 8 bits and of a "
        "pruned Winograd-ReLU VGG beside their ordinary twins in torch and ONNX Runtime, in one "
        "process on the same threads, and loading. A wrong answer stops the run with exit status "
        "1.",
    )
    _timed(inference, _inference)

    training = commands.add_parser(
        "training",
        help="a training step of the papers' ResNet-20s beside PyTorch (about 4 minutes)",
        description="Times a training step of the AdderNet ResNet-20, its conv twin here and in "
        "PyTorch, and the published PyTorch formula, with the peak memory of each; and of "
        "ShiftResNet-20 beside a depthwise twin in PyTorch.",
    )
    _timed(training, _training)

    errors = commands.add_parser(
        "errors",
        help="rounding errors of every operation in float32 beside PyTorch's (about 5 minutes)",
        description="Compares the float32 answers and gradients of every convolution, on the CPU "
        "and on small layers in the CUDA emulator, with the formulas in float64, and PyTorch's "
        "too where it is installed. A wrong answer stops the run with exit status 1.",
    )
    _timed(errors, _errors)

    emulator = commands.add_parser(
        "emulator",
        help="the CUDA emulator: first call, cached call, taps a second",
        description="Times the CUDA emulator on the 16x16 shared-tile adder kernel, one thread.",
    )
    _out(emulator)
    _quick(emulator)
    emulator.set_defaults(run=_emulator, threads=1)

    curves = commands.add_parser(
        "curves",
        help="record the learning curves of finished training runs",
        description="Reads the histories in checkpoints of `mulfree train` and writes them down: "
        "a table, a CSV and a picture.",
    )
    curves.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    _named(curves, "what was trained on what")
    curves.set_defaults(run=_curves)

    pruning = commands.add_parser(
        "pruning",
        help="record the pruning curves of finished runs",
        description="Reads the folders of `mulfree prune` and writes them down together: a table, "
        "a CSV and a picture.",
    )
    pruning.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    _named(pruning, "what was pruned on what")
    pruning.set_defaults(run=_pruning)

    comparison = commands.add_parser(
        "comparison",
        help="record a finished comparison",
        description="Reads the folder of `mulfree compare` and writes it down: a table, JSON and "
        "the pictures.",
    )
    comparison.add_argument("folder", type=Path, metavar="FOLDER")
    _named(comparison, "what was compared on what")
    comparison.set_defaults(run=_comparison)

    recipe = commands.add_parser(
        "recipe",
        help="short training runs that differ in one setting of the recipe",
        description="Trains a network repeatedly with one recipe, each time with one setting "
        "changed, and prints a table. Runs are kept in --folder and reused by later calls.",
    )
    recipe.add_argument("--data", required=True, help="as for `mulfree train`")
    recipe.add_argument("--model", default="adder-resnet20", help="default: %(default)s")
    recipe.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    recipe.add_argument("--teacher", type=Path, metavar="CHECKPOINT", help="for runs with one")
    recipe.add_argument("--only", nargs="+", metavar="RUN", help="by name (default: all)")
    recipe.add_argument("--folder", type=Path, required=True, metavar="DIR", help="of the runs")
    _named(recipe, "what was trained on what")
    recipe.set_defaults(run=_recipe)

    ablation = commands.add_parser(
        "ablation",
        help="record AdderNet's ablation on the digits (about 2 minutes)",
        description="Trains the four networks of `mulfree ablation` and writes their curves down.",
    )
    _out(ablation)
    ablation.set_defaults(run=_ablation)

    gpu = commands.add_parser(
        "gpu",
        help="everything that needs a GPU, within 7 minutes; --quick within 3",
        description="On a machine with CuPy and a GPU: runs the tests marked gpu, checks and times "
        "every CUDA kernel, measures instruction rates, and writes JSON after every row and a "
        "table. Prints its plan first. Exit status 1 if a test or a check failed, 2 without a GPU. "
        "`python -m benchmarks.gpu.setup` says beforehand what is missing.",
    )
    gpu.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    gpu.add_argument(
        "--quick", action="store_true", help="check every kernel, time the main ones: 3 minutes"
    )
    gpu.add_argument("--only", nargs="+", metavar="STEP", help="steps of the plan, by name")
    gpu.add_argument(
        "--data", type=Path, metavar="DIR", help="train on this data set too, such as CIFAR-10"
    )
    gpu.add_argument(
        "--train-seconds", type=float, metavar="S", help="for both networks, instead of the plan's"
    )
    gpu.add_argument("--commit", metavar="HASH", help="of the sources, where there is no git")
    gpu.add_argument(
        "--emulated",
        action="store_true",
        help="tiny layers through the emulator, nothing timed: to test this command without a GPU",
    )
    gpu.set_defaults(run=_gpu)

    report = commands.add_parser(
        "report",
        help="insert the newest results into docs/",
        description="Rewrites the text between <!-- benchmark:NAME --> and "
        "<!-- /benchmark:NAME --> in the pages of docs/ from the newest JSON of each kind in "
        "benchmarks/results/. NAME is adder-SET, adder-beside-SET, batch1-SET, binary-SET, "
        "distances-SET, inference-SET, shift-SET, shift-beside-SET or winograd-SET, where SET is "
        "an instruction set, training, errors, curves-NAME, pruning-NAME, comparison-NAME, "
        "recipe-NAME, emulator, gpu or gpu-status.",
    )
    report.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if a file would change"
    )
    report.set_defaults(run=_report)
    return top


def _named(command: argparse.ArgumentParser, title: str) -> None:
    command.add_argument("--name", required=True, help="of the files, such as cifar10")
    command.add_argument("--title", required=True, help=title)
    _out(command)


def _out(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write JSON, markdown and a plot (default: print)"
    )


def _quick(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--quick", action="store_true", help="tiny cases, to test that everything runs"
    )


def _layers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--layers",
        nargs="+",
        metavar="TEXT",
        help='only layers named like TEXT: "N8 64->64"',
    )


def _timed(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """Options shared by the CPU benchmarks."""
    _out(command)
    _quick(command)
    command.add_argument(
        "--threads", type=int, default=timing.cores(), metavar="N", help="default: %(default)s"
    )
    command.add_argument(
        "--features",
        metavar="NAME",
        help="an instruction set, for other libraries too: baseline, avx2, avx512 "
        "(default: MULFREE_CPU_FEATURES, or the best of this machine)",
    )
    command.set_defaults(run=run)


def _adder(options: argparse.Namespace) -> int:
    from benchmarks import adder, layers

    chosen = layers.select(options.layers, layers.QUICK if options.quick else layers.LAYERS)
    return adder.run(chosen, options.threads, options.out, options.quick)


def _binary(options: argparse.Namespace) -> int:
    from benchmarks import binary, layers

    chosen = layers.select(options.layers, layers.QUICK if options.quick else binary.LAYERS)
    return binary.run(chosen, options.threads, options.out, options.quick)


def _distances(options: argparse.Namespace) -> int:
    from benchmarks import distances

    return distances.run(options.threads, options.out, options.quick)


def _winograd(options: argparse.Namespace) -> int:
    from benchmarks import layers, winograd

    chosen = layers.select(options.layers, winograd.QUICK if options.quick else winograd.LAYERS)
    return winograd.run(chosen, options.threads, options.out, options.quick)


def _batch1(options: argparse.Namespace) -> int:
    from benchmarks import batch1

    return batch1.run(options.threads, options.quick, options.out)


def _shift(options: argparse.Namespace) -> int:
    from benchmarks import layers, shift

    fused, moves = layers.SHIFT, layers.MOVES
    if options.quick:
        fused = moves = layers.QUICK_SHIFT
    return shift.run(fused, moves, options.threads, options.out, options.quick)


def _inference(options: argparse.Namespace) -> int:
    from benchmarks import inference

    return inference.run(options.threads, options.quick, options.out)


def _training(options: argparse.Namespace) -> int:
    from benchmarks import training

    return training.run(options.threads, options.out, options.quick)


def _errors(options: argparse.Namespace) -> int:
    from benchmarks import errors

    return errors.run(options.threads, options.out, options.quick)


def _emulator(options: argparse.Namespace) -> int:
    from benchmarks import emulator

    return emulator.run(options.out, options.quick)


def _curves(options: argparse.Namespace) -> int:
    from benchmarks import curves

    found = curves.of_checkpoints(options.checkpoints, options.title)
    return curves.run(options.name, *found, options.out)


def _ablation(options: argparse.Namespace) -> int:
    from benchmarks import curves

    return curves.run("ablation", *curves.of_ablation(), options.out)


def _pruning(options: argparse.Namespace) -> int:
    from benchmarks import pruning

    return pruning.run(options.name, options.folders, options.title, options.out)


def _comparison(options: argparse.Namespace) -> int:
    from benchmarks import comparison

    return comparison.run(options.name, options.folder, options.title, options.out)


def _recipe(options: argparse.Namespace) -> int:
    from benchmarks import recipe

    chosen = options.only or [
        name for name in recipe.CHANGES if options.teacher or "taught" not in name
    ]
    if unknown := [name for name in chosen if name not in recipe.CHANGES]:
        raise SystemExit(f"no run {unknown[0]!r}; there are {', '.join(recipe.CHANGES)}")
    settings = options.title, options.model, options.epochs, chosen
    where = options.folder, options.teacher, options.out
    return recipe.run(options.name, options.data, *settings, *where)


def _gpu(options: argparse.Namespace) -> int:
    from benchmarks.gpu import run

    return run.run(
        options.out,
        quick=options.quick,
        emulated=options.emulated,
        only=options.only,
        commit=options.commit,
        data=options.data,
        train_seconds=options.train_seconds,
    )


def _report(options: argparse.Namespace) -> int:
    from benchmarks import report

    return report.run(options.check)


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    # Modules that import NumPy are imported only here: its thread pools read these variables at
    # start.
    if "threads" in options:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(options.threads)))
    if features := getattr(options, "features", None) or os.environ.get("MULFREE_CPU_FEATURES"):
        os.environ.update(INSTRUCTION_SETS.get(features, {}), MULFREE_CPU_FEATURES=features)
    from benchmarks.reference import WrongAnswer

    try:
        return options.run(options)
    except (ValueError, OSError, WrongAnswer) as error:
        print(f"python -m benchmarks {options.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
