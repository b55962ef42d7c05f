"""Rounds of interleaved timings, their medians and ratios, and the record of the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from statistics import median

from mulfree_cupy.report.output import table as table

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"

# After a parallel call the threads of a library's pool spin for some milliseconds before they
# sleep, and would slow down the next measurement.
GAP = 0.05

Seconds = dict[str, list[float]]


def call_seconds(function: Callable[[], object], least: float) -> float:
    """Median seconds of a call: one untimed, then as many as fill `least` seconds, at least one."""
    function()
    taken: list[float] = []
    while not taken or sum(taken) < least:
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return median(taken)


def case(function: Callable[[], object], least: float, scale: float = 1) -> Callable[[], float]:
    """A case for `interleaved`: a call's seconds, times what it stands for."""
    return lambda: scale * call_seconds(function, least)


class Quiet:
    """Repeats a measurement during which other processes were at work, while patience lasts."""

    def __init__(self, patience: float = 0) -> None:
        self.patience = patience
        self.taken = 0
        self.disturbed = 0  # measurements that were kept all the same

    def __call__(self, case: Callable[[], float]) -> float:
        self.taken += 1
        while True:
            time.sleep(GAP)
            start, others = time.monotonic(), others_seconds()
            seconds = case()
            elapsed, others = time.monotonic() - start, others_seconds() - others
            if others <= 0.02 + 0.05 * elapsed:  # the kernel counts in steps of 0.01 s
                return seconds
            if self.patience <= 0:
                self.disturbed += 1
                return seconds
            time.sleep(0.3)
            self.patience -= elapsed + 0.3


def others_seconds() -> float:
    """CPU seconds used by other processes so far; 0 if unknown."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, interrupts, soft_interrupts, steal = map(int, fields[1:9])
    busy = user + nice + system + interrupts + soft_interrupts + steal
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def interleaved(
    cases: Mapping[str, Callable[[], float]], rounds: int, measure: Callable
) -> Seconds:
    """Ask every case for its seconds once a round, `rounds` times.

    A case returns seconds, its own measurement; a slow phase of the machine so falls on all cases
    of a round, and a ratio within the round does not see it.
    """
    seconds: Seconds = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(measure(case))
    return seconds


def ratio(seconds: Seconds, numerator: str, denominator: str) -> float | None:
    """Median over the rounds of numerator / denominator; None if either was not measured."""
    if numerator not in seconds or denominator not in seconds:
        return None
    pairs = zip(seconds[numerator], seconds[denominator], strict=True)
    return median(a / b for a, b in pairs)


def choose_fastest(seconds: Seconds, name: str, *ways: str) -> None:
    """Set `name` to the fastest of several variants, by median."""
    measured = [way for way in ways if way in seconds]
    if measured:
        seconds[name] = seconds[min(measured, key=lambda way: median(seconds[way]))]


def progress(items: Iterable, unit: str) -> Iterable:
    """The items, with a progress bar where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, unit=unit, leave=False)


def rounded(value):
    """The numbers of a nested record to five digits: more is noise, and makes a diff unreadable."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return value


def machine(*packages: str) -> dict[str, object]:
    """What the figures depend on; nothing that names the machine or its folders."""
    now = datetime.now(timezone.utc)
    return {
        "date": now.date().isoformat(),
        "time": f"{now:%H:%M} UTC",
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions("mulfree_cupy", "numpy", *packages),
    }


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def versions(*packages: str) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Vendor's name of the processor with its family, model and stepping where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(
        (key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)
    )
    if "model name" not in fields:
        return platform.machine()
    numbers = "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{fields['model name']} (family/model/stepping {numbers})"


def commit() -> str:
    """The short hash of the checkout, marked if the sources differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        sources = "mulfree_cupy", "cpu", "cuda", "benchmarks", ":!benchmarks/results"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *sources)
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def without_paths(text: str) -> str:
    """The text with the paths of this checkout and the user's home abbreviated: results are
    published."""
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")


def write_json(record: dict, out: Path, stem: str) -> Path:
    """Write `<out>/<stem>-<instruction set, if recorded>-<date>.json` and return its path."""
    out.mkdir(parents=True, exist_ok=True)
    parts = stem, record.get("cpu_features"), record["machine"]["date"]
    file = out / f"{'-'.join(filter(None, parts))}.json"
    text = json.dumps(rounded(record), indent=1)
    one_line = re.sub(r"\[([-+\d.e,\s]+)\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    file.write_text(one_line + "\n", encoding="utf-8")
    return file


def cell(value: float | None, form: str = ".2f") -> str:
    """A number for a table; what was not measured is a dash."""
    return "-" if value is None else format(value, form)


def milliseconds(*rows: dict) -> str:
    """The least of the medians, `right` for an answer checked without a time."""
    if any("wrong" in row for row in rows):
        return "WRONG"
    medians = [row["seconds"]["median"] for row in rows if row.get("seconds")]
    if medians:
        return f"{min(medians) * 1e3:.3f}"
    return "right" if any(row.get("checked") for row in rows) else "-"
