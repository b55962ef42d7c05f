"""Memory accesses of kernels, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mulfree_cupy.lessons.trials import Trial

_Measure = Callable[[Trial], float | None]


def _an_output(name: str) -> _Measure:
    return lambda trial: getattr(trial.total, name) / trial.outputs


def _a_request(name: str, requests: str) -> _Measure:
    """Per warp-level request, if there are any."""

    def measure(trial: Trial) -> float | None:
        of, total = getattr(trial.total, requests), getattr(trial.total, name)
        return total / of if of else None

    return measure


def _threads(trial: Trial) -> float:
    return sum(counts.threads for counts in trial.report.counts.values()) / trial.outputs


def _barriers(trial: Trial) -> float | None:
    blocks = sum(launch.blocks for launch in trial.report.launches)
    return trial.total.barriers / blocks if blocks else None


MEASURES: dict[str, _Measure] = {
    "threads per output": _threads,
    "global loads per output": _an_output("global_loads"),
    "global stores per output": _an_output("global_stores"),
    "global bytes per output": lambda trial: 32 * trial.total.sectors / trial.outputs,
    "sectors per request": _a_request("sectors", "global_requests"),
    "shared loads per output": _an_output("shared_loads"),
    "shared stores per output": _an_output("shared_stores"),
    "bank conflicts per request": _a_request("bank_conflicts", "shared_requests"),
    "barriers per block": _barriers,
}


def table(trials: Mapping[str, Trial]) -> str:
    """The measures of traced trials, one column each."""
    rows = [["", *trials]]
    for label, measure in MEASURES.items():
        rows.append([label, *(number(measure(trial)) for trial in trials.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def number(value: float | None) -> str:
    """With at least three digits, or one if it is below a hundredth; a dash for None."""
    if not value:
        return "-"
    if value < 0.01:
        return f"{value:.1g}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
