"""Record pruning curves: accuracy and savings of networks by density."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks import timing
from mulfree_cupy.report import pruning

COUNTS = "static", "dynamic"


def run(stem: str, folders: list[Path], title: str, out: Path | None) -> int:
    """Print the table; with `out` write JSON, markdown, CSV and PNG, named after `stem`."""
    runs, plans = {}, {}
    for folder in folders:
        found = pruning.read(folder / "pruning.csv")
        runs |= found
        plans |= dict.fromkeys(found, json.loads((folder / "plan.json").read_text("utf-8")))
    record = {
        "benchmark": "pruning",
        "stem": stem,
        "title": title,
        "machine": timing.machine(),
        "plans": plans,
        "runs": {name: [asdict(row) for row in rows] for name, rows in runs.items()},
    }
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, f"{stem}-pruning")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        pruning.write(file.with_suffix(".png"), runs, title=title)
        print(f"Written: {file} and .md, .csv, .png beside it")
    return 0


def document(record: dict) -> str:
    machine = record["machine"]
    head = ["network", "weights left", "test accuracy", *(f"{c}, network" for c in COUNTS)]
    rows = [
        [name, f"{row['kept']:.1%}", f"{row['test_accuracy']:.2%}"]
        + [f"{row[f'network_{count}']:.2f}x" for count in COUNTS]
        for name, rows in record["runs"].items()
        for row in rows
    ]
    return (
        f"{record['title']}. {machine['date']}, {machine['cpu']}, commit {machine['commit']}. "
        "Times fewer multiplications than the dense convolutions, by zero weights (static) and by "
        "zero activations too (dynamic).\n\n" + timing.table(head, rows)
    )
