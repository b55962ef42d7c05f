"""The plan of a GPU run: sections as processes, first together to check, then alone to be timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.gpu import devices, tables
from benchmarks.gpu.cases import key_of
from benchmarks.gpu.process import DEVICE_LOST


@dataclass(frozen=True)
class Step:
    """A section and the seconds that it may take in a quick run and in a full one.

    Steps that run `together` share the device and all cores: what they find out is right or wrong.
    The others are alone, since they time.
    """

    name: str
    quick: float
    full: float
    together: bool = False

    def command(self, quick: bool, tiny: bool, emulated: bool) -> list[str]:
        """Without the interpreter's path."""
        if self.name == "tests":
            return ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *_workers()]
        if self.name == "training":
            return ["-m", "benchmarks.gpu.training", f"--seconds={self.quick if quick else self.full}"]
        flags = {"--check": self.together, "--quick": quick, "--tiny": tiny, "--emulated": emulated}
        section = self.name.removesuffix(" checked")
        return ["-m", "benchmarks.gpu.process", section, *(f for f, wanted in flags.items() if wanted)]


def _workers() -> list[str]:
    """As many test processes as half of the cores carry, where pytest-xdist is installed."""
    if "pytest-xdist" not in timing.versions("pytest-xdist"):
        return ["tests"]
    return ["-n", str(max(1, timing.cores() // 2)), "tests"]


# What matters first comes first: a run that is cut off has it.
STEPS = [
    Step("tests", 90, 110, together=True),
    Step("adder checked", 60, 80, together=True),
    Step("shift checked", 60, 80, together=True),
    Step("winograd checked", 60, 80, together=True),
    Step("rates", 15, 15),
    Step("adder", 25, 70),
    Step("shift", 20, 45),
    Step("peers", 15, 50),
    Step("winograd", 10, 50),
]
EMULATED = [Step(name, 600, 600) for name in ("adder", "shift", "winograd")]


class Record:
    """What is known so far, on disk after every row."""

    def __init__(self, out: Path, content: dict[str, Any]) -> None:
        self.content, self.out = content, out
        self._rows: dict[tuple, dict] = {}
        self._lock = threading.Lock()
        # Every run on a GPU is kept, so its file is named after the device and the commit.
        stem = f"gpu {content['device']['name']} {content['machine']['commit'].split()[0]}"
        self.stem = stem.lower().replace(" ", "-")

    def add(self, section: str, line: dict) -> None:
        """Take in a line that a section printed; a row takes the place of an earlier one."""
        with self._lock:
            if "row" in line:
                row = {"section": section.removesuffix(" checked"), **line["row"]}
                known = self._rows.get((row["section"], *key_of(row)), {})
                if "wrong" not in known:  # once wrong, wrong
                    self._rows[row["section"], *key_of(row)] = row
                self.content["rows"] = list(self._rows.values())
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
) -> int:
    """Run every step for which there is time; the exit status."""
    if not emulated and (why := devices.unavailable()):
        print(f"python -m benchmarks gpu: no GPU to run on: {why}", file=sys.stderr)
        return 2
    steps = [s for s in (EMULATED if emulated else STEPS) if not only or s.name in only]
    device = devices.Emulated() if emulated else devices.Cuda()
    machine = timing.machine("cupy-cuda12x", "cupy-cuda13x", "torch")
    content = {
        "benchmark": "gpu",
        "emulated": emulated,
        "quick": quick,
        "machine": machine | ({"commit": commit} if commit else {}),
        "device": device.record(),
        "seconds": {},
        "errors": {},
        "left_out": [],
        "rates": {},
        "rows": [],
    }
    record = Record(out, content)
    print(plan(steps, quick), flush=True)

    def do(step: Step) -> None:
        start = time.monotonic()
        _run(step, record, quick, emulated)
        record.note("seconds", step.name, time.monotonic() - start)
        print(f"{step.name}: {time.monotonic() - start:.0f} s", flush=True)

    together = [step for step in steps if step.together]
    with ThreadPoolExecutor(max(1, len(together))) as pool:
        list(pool.map(do, together))
    for step in steps:
        if not step.together:
            do(step)
    text = tables.document(record.content)
    record.file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written: {record.file.name} and its .md")
    return 0 if succeeded(record.content) else 1


def plan(steps: list[Step], quick: bool) -> str:
    """The steps with their seconds, and the sum of them."""
    seconds = {step: step.quick if quick else step.full for step in steps}
    first = max((s for step, s in seconds.items() if step.together), default=0)
    rest = sum(s for step, s in seconds.items() if not step.together)
    lines = [
        f"  {'together' if step.together else 'alone   '} {step.name}: at most {s:.0f} s"
        for step, s in seconds.items()
    ]
    return "\n".join([f"plan: at most {first + rest:.0f} s", *lines])


def succeeded(record: dict) -> bool:
    """Whether no section failed, no test failed, and no answer was wrong."""
    tested = record.get("tests", {"exit_status": "not run"})
    passed = tested["exit_status"] == 0 and "passed" in tested["result"]  # all skipped is no pass
    wrong = any("wrong" in row for row in record["rows"])
    return (passed or record["emulated"]) and not wrong and not record["errors"]


def _run(step: Step, record: Record, quick: bool, emulated: bool) -> None:
    """One step to its end or to its time; a process that died is followed by another."""
    end = time.monotonic() + (step.quick if quick else step.full)
    command = [sys.executable, *step.command(quick, tiny=emulated, emulated=emulated)]
    if step.name == "tests":
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
            record.add(step.name, {"row": begun | {"wrong": f"exit status {status}: {tail[-1:]}"}})
        if status != DEVICE_LOST and begun is None:
            record.note("errors", step.name, tail[-5:] or [f"exit status {status}"])
            return


def _process(
    command: list[str], step: Step, record: Record, end: float
) -> tuple[int | None, int, dict | None, list[str]]:
    """Exit status (None: killed at `end`), cases finished, the case begun, its last words."""
    process = subprocess.Popen(
        command,
        cwd=timing.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    late = threading.Event()

    def kill() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(max(0, end - time.monotonic()), kill)
    timer.start()
    finished, begun, tail = 0, None, []
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
            record.add(step.name, line)
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
