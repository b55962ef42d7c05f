"""Insert the newest results into the README and the docs, between their markers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mulfree_cupy as mf
from benchmarks import timing
from benchmarks.gpu import tables as gpu_tables

NOT_RUN = "not yet run on a GPU"


def run(check: bool) -> int:
    """Rewrite the README and the pages of docs/; with `check` only say which would change."""
    sections = current_sections()
    stale = []
    for file in (timing.ROOT / "README.md", *sorted((timing.ROOT / "docs").rglob("*.md"))):
        text = file.read_text(encoding="utf-8")
        if (new := fill(text, sections)) != text:
            stale.append(str(file.relative_to(timing.ROOT)))
            if not check:
                file.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'out of date' if check else 'rewritten'}: {', '.join(stale)}")
    else:
        print("up to date")
    return 1 if check and stale else 0


def current_sections() -> dict[str, str]:
    """What belongs between the markers of each name, from the newest results."""
    from benchmarks import (
        adder,
        batch1,
        binary,
        comparison,
        curves,
        distances,
        emulator,
        errors,
        goals,
        inference,
        pruning,
        recipe,
        shift,
        training,
        winograd,
    )

    kinds = "training", "errors", "emulator", "gpu"
    found = {kind: newest(timing.RESULTS, kind) for kind in kinds}
    sections = {"gpu-status": status_table(found["gpu"])}
    # Oldest first: the newest of an instruction set stays.
    for record in records(timing.RESULTS, "adder"):
        rows, features = record["layers"], record["cpu_features"]
        parts = goals.summary(record), adder.goal_table(rows), adder.NOTES, adder.verdicts(record)
        sections[f"adder-{features}"] = "\n\n".join(parts)
        sections[f"adder-beside-{features}"] = adder.beside_table(rows)
    for record in records(timing.RESULTS, "batch1"):
        sections[f"batch1-{record['cpu_features']}"] = batch1.document(record)
    for record in records(timing.RESULTS, "binary"):
        sections[f"binary-{record['cpu_features']}"] = binary.document(record)
    for record in records(timing.RESULTS, "distances"):
        sections[f"distances-{record['cpu_features']}"] = distances.document(record)
    for record in records(timing.RESULTS, "inference"):
        sections[f"inference-{record['cpu_features']}"] = inference.document(record)
    for record in records(timing.RESULTS, "winograd"):
        sections[f"winograd-{record['cpu_features']}"] = winograd.document(record)
    for record in records(timing.RESULTS, "shift"):
        rows, features = record["layers"], record["cpu_features"]
        tables = shift.move_table(record), shift.layer_table(rows)
        parts = goals.summary(record), *tables, shift.NOTES, shift.verdicts(record)
        sections[f"shift-{features}"] = "\n\n".join(parts)
        sections[f"shift-beside-{features}"] = shift.beside_table(rows)
    if record := found["training"]:
        sections["training"] = training.document(record)
    if record := found["errors"]:
        sections["errors"] = errors.document(record)
    if record := found["emulator"]:
        sections["emulator"] = emulator.document(record)
    for record in records(timing.RESULTS, "curves"):  # oldest first: the newest of a name stays
        sections[f"curves-{record['stem']}"] = curves.document(record)
    for record in records(timing.RESULTS, "pruning"):
        sections[f"pruning-{record['stem']}"] = pruning.document(record)
    for record in records(timing.RESULTS, "comparison"):
        sections[f"comparison-{record['stem']}"] = comparison.document(record)
        sections[f"comparison-{record['stem']}-short"] = comparison.short_table(record)
    for record in records(timing.RESULTS, "recipe"):
        sections[f"recipe-{record['stem']}"] = recipe.document(record)
    if record := found["gpu"]:
        sections["gpu"] = gpu_tables.document(record).strip()
    return sections


def newest(folder: Path, kind: str) -> dict | None:
    """The latest record of one kind of benchmark; None if there is none."""
    return next(reversed(records(folder, kind)), None)


def records(folder: Path, kind: str) -> list[dict]:
    """All records of one kind of benchmark, oldest first."""
    found = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*.json"))]
    fitting = [r for r in found if r["benchmark"] == kind and not r.get("emulated")]
    return sorted(fitting, key=lambda r: (r["machine"]["date"], r["machine"]["time"]))


def fill(text: str, sections: dict[str, str]) -> str:
    """The text with each marked section that has a result replaced by it."""

    def replacement(match: re.Match) -> str:
        name = match[1]
        if name not in sections:
            return match[0]
        return f"<!-- benchmark:{name} -->\n{sections[name]}\n<!-- /benchmark:{name} -->"

    pattern = r"<!-- benchmark:([\w-]+) -->.*?<!-- /benchmark:\1 -->"
    return re.sub(pattern, replacement, text, flags=re.DOTALL)


def status_table(record: dict | None) -> str:
    """For every CUDA file: has it run on a GPU, and were its answers right?"""
    return timing.table(
        ["CUDA kernel", "on a GPU"],
        [[kernel.path, _status(kernel, record)] for kernel in mf.kernels()],
    )


# Files that nobody selects by name, and what runs them. The others of their rooms, such as those of
# a training step, run in the tests marked gpu.
RUN_BY = {
    "convolution/im2col.cu": {"operation": "im2col"},
    "convolution/2_implicit_conv.cu": {"operation": "conv"},
    "convolution/grad_x.cu": {"operation": "conv_backward"},
    "convolution/grad_w.cu": {"operation": "conv_backward"},
    "adder/grad_x.cu": {"operation": "adder_conv_backward"},
    "adder/grad_w.cu": {"operation": "adder_conv_backward"},
    "adder/add_parts.cu": {"operation": "adder_conv_backward"},
    "adder/pack_channels.cu": {"operation": "adder_conv", "dtype": "uint8"},
    "binary/1_naive.cu": {"operation": "binary_conv", "kernel": "1_naive"},
    "binary/2_register_tile.cu": {"operation": "binary_conv", "kernel": "2_register_tile"},
    "binary/3_tensor_cores.cu": {"operation": "binary_conv", "kernel": "3_tensor_cores"},
    "binary/fragments.cu": {"operation": "binary_conv", "kernel": "3_tensor_cores"},
    "binary/ones.cu": {"operation": "binary_conv", "kernel": "3_tensor_cores"},
    "binary/pack.cu": {"operation": "pack_signs"},
    "shift/fused_adder_conv.cu": {"operation": "shift_adder_conv"},
    "shift/fused_grad_x.cu": {"operation": "shift_conv_backward"},
    "shift/fused_grad_w.cu": {"operation": "shift_conv_backward"},
    "winograd/1_input_transform.cu": {"kernel": "1_dense"},
    "winograd/1_output_transform.cu": {"kernel": "1_dense"},
}


def _status(kernel, record: dict | None) -> str:
    if record is None:
        return NOT_RUN
    wanted = RUN_BY.get(kernel.path, {"kernel": kernel.name}).items()
    rows = [row for row in record["rows"] if "refused" not in row and wanted <= row.items()]
    if any("wrong" in row for row in rows):
        return "WRONG on a GPU"
    tested = kernel.path in record.get("kernels", ()) and record["tests"]["exit_status"] == 0
    if not rows and not tested:
        return NOT_RUN
    machine = record["machine"]
    how = "right" if rows else "tests passed"
    return f"{how} on {record['device']['name']}, {machine['date']}, commit {machine['commit']}"
