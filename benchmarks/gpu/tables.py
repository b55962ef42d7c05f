"""The record of a GPU run as markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu import binary, shift, step, training, winograd
from benchmarks.timing import cell, milliseconds, table

# abs(x - w) per clock and multiprocessor. float32: two additions on 128 lanes (64 lanes on 7.5 and
# 8.0). uint8: VABSDIFF4 does four, on 64 lanes if it runs at the rate of the integer unit, which
# is what the rates section measures. float16: two additions of two halves, as many instructions as
# are issued.
LIMITS = {"uint8": 256, "float16": 128}


def float32_limit(compute_capability: str) -> int:
    return 32 if compute_capability in ("75", "80") else 64


def document(record: dict) -> str:
    """The whole record: where, the tests, the rates, and a table for each kind of kernel."""
    parts = [heading(record), tests_line(record)]
    if record.get("rates"):
        parts.append(rates_table(record))
    parts += training.document(record)
    if record["rows"]:
        parts += [
            *ladders(record),
            "Other operations, and the same layers in other libraries:",
            others_table(record),
            NOTES,
            *binary.document(record),
            *shift.document(record),
            *winograd.document(record),
            *step.document(record),
        ]
    if wrong := [row for row in record["rows"] if "wrong" in row]:
        parts.append("Wrong answers:\n" + "\n".join(f"- {row['wrong']}" for row in wrong))
    if record["errors"]:
        parts.append("Errors:\n" + "\n".join(f"- {k}: {v}" for k, v in record["errors"].items()))
    if record["left_out"]:
        parts.append("No time was left for: " + ", ".join(record["left_out"]))
    return "\n\n".join(parts) + "\n"


NOTES = """\
A term is one abs(x - w). Times are medians by CUDA events, with operands not in the L2 cache; a
figure is shown only if the whole result agreed with float64 sums on the device. The clock is
measured right after each timing. The time of the float32 kernels before the implicit one includes
unfolding the input. `-`: not measured."""


def heading(record: dict) -> str:
    device, machine = record["device"], record["machine"]
    copy = record.get("copy_bytes_per_second")
    facts = [
        device["name"],
        f"compute capability {device['compute_capability']}",
        f"{device['multiprocessors']} multiprocessors",
        f"driver {device['driver_version']}" if "driver_version" in device else "",
        f"CuPy {device['cupy']}, NVRTC {device['nvrtc']}" if "cupy" in device else "",
        f"copy {copy / 1e12:.2f} TB/s read plus written" if copy else "",
        f"{machine['date']}, commit {machine['commit']}",
    ]
    return ", ".join(fact for fact in facts if fact)


def tests_line(record: dict) -> str:
    if record["emulated"]:
        return "Emulated: answers are checked, nothing is timed, no GPU was used."
    result = record.get("tests")
    return f"Tests marked gpu: {result['result']}" if result else "Tests marked gpu: not run"


def rates_table(record: dict) -> str:
    body = [
        [name, cell(rate["per_clock"], ".1f"), cell(rate["per_second"], ".3g")]
        for name, rate in record["rates"].items()
    ]
    return table(["rate", "per clock and multiprocessor", "per second"], body)


def terms_per_clock(record: dict, row: dict) -> float | None:
    """Terms per clock and multiprocessor; None where there is no time."""
    if not row.get("seconds") or not row.get("clock_hz"):
        return None
    ticks = row["seconds"]["median"] * row["clock_hz"] * record["device"]["multiprocessors"]
    return row["terms"] / ticks


def ladders(record: dict) -> Iterator[str]:
    """A heading and a table for every dtype of the adder."""
    found = [row for row in record["rows"] if row["operation"] == "adder_conv"]
    for dtype in ("float32", "uint8", "float16"):
        if rows := [row for row in found if row["dtype"] == dtype]:
            yield f"adder_conv {dtype}, terms per clock and multiprocessor, by kernel:"
            yield ladder_table(record, rows, dtype)


def ladder_table(record: dict, rows: list[dict], dtype: str) -> str:
    """One row per layer, one column per kernel; then the first one's time and its fraction of the
    limits."""
    kernels = list(dict.fromkeys(r["kernel"] for r in rows if "refused" not in r))
    limit = LIMITS.get(dtype) or float32_limit(record["device"]["compute_capability"])
    body = []
    for layer in dict.fromkeys(r["layer"] for r in rows):
        found = {r["kernel"]: r for r in rows if r["layer"] == layer}
        first = found.get(kernels[0], {}) if kernels else {}
        rate = terms_per_clock(record, first)
        body.append(
            [layer]
            + [_outcome(record, found[k]) if k in found else "-" for k in kernels]
            + [
                milliseconds(first),
                cell(rate / limit if rate else None, ".0%"),
                cell(_of_copy(record, first), ".0%"),
            ]
        )
    return table(["layer", *kernels, "ms", f"of {limit}", "of copy speed"], body)


def _outcome(record: dict, row: dict) -> str:
    if "wrong" in row:
        return "WRONG"
    rate = terms_per_clock(record, row)
    return f"{rate:.1f}" if rate else "right" if row.get("checked") else "-"


def _of_copy(record: dict, row: dict) -> float | None:
    """Bytes that the operation must move a second, relative to a plain copy."""
    copy = record.get("copy_bytes_per_second")
    if not copy or not row.get("seconds"):
        return None
    return row["bytes"] / row["seconds"]["median"] / copy


def others_table(record: dict) -> str:
    """Milliseconds of everything outside the ladder, one row per layer."""
    heads = {
        "adder_conv": "adder_conv",
        "adder_conv_backward": "adder backward",
        "conv": "conv",
        "conv_backward": "conv backward",
        "im2col": "im2col",
        "conv2d float32": "cuDNN float32",
        "conv2d TF32": "cuDNN TF32",
        "conv2d float16": "cuDNN float16",
        "torch.cdist": "torch.cdist",
        "cuvs L1": "cuVS L1",
    }
    body = []
    layers = (r["layer"] for r in record["rows"] if r["operation"] == "adder_conv")
    for layer in dict.fromkeys(layers):
        rows = [r for r in record["rows"] if r["layer"] == layer and r["dtype"] == "float32"]
        rows = [r for r in rows if r["kernel"] in ("default", "torch", "cuvs")]
        # Of cuDNN's two layouts, the faster.
        found = [[r for r in rows if _same(r["operation"], name)] for name in heads]
        body.append([layer, *(milliseconds(*group) for group in found)])
    return table(["layer, ms", *heads.values()], body)


def _same(operation: str, name: str) -> bool:
    return operation == name or operation in (f"{name} contiguous", f"{name} channels_last")
