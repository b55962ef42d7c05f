"""Everything that needs a GPU, in one command: tests, checks, timings, instruction rates.

Every section writes the files anew, so that a run that is cut off leaves what it has.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mulfree_cupy as mf
from benchmarks import devices, gpu_shift, gpu_tables, gpu_winograd, reference, timing
from benchmarks.layers import LAYERS, QUICK, Layer
from mulfree_cupy.launch.adder import ADDER_KERNELS

# The batches of the CPU's table leave a large GPU waiting; these fill it.
FILLED = [layer.with_batch(16 * layer.batch) for layer in LAYERS if layer.stride == 1]

TEST_SECONDS = 150

RATE_SOURCES = Path(__file__).parent / "rates"
THREADS = 256
BLOCKS = 48  # of 256 threads a multiprocessor: full waves whether it holds 4, 6 or 8 of them


@dataclass(frozen=True)
class Rate:
    """One micro-benchmark: `results` is what a thread does in a round."""

    name: str
    file: str
    entry: str
    results: int
    dtype: type


RATES = [
    Rate("float32 terms, 2 FADD", "vabsdiff4.cu", "fadd_pair", 256, np.float32),
    Rate("uint8 terms, VABSDIFF4.ACC", "vabsdiff4.cu", "vabsdiff4_acc", 1024, np.uint32),
    Rate("uint8 terms, VABSDIFF4 + DP4A", "vabsdiff4.cu", "vabsdiff4_dp4a", 1024, np.uint32),
    Rate("bits ANDed and counted, MMA", "binary_mma.cu", "binary_and_popc", 65536, np.int32),
]
FIELDS = "x", "w", "grad", "bytes_x", "bytes_w"


@dataclass
class Run:
    """The device, what is recorded so far, and when nothing new may begin any more."""

    device: devices.Cuda | devices.Emulated
    layers: list[Layer]
    end: float
    record: dict

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


class Problem:
    """One layer's arrays, on the host and on the device."""

    def __init__(self, layer: Layer, xp: Any) -> None:
        self.layer = layer
        x, w, grad = layer.floats()
        self.host = dict(zip(FIELDS, (x, w, grad, *layer.bytes()), strict=True))
        self.device = {name: xp.asarray(array) for name, array in self.host.items()}


def run(out: Path, minutes: float, emulated: bool) -> int:
    """Run every section for which there is time; the exit status."""
    if not emulated and (why := devices.unavailable()):
        print(f"python -m benchmarks gpu: no GPU to run on: {why}", file=sys.stderr)
        return 2
    device = devices.Emulated() if emulated else devices.Cuda()
    record = {
        "benchmark": "gpu",
        "emulated": emulated,
        "machine": timing.machine("cupy-cuda12x", "cupy-cuda13x", "torch"),
        "device": device.record(),
        "errors": {},
        "left_out": [],
        "rows": [],
    }
    end = time.monotonic() + 60 * minutes
    state = Run(device, QUICK if emulated else LAYERS + FILLED, end, record)
    # Every run on a GPU is kept, so its file is named after the device and the commit.
    stem = f"gpu {record['device']['name']} {record['machine']['commit'].split()[0]}"
    stem = stem.lower().replace(" ", "-")
    sections = [layers, shifts, winograds]
    if not emulated:
        sections = [tests, rates, bandwidth, *sections, peers]
    for section in sections:
        name = section.__name__
        print(f"{name} ...", flush=True)
        try:
            if state.left > 0:
                section(state)
            else:
                record["left_out"].append(name)
        except Exception as error:  # one section's failure must not cost the others
            record["errors"][name] = timing.without_paths(f"{type(error).__name__}: {error}")
        file = timing.write_json(record, out, stem)
        file.with_suffix(".md").write_text(gpu_tables.document(record), encoding="utf-8")
    print(gpu_tables.document(record))
    print(f"written: {file.name} and its .md")
    return 0 if succeeded(record) else 1


def succeeded(record: dict) -> bool:
    """Whether no section failed, no test failed, and no answer was wrong."""
    tested = record.get("tests", {"exit_status": "not run"})
    passed = tested["exit_status"] == 0 and "passed" in tested["result"]  # all skipped is no pass
    wrong = any("wrong" in row for row in record["rows"])
    return (passed or record["emulated"]) and not wrong and not record["errors"]


