"""Throughput of the kernels' main instructions, and of a device copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu.devices import Cuda

SOURCES = Path(__file__).parent / "rates"
THREADS = 256
BLOCKS = 48  # of 256 threads per multiprocessor: full waves for 4, 6 or 8 resident blocks


@dataclass(frozen=True)
class Rate:
    """One micro-benchmark: `results` is what a thread does in a round."""

    name: str
    file: str
    entry: str
    results: int
    dtype: type


BINARY_MMA = "bits ANDed and counted, MMA"
RATES = [
    Rate("float32 terms, 2 FADD", "vabsdiff4.cu", "fadd_pair", 256, np.float32),
    Rate("float16 terms, 2 HADD2", "half2.cu", "hadd2_pair", 512, np.float16),
    Rate("float16 terms, HFMA2 + HADD2", "half2.cu", "hfma2_hadd2", 512, np.float16),
    Rate("float16 terms, HADD2 and HFMA2.MMA", "half2.cu", "both_pipes", 512, np.float16),
    Rate("uint8 terms, VABSDIFF4.ACC", "vabsdiff4.cu", "vabsdiff4_acc", 1024, np.uint32),
    Rate("uint8 terms, VABSDIFF4 + DP4A", "vabsdiff4.cu", "vabsdiff4_dp4a", 1024, np.uint32),
    Rate("bits XORed and counted, POPC", "popc.cu", "popc_of_xor", 32 * 256, np.uint32),
    Rate(BINARY_MMA, "binary_mma.cu", "binary_and_popc", 65536, np.int32),
]


def rows(device: Cuda) -> Iterator[dict]:
    """One row a rate: results per clock and multiprocessor; then bytes a second of a large copy."""
    for rate in RATES:
        yield {"rate": rate.name, **_rate(device, rate)}
    nbytes = min(2**30, device.record()["memory_bytes"] // 8)
    source = device.xp.arange(nbytes // 4, dtype=np.int32)
    target = device.xp.empty_like(source)
    seconds = device.seconds(lambda: device.xp.copyto(target, source))
    yield {"copy_bytes_per_second": 2 * source.nbytes / seconds["median"]}


def _rate(device: Cuda, rate: Rate) -> dict[str, float]:
    kernel = device.kernel((SOURCES / rate.file).read_text(encoding="utf-8"), rate.entry)
    blocks, rounds = BLOCKS * device.multiprocessors, 16
    out, seed = device.xp.empty(blocks * THREADS, rate.dtype), rate.dtype(3)

    def launch(rounds):
        kernel((blocks,), (THREADS,), (out, seed, np.int32(rounds)))

    once = device.seconds(lambda: launch(rounds))["min"]
    enough = max(rounds, int(rounds * 0.01 / once))
    seconds = device.seconds(lambda: launch(enough))["median"]
    per_second = rate.results * blocks * THREADS * enough / seconds
    per_clock = per_second / (device.clock() * device.multiprocessors)
    return {"per_clock": per_clock, "per_second": per_second}
