"""Ratios of times with goals: tables, and which goals are met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import geometric_mean

from benchmarks import timing


@dataclass(frozen=True)
class Column:
    """A ratio of two measured times: time of `over` / time of `under`, and what it should be."""

    head: str
    over: str
    under: str
    form: str = ".2f"
    goal: float | None = None
    aim: float | None = None
    at_most: bool = False
    where: Callable[[str], bool] = lambda name: True  # the layers that the goal is for, by name

    def met(self, value: float) -> bool:
        return value <= self.goal if self.at_most else value >= self.goal


@dataclass(frozen=True)
class Mean:
    """The geometric mean of a column over some layers, and what it should be by instruction set."""

    head: str
    goal: dict[str, float]
    layers: str = "all layers"
    where: Callable[[str], bool] = lambda name: True

    def verdict(self, rows: list[dict], features: str) -> str:
        """One line: the mean, the goal and whether it is met."""
        values = [row["ratios"].get(self.head) for row in rows if self.where(row["name"])]
        text = f"- {self.head}, geometric mean of {self.layers}"
        if not values or None in values:
            return f"{text}: not measured"
        mean, goal = geometric_mean(values), self.goal.get(features)
        if goal is None:
            return f"{text}: {mean:.2f}"
        return f"{text} >= {goal:.2f}: {'met' if mean >= goal else 'not met'}, {mean:.2f}"


def ratios(seconds: timing.Seconds, columns: list[Column]) -> dict[str, float | None]:
    """The ratio of every column, by its head."""
    return {c.head: timing.ratio(seconds, c.over, c.under) for c in columns}


def summary(record: dict) -> str:
    """One line: machine, software and conditions of the measurement."""
    machine = record["machine"]
    software = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['cpu']}, {record['threads']} threads, "
        f"{record['cpu_features']}; {software}; commit {machine['commit']}{_disturbed(record)}"
    )


def _disturbed(record: dict) -> str:
    count = record.get("disturbed", 0)  # nothing is timed by some
    if not count:
        return ""
    total = record["measurements"]
    verdict = ": not fit to be quoted" if count > total / 10 else ""
    return f"; other processes disturbed {count} of {total} measurements{verdict}"


def table(
    head: list[str],
    rows: list[dict],
    first: Callable[[dict], list[str]],
    columns: list[Column],
) -> str:
    """A row for each of `rows`, with the cells `first` gives and its ratios; then the goals."""
    body = [
        first(row) + [timing.cell(row["ratios"].get(c.head), c.form) for c in columns]
        for row in rows
    ]
    blank = [""] * (len(head) - 1)
    if any(c.goal is not None for c in columns):
        body.append(["goal", *blank, *map(_bound, columns)])
    if any(c.aim is not None for c in columns):
        body.append(["aim", *blank, *(timing.cell(c.aim, c.form) for c in columns)])
    return timing.table([*head, *(c.head for c in columns)], body)


def _bound(column: Column) -> str:
    if column.goal is None:
        return "-"
    return f"{'<=' if column.at_most else '>='} {column.goal:{column.form}}"


def verdicts(rows: list[dict], columns: list[Column]) -> str:
    """One line per goal: the number of rows on which it is met, and where it is not."""
    lines = []
    for column in (c for c in columns if c.goal is not None):
        values = {r["name"]: r["ratios"].get(column.head) for r in rows if column.where(r["name"])}
        values = {name: value for name, value in values.items() if value is not None}
        below = [name for name, value in values.items() if not column.met(value)]
        if not values:
            verdict = "not measured"
        elif below:
            verdict = f"on {len(values) - len(below)} of {len(values)} layers, not on "
            verdict += "; ".join(below)
        else:
            verdict = f"met on all {len(values)} layers"
        lines.append(f"- {column.head} {_bound(column)}: {verdict}")
    return "\n".join(lines)
