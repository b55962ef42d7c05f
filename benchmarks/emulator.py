"""The CUDA emulator: time of the first call of a kernel, and taps per second after that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import mulfree_cupy as mf
from benchmarks import reference, timing
from benchmarks.layers import Layer

KERNEL = "2_shared_tile"
LAYER = Layer(1, 64, 32, 16)
TINY = Layer(1, 8, 16, 8)

MODES = {
    "unchecked": {"check": False},
    "checked": {"check": True},
    "traced": {"check": False, "trace": True},
}
FIRST_CALL_GOAL = 2.0
RATE_GOAL = 30e6

# Run in a new process: the seconds of the first two calls of a kernel.
CALLS = """
import json, sys, time
import numpy as np
import mulfree_cupy as mf

x = np.ones((1, 1, 4, 4), np.float32)
taken = []
with mf.emulated_cuda(check=False):
    for _ in range(2):
        start = time.perf_counter()
        mf.adder_conv(x, x, kernel=sys.argv[1])
        taken.append(time.perf_counter() - start)
print(json.dumps(taken))
"""


def run(out: Path | None, quick: bool) -> int:
    """Time first calls and rates, print the table, write it to `out`; the exit status."""
    layer, rounds = (TINY, 1) if quick else (LAYER, 5)
    check(layer)
    record = {
        "benchmark": "emulator",
        "machine": timing.machine(),
        "kernel": KERNEL,
        "layer": layer.name,
        "taps": layer.terms,
        "calls": first_calls(1 if quick else 3),
        "seconds": rates(layer, rounds),
    }
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, "emulator-cpu")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        print(f"\nwritten: {file.name} and its .md")
    return 0


def check(layer: Layer) -> None:
    x, w, _ = layer.floats()
    with mf.emulated_cuda():
        y = mf.adder_conv(x, w, kernel=KERNEL, **layer.options)
    reference.agree(layer, KERNEL, reference.rows(y), reference.adder(layer, x, w), 1e-5)


def first_calls(rounds: int) -> dict[str, list[float]]:
    """Seconds of the calls that compile or load, each in a separate process."""
    calls = {"empty cache": [], "new kernel": [], "cached on disk": [], "in memory": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            calls["empty cache"].append(_call_seconds("1_naive", cache)[0])
            calls["new kernel"].append(_call_seconds(KERNEL, cache)[0])
            cached, again = _call_seconds(KERNEL, cache)
        calls["cached on disk"].append(cached)
        calls["in memory"].append(again)
    return calls


def _call_seconds(kernel: str, cache: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", CALLS, kernel],
        cwd=timing.ROOT,
        env=os.environ | {"MULFREE_CACHE_DIR": cache},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def rates(layer: Layer, rounds: int) -> timing.Seconds:
    """Seconds of the whole layer in every mode."""
    x, w, _ = layer.floats()

    def emulated(mode):
        with mf.emulated_cuda(**mode):
            mf.adder_conv(x, w, kernel=KERNEL, **layer.options)

    cases = {
        name: lambda mode=mode: timing.call_seconds(lambda: emulated(mode), 0.0)
        for name, mode in MODES.items()
    }
    return timing.interleaved(cases, rounds, timing.Quiet(0 if rounds == 1 else 60))


def document(record: dict) -> str:
    """The machine, and a table of medians with their goals."""
    machine = record["machine"]
    body = []
    for name, seconds in record["calls"].items():
        goal = f"< {FIRST_CALL_GOAL:g} s" if name == "new kernel" else "-"
        body.append([f"call, {name}", f"{median(seconds):.3g} s", goal])
    for name, seconds in record["seconds"].items():
        rate = record["taps"] / median(seconds)
        goal = f">= {RATE_GOAL / 1e6:g} M" if name == "unchecked" else "-"
        body.append([f"taps a second, {name}", f"{rate / 1e6:.3g} M", goal])
    return (
        f"{machine['date']}, {machine['cpu']}, one thread; kernel {record['kernel']}, "
        f"{record['layer']}; commit {machine['commit']}\n\n"
        f"{timing.table(['emulator', 'median', 'goal'], body)}\n\n{NOTES}"
    )


NOTES = """\
Empty cache: the first kernel ever. New kernel: a kernel that was never run, others were. Cached on
disk: the first call of a process on a kernel that an earlier one compiled. In memory: the next."""
