"""Reading of the runtime's findings and counts after a launch, with source lines."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess

from mulfree_cupy.launch.emulator import runtime
from mulfree_cupy.launch.emulator.arguments import Arguments
from mulfree_cupy.launch.emulator.compiler import HEADERS
from mulfree_cupy.launch.emulator.declarations import Text
from mulfree_cupy.launch.emulator.report import Counts, Finding, KernelCounts, Report

_KINDS = (
    "out_of_bounds", "misaligned", "race", "uninitialised", "divergent_barrier",
    "divergent_collective", "out_of_row", "trap", "crash", "timeout", "read_only", "same_value",
)  # fmt: skip
_READ, _WRITE, _ATOMIC = range(3)
_CPP_LIBRARY = "/include/c++/"  # in the paths of its headers, whoever's it is
_VERBS = ("reads", "writes", "updates atomically")
_PAST = ("read", "written", "updated atomically")


def read_findings(
    library: ctypes.CDLL,
    count: int,
    kernel: str,
    launch: runtime.Launch,
    arguments: Arguments,
    source: Text,
) -> list[Finding]:
    """The findings of the last launch, in words."""
    if not count:
        return []
    rows = library.mulfree_findings()[:count]
    regions = runtime.table(library, "regions")
    guards = runtime.table(library, "guards")
    pcs = {pc for r in rows for pc in _offsets(r) if pc}
    frames = source_frames(library, pcs.union(guards))
    # A plain read that races with an atomic access is allowed on a line that guards one.
    guarded = [frames[pc][:1] for pc in guards]
    found = []
    for row in rows:
        if row.guard and frames[row.pc if row.guard == 1 else row.other_pc][:1] in guarded:
            continue
        region = regions[row.region] if row.region >= 0 else None
        array = _piece(row.piece, frames) if row.piece.size else _array(region, arguments)
        place, *calls = _places(row, frames) or [(kernel, 0)]
        found.append(
            Finding(
                kind=_KINDS[row.kind],
                kernel=kernel,
                file=place[0],
                line=place[1],
                block=_coordinates(row.block, launch.grid),
                thread=_coordinates(row.thread, launch.block),
                array=array,
                offset=row.offset if region is not None else None,
                text=_sentence(row, place, region, array, launch, arguments, source, frames),
                calls=tuple(calls),
                count=max(1, row.count),
            )
        )
    return found


Place = tuple[str, int]  # a file and a line


def _offsets(row: runtime.Finding) -> tuple[int, ...]:
    """The places in the module that a finding names; 0 for none."""
    piece = row.piece
    return row.pc, row.other_pc, piece.allocated, piece.freed, *row.calls[: row.call_count]


def _places(row: runtime.Finding, frames: dict[int, list[Place]]) -> list[Place]:
    """Where a finding is, and where that was called from, up to the kernel."""
    calls = [place for pc in row.calls[: row.call_count] for place in frames[pc]]
    if row.file:
        first = [(row.file.decode(), row.line)]
    elif not frames.get(row.pc):
        # In the runtime or the C library: where that was called, or where a thread waits.
        waits = [(row.other_file.decode(), row.other_line)] if row.other_file else []
        first = (calls or frames.get(row.other_pc) or waits)[:1]
    else:
        first = frames.get(row.pc, [])
    known = [place for i, place in enumerate(calls) if i == 0 or place != calls[i - 1]]
    if first and first[0] in known:
        return known[known.index(first[0]) :]
    return first


def _sentence(row, place, region, array, launch, arguments, source, frames) -> str:
    kind = _KINDS[row.kind]
    access = f"{_VERBS[row.access]} {row.size} bytes"
    other = f"thread {_coordinates(row.other_thread, launch.block)}"
    text = (row.text or b"").decode()
    where = _element(row, region, arguments, source)
    if kind == "out_of_bounds":
        if text:
            return text
        if region is None:
            return f"{access} at address {row.offset:#x}, in no array"
        if row.piece.freed:
            return f"{access} at {where} of {array}"
        side = "before the start" if row.offset < 0 else "beyond the end"
        if 0 <= row.offset < (row.piece.size or region.size):
            side = f"partly {side}"
        return f"{access} at {where}, {side} of {array}"
    if kind == "read_only":
        return f"{access} at {where} of {array}, which is read-only"
    if kind == "misaligned":
        return (
            f"{access} at {where} of {array}, offset {row.offset}, which is no multiple of "
            f"{row.size}"
        )
    if kind == "uninitialised":
        return f"{access} at {where} of {array}, which no thread of the block has written"
    if kind == "same_value":
        return f"writes the same value to {where} of {array} as {other} by the same instruction"
    if kind == "race":
        earlier = next(iter(frames.get(row.other_pc, [])), ("?", 0))
        # A cell remembers its last reader, which may be the writer itself.
        who = other if row.other_thread != row.thread else "other threads too"
        if row.other_block != row.block:
            who = f"block {_coordinates(row.other_block, launch.grid)}, {other}"
        return (
            f"data race: {access} at {where} of {array}, {_PAST[row.other_access]} by {who} at "
            f"{earlier[0]}:{earlier[1]} with no barrier between them: "
            f"{_remedy(row, place, earlier)}"
        )
    if kind == "divergent_barrier":
        where = f" at {row.other_file.decode()}:{row.other_line}" if row.other_file else ""
        return (
            f"waits at a barrier while {other} {text}{where}: the programming guide asks for one "
            "barrier that all threads reach (emulated_cuda(barriers='hardware') only counts them)"
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
        indexed = source.indexed(row.file.decode(), row.line, row.column)
        if not indexed:
            return f"indexes {text} with {row.offset}"
        return f"indexes {indexed} with {row.offset}, outside of {text}"
    if kind == "crash":
        return f"stopped by {text}"
    if kind == "timeout":
        return (
            f"still running after {launch.seconds:g} seconds, the limit that "
            "MULFREE_EMULATOR_SECONDS sets"
        )
    return text


def _remedy(row: runtime.Finding, place: Place, earlier: Place) -> str:
    """What would order the two accesses of a race."""
    same_block = row.other_block == row.block
    one_file = place[0] == earlier[0]
    first = f"line {earlier[1]}" if one_file else f"{earlier[0]}:{earlier[1]}"
    if row.atomic_between and same_block:
        return (
            "if the atomic access between them is to order them, as that of a lock does, a fence, "
            f"__threadfence(), is needed between {first} and it; else a barrier, __syncthreads()"
        )
    if row.atomic_between:
        needed = "a fence, __threadfence(), is"
        if row.atomic_between == 2:  # the thread that fences does it for others
            needed = "a barrier, __syncthreads(), and then a fence, __threadfence(), are"
        return (
            f"the atomic access between them orders only what is fenced before it: {needed} needed "
            f"between {first} and it"
        )
    if not same_block:
        return (
            "blocks run in any order; let one block write, use an atomic function, or launch twice"
        )
    if row.pc == row.other_pc and row.access == _WRITE:
        return "let one thread write, or each its own element, or use an atomic function"
    barrier = "a barrier, __syncthreads()"
    if row.thread // 32 == row.other_thread // 32:
        barrier += " or __syncwarp()"
    return f"{barrier}, is needed {_gap(row, place, earlier)}"


def _gap(row: runtime.Finding, place: Place, earlier: Place) -> str:
    """Where between the two accesses of a race a barrier is missing, in the order of the text.

    Which access ran first does not tell: warps may be in different rounds of a loop.
    """
    (low, first), (high, last) = sorted([earlier, place], key=lambda p: p[1])
    passed = ((row.passed.file or b"").decode(), row.passed.line)
    if low != high:
        return f"between {low}:{first} and {high}:{last}"
    between = f"between lines {first} and {last}"
    again = f"after line {last}, before line {first} is executed again"
    if first == last:
        between = f"between the two accesses of line {first}"
        again = f"before line {first} is executed again"
    # Both accesses come after the last barrier: one that stands between is of an earlier round.
    file, passed = (row.passed.file or b"").decode(), row.passed.line
    if file != low or not first <= passed <= last:
        return between
    return again if first < passed < last else f"{between}, or {again}"


def _element(row, region, arguments: Arguments, source: Text) -> str:
    """The element that was accessed, as a kernel's text might write it."""
    if region is None:
        return ""
    if row.piece.size:
        return f"byte {row.offset}"
    if region.array >= 0:
        name, array = arguments.arrays_by_name[region.array]
        size, shape = array.itemsize, array.shape
    elif region.rank:
        name, size, shape = region.name.decode(), region.element, region.extents[: region.rank]
    elif region.element and row.offset == 0:
        return region.name.decode()  # no array
    elif (
        region.name
        and not region.shared
        and (shape := source.shape(region.name.decode(), region.size))
    ):
        name, size = region.name.decode(), region.size // math.prod(shape)
    else:
        return f"byte {row.offset}"
    index, rest = divmod(row.offset, size)
    position = [index]
    if 0 <= row.offset < region.size:
        position = []
        for extent in reversed(shape):
            index, i = divmod(index, extent)
            position.insert(0, i)
    brackets = ", ".join(map(str, position))
    if region.array < 0:
        brackets = "][".join(map(str, position))
    return f"{name}[{brackets}]{f' + {rest} bytes' if rest else ''}"


