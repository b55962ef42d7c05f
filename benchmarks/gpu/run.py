"""The schedule of a GPU run: sections as processes, first concurrently to check, then alone to
time."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mulfree_cupy as mf
from benchmarks import timing
from benchmarks.gpu import devices, tables
from benchmarks.gpu.cases import key_of
from benchmarks.gpu.process import DEVICE_LOST


@dataclass(frozen=True)
class Step:
    """A section of the run, what is done to it, and the seconds that this may take.

    Steps that run `together` share the device and all cores, and only check. The others run alone,
    for timing.
    """

    section: str
    quick: float
    full: float
    how: str = "timed"  # or checked, or a tool of compute-sanitizer

    @property
    def name(self) -> str:
        return self.section if self.how == "timed" else f"{self.section} {self.how}"

    @property
    def together(self) -> bool:
        return self.how != "timed"

    def seconds(self, quick: bool) -> float:
        return self.quick if quick else self.full

    def command(self, quick: bool, emulated: bool, data: Path | None) -> list[str]:
        if self.section == "tests":
            # pytest-benchmark warns where pytest-xdist runs, and warnings are errors here.
            plugins = ["-p", "no:cacheprovider", "-p", "no:benchmark"]
            pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *plugins]
            return [*pytest, *_workers(), "tests"]
        sanitized = self.how in SANITIZERS
        flags = {
            "--check": self.together,
            "--quick": quick,
            "--tiny": emulated or sanitized,
            "--emulated": emulated,
        }
        wanted = [flag for flag, given in flags.items() if given]
        if self.section == "training":
            wanted += [f"--data={data}", f"--seconds={self.seconds(quick) - START_SECONDS}"]
        process = [sys.executable, "-m", "benchmarks.gpu.process", self.section, *wanted]
        tool = [
            "compute-sanitizer",
            "--tool",
            self.how,
            "--error-exitcode",
            str(FOUND_BY_SANITIZER),
        ]
        return [*tool, *process] if sanitized else process


def _workers() -> list[str]:
    """Test processes on three quarters of the cores, where pytest-xdist is installed."""
    if "pytest-xdist" not in timing.versions("pytest-xdist"):
        return []
    return ["-n", str(max(1, 3 * timing.cores() // 4))]


START_SECONDS = 12  # until the first step of a training run, and to spare
SANITIZERS = "memcheck", "racecheck"
FOUND_BY_SANITIZER = 9
CHECKED = "adder", "binary", "shift", "winograd", "step"

# Most important first, in case the run is cut off. Adjacent steps that run together start together.
STEPS = [
    Step("tests", 60, 80, "checked"),
    *(Step(section, 60, 80, "checked") for section in CHECKED),
    Step("training", 60, 60, "checked"),
    Step("rates", 5, 5),
    Step("adder", 10, 30),
    Step("binary", 8, 25),
    Step("shift", 20, 40),
    Step("step", 5, 10),
    Step("peers", 15, 50),
    Step("training", 30, 110),
    Step("winograd", 7, 25),
    *(Step(section, 20, 30, tool) for section in CHECKED for tool in SANITIZERS),
]
EMULATED = [Step(section, 600, 600) for section in CHECKED]


class Record:
    """The results so far, written to disk after every row."""

    def __init__(self, out: Path, content: dict[str, Any]) -> None:
        self.content, self.out = content, out
        self._rows: dict[tuple, dict] = {}
        self._lock = threading.Lock()
        # Every run on a GPU is kept, so its file is named after the device and the commit.
        stem = f"gpu {content['device']['name']} {content['machine']['commit'].split()[0]}"
        self.stem = stem.lower().replace(" ", "-")

    def add(self, section: str, line: dict) -> None:
        """Process a line printed by a section; a row replaces an earlier one."""
        with self._lock:
            if "row" in line:
                row = {"section": section, **line["row"]}
                known = self._rows.get((row["section"], *key_of(row)), {})
                if "wrong" not in known:  # once wrong, wrong
                    self._rows[(row["section"], *key_of(row))] = row
                self.content["rows"] = list(self._rows.values())
            elif "training" in line:
                self.content["training"][line["training"]["model"]] = line["training"]
            elif "epoch" in line:
                epoch = dict(line["epoch"])
                self.content["training"][epoch.pop("model")]["history"].append(epoch)
            elif "rate" in line:
                rate = dict(line["rate"])
                name = rate.pop("rate", None)
                if name is None:
                    self.content |= rate
                else:
                    self.content["rates"][name] = rate
            self.write()

    def note(self, kind: str, section: str, what: Any) -> None:
        with self._lock:
            self.content[kind][section] = what
            self.write()

    def write(self) -> None:
        self.file = timing.write_json(self.content, self.out, self.stem)


def run(
    out: Path,
    *,
    quick: bool = False,
    emulated: bool = False,
    only: list[str] | None = None,
    commit: str | None = None,
    data: Path | None = None,
    train_seconds: float | None = None,
) -> int:
    """Run every step, those that train only with `data`; the exit status."""
    if not emulated and (why := devices.unavailable()):
        print(f"python -m benchmarks gpu: no GPU to run on: {why}", file=sys.stderr)
        return 2
    known = EMULATED if emulated else STEPS
    steps = [s for s in known if s.name in (only or [s.name]) and (data or s.section != "training")]
    if train_seconds is not None:
        longer = {"quick": train_seconds, "full": train_seconds}
        steps = [replace(s, **longer) if s.name == "training" else s for s in steps]
    device = devices.Emulated() if emulated else devices.Cuda()
    machine = timing.machine("cupy-cuda12x", "cupy-cuda13x", "torch")
    content = {
        "benchmark": "gpu",
        "emulated": emulated,
        "quick": quick,
        "machine": machine | ({"commit": commit} if commit else {}),
        "device": device.record(),
        "kernels": [kernel.path for kernel in mf.kernels()],
        "seconds": {},
        "errors": {},
        "left_out": [],
        "rates": {},
        "training": {},
        "rows": [],
    }
    record = Record(out, content)
    print(plan(steps, quick), flush=True)

    def do(step: Step) -> None:
        start = time.monotonic()
        try:
            _run(step, record, quick, emulated, data)
        except OSError as error:  # compute-sanitizer is not part of every CUDA
            record.content["left_out"].append(f"{step.name}: {error}")
        record.note("seconds", step.name, time.monotonic() - start)
        print(f"{step.name}: {time.monotonic() - start:.0f} s", flush=True)

    for together, group in itertools.groupby(steps, lambda step: step.together):
        group = list(group)
        with ThreadPoolExecutor(len(group) if together else 1) as pool:
            list(pool.map(do, group))
    text = tables.document(record.content)
    record.file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written: {record.file.name} and its .md")
    return 0 if succeeded(record.content) else 1


def plan(steps: list[Step], quick: bool) -> str:
    """The steps with their seconds, and the sum of them."""
    total, lines = 0.0, []
    for together, group in itertools.groupby(steps, lambda step: step.together):
        seconds = {step.name: step.seconds(quick) for step in group}
        total += max(seconds.values()) if together else sum(seconds.values())
        how = "together" if together else "alone"
        lines += [f"  {how:8} {name}: at most {s:.0f} s" for name, s in seconds.items()]
    return "\n".join([f"plan: at most {total:.0f} s", *lines])


def succeeded(record: dict) -> bool:
    """Whether no section failed, no test failed, and no answer was wrong."""
    tested = record.get("tests", {"exit_status": "not run"})
    passed = tested["exit_status"] == 0 and "passed" in tested["result"]  # all skipped is no pass
    wrong = any("wrong" in row for row in record["rows"])
    return (passed or record["emulated"]) and not wrong and not record["errors"]


def _run(step: Step, record: Record, quick: bool, emulated: bool, data: Path | None) -> None:
    """Run one step to its end or time limit; a process that died is restarted."""
    end = time.monotonic() + step.seconds(quick)
    command = step.command(quick, emulated, data)
    if step.section == "tests":
        _tests(command, record, end)
        return
    done = 0
    while True:
        status, finished, begun, tail = _process([*command, f"--first={done}"], step, record, end)
        done += finished
        if status == 0:
            return
        if status is None:
            record.content["left_out"].append(f"{step.name} after {done} cases")
            return
        if begun is not None:  # it died in the middle of a case
            done += 1
            record.add(
                step.section, {"row": begun | {"wrong": f"exit status {status}: {tail[-1:]}"}}
            )
        elif status != DEVICE_LOST:
            record.note("errors", step.name, tail[-5:] or [f"exit status {status}"])
            return


def _process(
    command: list[str], step: Step, record: Record, end: float
) -> tuple[int | None, int, dict | None, list[str]]:
    """Exit status (None: killed at `end`), cases finished, the case begun, its last words."""
    late, finished, begun, tail = threading.Event(), 0, None, []
    with subprocess.Popen(
        command,
        cwd=timing.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:

        def kill() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(max(0, end - time.monotonic()), kill)
        timer.start()
        for text in process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                tail = [*tail[-20:], timing.without_paths(text.rstrip())]
                continue
            if "begin" in line:
                begun = line["begin"]
            else:
                finished, begun = finished + 1, None
                record.add(step.section, line)
        status = process.wait()
        timer.cancel()
    return (None if late.is_set() else status), finished, begun, tail


def _tests(command: list[str], record: Record, end: float) -> None:
    """The tests marked gpu: their last line, and the tail of what they print if any fails."""
    try:
        done = subprocess.run(
            command,
            cwd=timing.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=end - time.monotonic(),
        )
        status, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, text = "timeout", (error.stdout or b"").decode(errors="replace")
    lines = timing.without_paths(text).splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    record.content["tests"] = {
        "exit_status": status,
        "result": lines[-1] if lines else "",
        "tail": [*failed[:60], *lines[-40:]] if status else [],
    }
    record.write()
    if status:
        (record.out / "tests.txt").write_text("\n".join(lines), encoding="utf-8")
