"""Every access of one block, step by step, from the recorded requests of its warps."""

from __future__ import annotations

import ctypes

import numpy as np

from mulfree_cupy.launch.emulator import runtime
from mulfree_cupy.launch.emulator.arguments import Arguments
from mulfree_cupy.launch.emulator.reading import source_frames
from mulfree_cupy.launch.emulator.report import Memory, Step

_KINDS = "load", "store", "atomic"


def read_steps(library: ctypes.CDLL, launch: runtime.Launch, arguments: Arguments) -> list[Step]:
    """The steps of the block that the last launch followed, in their order.

    Lanes do not run in lockstep, and warps run sequentially: accesses of one line in the same
    iteration since the last barrier are one step.
    """
    events, sites = runtime.events(library), runtime.table(library, "sites")
    regions = runtime.table(library, "regions")
    frames = source_frames(library, {site.pc for site in sites})
    threads, lanes = launch.block[0] * launch.block[1] * launch.block[2], np.arange(32)
    memories: dict[int, Memory] = {}
    offsets: dict[tuple, np.ndarray] = {}
    first: dict[tuple, int] = {}
    turns: dict[tuple, int] = {}
    places: dict[tuple, int] = {}
    for event in events:
        warp, interval, site = int(event["warp"]), int(event["interval"]), int(event["site"])
        place = places[warp, interval] = places.get((warp, interval), 0) + 1
        turn = turns[warp, interval, site] = turns.get((warp, interval, site), 0) + 1
        active = lanes[event["lanes"] >> lanes & 1 == 1]
        address, where = event["address"][active], event["region"][active]
        for index in np.unique(where):
            key = interval, site, turn, int(event["size"]), int(index)
            if key not in offsets:
                offsets[key] = np.full(threads, -1, np.int64)
                memories[int(index)] = _memory(regions[index], arguments)
            mine, region = where == index, regions[index]
            start = region.base - region.origin
            offsets[key][32 * warp + active[mine]] = address[mine] - start
            first[key] = min(first.get(key, place), place)
    steps = []
    for key in sorted(offsets, key=lambda key: (key[0], first[key])):
        interval, site, _, size, index = key
        file, line = next(iter(frames[sites[site - 1].pc]), ("", 0))
        kind, memory = _KINDS[sites[site - 1].kind], memories[index]
        steps.append(Step(interval, file, line, kind, memory, size, offsets[key]))
    return steps


def _memory(region: runtime.Region, arguments: Arguments) -> Memory:
    if region.array < 0:
        name = region.name.decode() if region.name else "constants"
        shared = bool(region.shared)
        return Memory(name, shared, (region.size // 4,), 4, region.base % (128 if shared else 32))
    name, array = arguments.arrays_by_name[region.array]
    start = (region.base - region.origin) % 32
    return Memory(name, False, array.shape, array.itemsize, start)