def _array(region, arguments: Arguments) -> str | None:
    if region is None:
        return None
    if region.array >= 0:
        return arguments.descriptions[region.array]
    name = region.name.decode() if region.name else "the text's constants"
    if region.shared and region.line:
        shape = "".join(f"[{n}]" for n in region.extents[: region.rank])
        return f"__shared__ {name}{shape} ({region.size} bytes, line {region.line})"
    return name if region.shared else f"{name} ({region.size} bytes)"


def _piece(piece: runtime.Piece, frames: dict[int, list[Place]]) -> str:
    """A piece of the heap, by the calls that allocated and freed it."""

    def at(pc: int) -> str:
        return "".join(f" at {file}:{line}" for file, line in frames[pc][:1])

    freed = f", freed{at(piece.freed)}" if piece.freed else ""
    return f"the {piece.size} bytes from malloc or new{at(piece.allocated)}{freed}"


def _coordinates(index: int, sizes) -> tuple[int, int, int]:
    x, y, _ = sizes
    return index % x, index // x % y, index // (x * y)


def read_counts(library: ctypes.CDLL, kernel: str, launch: runtime.Launch, report: Report) -> None:
    """Add the counts of the last launch to the report."""
    sites = runtime.table(library, "sites")
    frames = source_frames(library, {s.pc for s in sites})
    total = report.counts.setdefault(kernel, KernelCounts())
    total.launches += 1
    g, b = launch.grid, launch.block
    total.threads += g[0] * g[1] * g[2] * b[0] * b[1] * b[2]
    for site in sites:
        _add(total, next(iter(frames[site.pc]), (kernel, 0)), _counts(site))
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


def source_frames(library: ctypes.CDLL, offsets: set[int]) -> dict[int, list[Place]]:
    """The user's lines by offset in the module, from the innermost inlined function outwards.

    Offsets are return addresses, one past the call.
    """
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    known = library.__dict__.setdefault("known_frames", {})
    wanted = sorted(offsets - known.keys())
    known.update((offset, []) for offset in wanted)
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
        file, _, line = row.partition(" (")[0].rpartition(":")
        own = file != "??" and not file.startswith(HEADERS) and _CPP_LIBRARY not in file
        if own and line.isdigit():
            known[offset].append((file.removeprefix("/mulfree/"), int(line)))
    return known
