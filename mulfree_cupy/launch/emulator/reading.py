"""Read the runtime's findings and counts after a launch, and look up the lines they speak of."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

from mulfree_cupy.launch.emulator import runtime
from mulfree_cupy.launch.emulator.arguments import Arguments
from mulfree_cupy.launch.emulator.compiler import HEADERS
from mulfree_cupy.launch.emulator.report import Counts, Finding, KernelCounts, Report

_KINDS = (
    "out_of_bounds", "misaligned", "race", "uninitialised", "divergent_barrier",
    "divergent_collective", "out_of_row", "trap", "crash", "timeout", "read_only", "same_value",
)  # fmt: skip
_READ, _WRITE, _ATOMIC = range(3)
_VERBS = ("reads", "writes", "updates atomically")
_PAST = ("read", "written", "updated atomically")


def read_findings(
    library: ctypes.CDLL,
    count: int,
    kernel: str,
    launch: runtime.Launch,
    arguments: Arguments,
) -> list[Finding]:
    """The findings of the last launch, in words."""
    if not count:
        return []
    rows = library.mulfree_findings()[:count]
    regions = runtime.table(library, "regions")
    pcs = {pc for r in rows for pc in (r.pc, r.other_pc, *r.calls[: r.call_count]) if pc}
    lines = source_lines(library, pcs)
    found = []
    for row in rows:
        file, line = _place(row, lines) or (kernel, 0)
        region = regions[row.region] if row.region >= 0 else None
        array = _array(region, arguments)
        found.append(
            Finding(
                kind=_KINDS[row.kind],
                kernel=kernel,
                file=file,
                line=line,
                block=_coordinates(row.block, launch.grid),
                thread=_coordinates(row.thread, launch.block),
                array=array,
                offset=row.offset if region is not None else None,
                text=_sentence(row, region, array, launch, lines),
                count=max(1, row.count),
            )
        )
    return found


def _place(row: runtime.Finding, lines: dict[int, tuple[str, int]]) -> tuple[str, int] | None:
    """File and line of a finding; of a timeout in the runtime, those of the call or the wait."""
    if row.file:
        return row.file.decode(), row.line
    if row.pc in lines or _KINDS[row.kind] != "timeout":
        return lines.get(row.pc)
    places = [lines[pc] for pc in (*row.calls[: row.call_count], row.other_pc) if pc in lines]
    waits = [(row.other_file.decode(), row.other_line)] if row.other_file else []
    return next(iter(places + waits), None)


def _sentence(row, region, array, launch, lines) -> str:
    kind = _KINDS[row.kind]
    access = f"{_VERBS[row.access]} {row.size} bytes"
    other = f"thread {_coordinates(row.other_thread, launch.block)}"
    text = (row.text or b"").decode()
    if kind == "out_of_bounds":
        return f"{access} {_whereabouts(row, region, array)}"
    if kind == "read_only":
        return f"{access} at offset {row.offset} of {array}, which is read-only"
    if kind == "misaligned":
        return f"{access} at offset {row.offset} of {array}, which is no multiple of {row.size}"
    if kind == "uninitialised":
        return (
            f"{access} at offset {row.offset} of {array}, which no thread of the block has written"
        )
    if kind == "race":
        file, line = lines.get(row.other_pc, ("?", 0))
        # A cell remembers its last reader, which may be the writer itself.
        who = other if row.other_thread != row.thread else "other threads too"
        if row.other_block != row.block:
            who = f"block {_coordinates(row.other_block, launch.grid)}, {other}"
        return (
            f"data race: {access} at offset {row.offset} of {array}, "
            f"{_PAST[row.other_access]} by {who} at {file}:{line} with no barrier between them"
        )
    if kind == "same_value":
        return f"writes the same value to offset {row.offset} of {array} as {other}"
    if kind == "divergent_barrier":
        where = f" at {row.other_file.decode()}:{row.other_line}" if row.other_file else ""
        return (
            f"waits at a barrier while {other} {text}{where}: the programming guide asks for one "
            "barrier that all threads reach (emulated_cuda(barriers='hardware') counts them only)"
        )
    if kind == "divergent_collective":
        if text:
            return text
        where = (
            f"; {other} is at {row.other_file.decode()}:{row.other_line}"
            if row.other_file
            else f"; {other} does not come"
        )
        return f"waits for the other lanes of its warp, which never all arrive{where}"
    if kind == "out_of_row":
        return f"indexes {text} with {row.offset}"
    if kind == "crash":
        return f"stopped by {text}"
    if kind == "timeout":
        return "still running when the time was up (MULFREE_EMULATOR_SECONDS)"
    return text


def _whereabouts(row, region, array) -> str:
    if region is None:
        return f"at address {row.offset:#x}, in no array"
    if row.offset < 0:
        return f"{-row.offset} bytes before the start of {array}"
    return f"at offset {row.offset} of {array}, which ends at {region.size}"


def _array(region, arguments: Arguments) -> str | None:
    if region is None:
        return None
    if region.array >= 0:
        return arguments.descriptions[region.array]
    if region.shared and region.line:
        return f"__shared__ {region.name.decode()} ({region.size} bytes, line {region.line})"
    return region.name.decode() if region.name else "the text's constants"


def _coordinates(index: int, sizes) -> tuple[int, int, int]:
    x, y, _ = sizes
    return index % x, index // x % y, index // (x * y)


def read_counts(library: ctypes.CDLL, kernel: str, launch: runtime.Launch, report: Report) -> None:
    """Add the counts of the last launch to the report."""
    sites = runtime.table(library, "sites")
    lines = source_lines(library, {s.pc for s in sites})
    total = report.counts.setdefault(kernel, KernelCounts())
    total.launches += 1
    g, b = launch.grid, launch.block
    total.threads += g[0] * g[1] * g[2] * b[0] * b[1] * b[2]
    for site in sites:
        _add(total, lines.get(site.pc, (kernel, 0)), _counts(site))
    for barrier in runtime.table(library, "barriers"):
        _add(total, (barrier.file.decode(), barrier.line), Counts(barriers=barrier.count))


def _add(total: KernelCounts, line: tuple[str, int], counts: Counts) -> None:
    total.lines.setdefault(line, Counts())
    total.lines[line] += counts
    total += counts


def _counts(site: runtime.Site) -> Counts:
    space = "shared" if site.shared else "global"
    counts = Counts(sectors=site.sectors, bank_conflicts=site.conflicts)
    setattr(counts, f"{space}_{('loads', 'stores', 'atomics')[site.kind]}", site.accesses)
    setattr(counts, f"{space}_bytes", site.bytes)
    setattr(counts, f"{space}_requests", site.requests)
    return counts


def source_lines(library: ctypes.CDLL, offsets: set[int]) -> dict[int, tuple[str, int]]:
    """File and line by offset in the module; offsets are return addresses, one past the call."""
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    known = library.__dict__.setdefault("known_lines", {})
    wanted = sorted(offsets - known.keys())
    if not wanted or tool is None:
        return known
    command = [tool, "-a", "-i", "-e", library._name]
    answer = subprocess.run(
        command,
        input="\n".join(hex(o - 1) for o in wanted),
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for row in answer.splitlines():
        if row.startswith("0x"):
            offset = int(row, 16) + 1
            continue
        # The frames of inlined functions follow one another, innermost first.
        file, _, line = row.partition(" (")[0].rpartition(":")
        if offset not in known and file != "??" and not file.startswith(HEADERS) and line.isdigit():
            known[offset] = file.removeprefix("/mulfree/"), int(line)
    return known