def tests(state: Run) -> None:
    """The tests marked gpu, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests"]
    try:
        done = subprocess.run(
            command,
            cwd=timing.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=min(TEST_SECONDS, state.left),
        )
        status, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, text = "timeout", (error.stdout or b"").decode(errors="replace")
    lines = timing.without_paths(text).splitlines()
    state.record["tests"] = {
        "exit_status": status,
        "result": lines[-1] if lines else "",
        "tail": lines[-40:] if status else [],
    }


def rates(state: Run) -> None:
    """Results a clock and multiprocessor of the instructions that the kernels rest on."""
    state.record["rates"] = {rate.name: _rate(state.device, rate) for rate in RATES}


def _rate(device: devices.Cuda, rate: Rate) -> dict[str, float]:
    code = (RATE_SOURCES / rate.file).read_text(encoding="utf-8")
    kernel = device.xp.RawKernel(code, rate.entry)
    blocks, rounds = BLOCKS * device.multiprocessors, 16
    out, seed = device.xp.empty(blocks * THREADS, rate.dtype), rate.dtype(3)

    def launch(rounds):
        kernel((blocks,), (THREADS,), (out, seed, np.int32(rounds)))

    once = device.seconds(lambda: launch(rounds))["min"]
    enough = max(rounds, int(rounds * 0.01 / once))
    seconds = device.seconds(lambda: launch(enough))["median"]
    per_second = rate.results * blocks * THREADS * enough / seconds
    per_clock = per_second / (device.clock() * device.multiprocessors)
    return {"per_clock": per_clock, "per_second": per_second}


def bandwidth(state: Run) -> None:
    """Bytes a second, read plus written, of a large copy within the device."""
    cupy = state.device.xp
    nbytes = min(2**30, state.record["device"]["memory_bytes"] // 8)
    source = cupy.arange(nbytes // 4, dtype=np.int32)
    target = cupy.empty_like(source)
    seconds = state.device.seconds(lambda: cupy.copyto(target, source))
    state.record["copy_bytes_per_second"] = 2 * source.nbytes / seconds["median"]


def layers(state: Run) -> None:
    """Check, then time, every kernel at every layer."""
    for layer in timing.progress(state.layers, "layer"):
        if state.left < 0:
            state.record["left_out"].append(layer.name)
            continue
        problem = Problem(layer, state.device.xp)
        for row in (*_adder_rows(state, problem), *_other_rows(state, problem)):
            state.record["rows"].append(row)


def shifts(state: Run) -> None:
    """The ladder of shift: bare, against a copy; fused, against the 1x1 convolution."""
    gpu_shift.moves(state, _measured)
    gpu_shift.convolutions(state, _measured)


def winograds(state: Run) -> None:
    """The ladder of the Winograd convolution, by density, against im2col + cuBLAS."""
    gpu_winograd.convolutions(state, _measured)


def _adder_rows(state: Run, problem: Problem) -> list[dict]:
    """adder_conv by every rung of the ladder, and the default, in float32 and uint8."""
    layer, host, device = problem.layer, problem.host, problem.device
    rows = []
    for x, w, dtype in (("x", "w", np.float32), ("bytes_x", "bytes_w", np.uint8)):
        integer = dtype == np.uint8
        expected = mf.adder_conv(host[x], host[w], **layer.options)
        out = state.device.xp.empty(layer.out_shape, np.int32 if integer else np.float32)
        moved = host[x].nbytes + host[w].nbytes + out.nbytes
        for kernel in (*ADDER_KERNELS, None):

            def call(x=device[x], w=device[w], out=out, kernel=kernel):
                return mf.adder_conv(x, w, out=out, kernel=kernel, **layer.options)

            # What no kernel writes must not pass for the last kernel's answer.
            out.fill(-1 if integer else np.nan)
            row = {"operation": "adder_conv", "kernel": kernel or "default", "bytes": moved}
            row["dtype"] = np.dtype(dtype).name
            rows.append(_measured(state, layer, row, call, [expected], 0 if integer else 1e-5))
    return rows


def _other_rows(state: Run, problem: Problem) -> list[dict]:
    """The gradients, the ordinary convolution and im2col, in float32."""
    layer, host, device = problem.layer, problem.host, problem.device
    size, options = layer.kernel, layer.options
    images = layer.x_shape[0] * layer.out_size**2 * layer.taps * 4
    x, w, grad = (host[name].nbytes for name in ("x", "w", "grad"))
    calls = {
        "adder_conv_backward": (
            2 * (x + w) + grad,
            1e-4,
            lambda a: mf.adder_conv_backward(a["grad"], a["x"], a["w"], **options),
        ),
        "conv": (x + w + grad, 1e-5, lambda a: [mf.conv(a["x"], a["w"], **options)]),
        "conv_backward": (
            2 * (x + w) + grad,
            1e-4,
            lambda a: mf.conv_backward(a["grad"], a["x"], a["w"], **options),
        ),
        "im2col": (x + images, 0, lambda a: [mf.im2col(a["x"], size, **options)]),
    }
    rows = []
    for operation, (moved, tolerance, function) in calls.items():
        row = {"operation": operation, "kernel": "default", "dtype": "float32", "bytes": moved}
        rows.append(
            _measured(state, layer, row, lambda f=function: f(device), function(host), tolerance)
        )
    return rows


def _measured(
    state: Run, layer: Layer, row: dict, call: Callable, expected: list, tolerance: float
) -> dict:
    """The row with the outcome: its times, or why the kernel refused, or what was wrong."""
    device = state.device
    row = {"layer": layer.name, **row, "terms": layer.terms}
    try:
        with device.context():
            answer = call()
        answers = answer if isinstance(answer, (tuple, list)) else [answer]
        for one, right in zip(answers, expected, strict=True):
            reference.agree(layer, row["kernel"], device.numpy(one), right, tolerance)
    except Exception as error:  # one kernel's failure must not cost the others
        # A rung says by ValueError that it does not serve this dtype.
        refused = isinstance(error, ValueError) and row["kernel"] != "default"
        message = f"{layer.name}, {row['operation']} by {row['kernel']}: {error}"
        return row | {"refused" if refused else "wrong": timing.without_paths(message)}
    with device.context():
        row["seconds"] = device.seconds(call)
    row["checked"] = True
    row["clock_hz"] = device.clock()
    return row


def peers(state: Run) -> None:
    """torch.cdist and cuDNN's convolution at the same layers, if torch sees the GPU."""
    try:
        import torch
    except ImportError:
        state.record["peers"] = "torch is not installed"
        return
    if not torch.cuda.is_available():
        state.record["peers"] = "torch sees no GPU"
        return
    state.record["peers"] = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    torch.backends.cudnn.benchmark = True
    state.device.xp.get_default_memory_pool().free_all_blocks()
    for layer in timing.progress(state.layers, "layer"):
        if state.left < 0:
            state.record["left_out"].append(f"peers at {layer.name}")
            continue
        state.record["rows"] += _peer_rows(state, Problem(layer, np), torch)


