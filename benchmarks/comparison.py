"""Record the output of `mulfree compare`."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path

from benchmarks import timing
from mulfree_cupy.report.comparison import Row, table

PICTURES = "energy", "curves", "weights", "filters", "features"


def run(stem: str, folder: Path, title: str, out: Path | None) -> int:
    """Print the table; with `out` write JSON and markdown named after `stem`, and the pictures."""
    record = {
        "benchmark": "comparison",
        "stem": stem,
        "title": title,
        "machine": timing.machine(),
        "recipe": json.loads((folder / "comparison.json").read_text("utf-8")),
        "rows": [asdict(row) for row in _read(folder / "comparison.csv")],
    }
    print(document(record))
    if out is not None:
        file = timing.write_json(record, out, f"{stem}-comparison")
        file.with_suffix(".md").write_text(document(record) + "\n", encoding="utf-8")
        for name in PICTURES:
            shutil.copyfile(folder / f"{name}.png", out / f"{file.stem}-{name}.png")
        print(f"Written: {file}, .md and pictures beside it")
    return 0


def _read(path: Path) -> list[Row]:
    kinds = {
        field.name: {"str": str, "int": int, "float": float}[field.type] for field in fields(Row)
    }
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(**{name: kind(row[name]) for name, kind in kinds.items()})
            for row in csv.DictReader(file)
        ]


def short_table(record: dict) -> str:
    rows = [
        (row["title"], f"{row['accuracy']:.1%}", f"{1e6 * row['joules']:.3g} µJ")
        for row in record["rows"]
    ]
    head = f"{record['rows'][0]['epochs']} epochs", "test accuracy", "energy of the arithmetic"
    return timing.table(head, rows)


def document(record: dict) -> str:
    machine, recipe = record["machine"], record["recipe"]
    rows = [Row(**row) for row in record["rows"]]
    seeds = {row.seeds for row in rows}
    runs = "one run each" if seeds == {1} else f"mean ± deviation of {max(seeds)} runs"
    return (
        f"{record['title']}. {recipe['epochs']} epochs, batch {recipe['batch_size']}, rate "
        f"{recipe['rate']:g}, {runs}. {machine['date']}, {machine['cpu']}, commit "
        f"{machine['commit']}.\n\n{table(rows)}"
    )
