"""One section of a GPU run, in a separate process: JSON lines on standard output.

``{"begin": row}`` before a case and ``{"row": row}`` after it. A process whose device fails exits
with status 3: `run` starts another at the next case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import timing
from benchmarks.gpu import (
    adder,
    binary,
    cases,
    devices,
    peers,
    rates,
    shift,
    step,
    training,
    winograd,
)
from mulfree_cupy import data

DEVICE_LOST = 3

SECTIONS: dict[str, Callable] = {
    "adder": adder.cases,
    "binary": binary.cases,
    "shift": shift.cases,
    "step": step.cases,
    "winograd": winograd.cases,
    "peers": peers.cases,
}


def lines(
    section: str, device: devices.Cuda | devices.Emulated, first: int, timed: bool, **size: bool
) -> Iterator[dict]:
    """What the process prints, case by case from number `first` on."""
    if section == "rates":
        for row in rates.rows(device):
            yield {"rate": row}
        return
    for case in itertools.islice(SECTIONS[section](device, **size), first, None):
        yield {"begin": case.row}
        row = cases.measure(device, case, timed and (case.main or not size["quick"]))
        yield {"row": timing.rounded(row)}
        del case
        device.forget()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=[*SECTIONS, "rates", "training"])
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--check", action="store_true", help="check, and time nothing")
    parser.add_argument("--quick", action="store_true", help="few layers; time the main cases")
    parser.add_argument("--tiny", action="store_true", help="layers for sanitizers and emulators")
    parser.add_argument("--emulated", action="store_true", help="through the emulator")
    parser.add_argument("--data", type=Path, help="of training: a data set's folder")
    parser.add_argument("--seconds", type=float, default=60, help="of training")
    options = parser.parse_args()
    if options.section == "training" and options.check:  # what takes long is reading the images
        data.load(options.data)
        return 0
    device = devices.Emulated() if options.emulated else devices.Cuda()
    size = {"quick": options.quick, "tiny": options.tiny}
    if options.section == "training":
        found = training.rows(device, options.data, options.seconds)
    else:
        found = lines(options.section, device, options.first, not options.check, **size)
    for line in found:
        print(json.dumps(line), flush=True)
        if "row" in line and "wrong" in line["row"] and not device.usable():
            return DEVICE_LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