def _peer_rows(state: Run, problem: Problem, torch: Any) -> list[dict]:
    layer, host = problem.layer, problem.host
    x, w = (torch.from_numpy(host[name]).cuda() for name in ("x", "w"))
    rows = []

    def add(operation: str, call: Callable, rows_of: Callable, expected, tolerance: float) -> None:
        row = {"operation": operation, "kernel": "torch", "dtype": "float32", "bytes": None}

        def numpy_rows():
            return rows_of(call()).cpu().numpy()

        reference.agree(layer, operation, numpy_rows(), expected, tolerance)
        seconds = state.device.seconds(call)
        row |= {"layer": layer.name, "terms": layer.terms, "seconds": seconds, "checked": True}
        rows.append(row | {"clock_hz": state.device.clock()})

    conv = mf.conv(host["x"], host["w"], **layer.options)
    for tf32 in (False, True):
        torch.backends.cudnn.allow_tf32 = tf32
        for name, form in (
            ("contiguous", torch.contiguous_format),
            ("channels_last", torch.channels_last),
        ):
            fx, fw = x.contiguous(memory_format=form), w.contiguous(memory_format=form)
            add(
                f"conv2d {'TF32' if tf32 else 'float32'} {name}",
                lambda fx=fx, fw=fw: torch.conv2d(fx, fw, **layer.options),
                lambda y: y,
                conv,
                5e-3 if tf32 else 1e-4,
            )
    if layer.terms <= 2**30:  # a block of threads an output: larger layers tell nothing more
        cols = torch.from_numpy(reference.windows(layer, host["x"])).cuda()
        filters = w.reshape(layer.filters, -1)
        adder = reference.rows(mf.adder_conv(host["x"], host["w"], **layer.options))
        add(
            "torch.cdist",
            lambda: torch.cdist(cols, filters, p=1),
            torch.neg,
            adder,
            1e-5,
        )
    return rows
