"""The two places where the GPU benchmark runs: a CUDA device, and, to test itself, the emulator."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import mulfree_cupy as mf

SPIN = """
// Keeps one thread busy for a number of clock ticks.
extern "C" __global__ void spin(long long ticks) {
  const long long start = clock64();
  while (clock64() - start < ticks) {}
}
"""


def unavailable() -> str | None:
    """Why nothing can run on a GPU here, or None if it can."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no usable GPU ({error})"
    return None if count else "CuPy finds no GPU"


class Cuda:
    """CuPy's current device, timed with events."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self._device = cupy.cuda.Device()
        attributes = self._device.attributes
        self.multiprocessors = attributes["MultiProcessorCount"]
        self._flush = cupy.empty(2 * attributes["L2CacheSize"] + 2**20, np.uint8)
        self._spin = cupy.RawKernel(SPIN, "spin")

    def context(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def numpy(self, array: Any) -> np.ndarray:
        return self.xp.asnumpy(array)

    def record(self) -> dict[str, Any]:
        """What the figures depend on."""
        runtime = self.xp.cuda.runtime
        return {
            "name": runtime.getDeviceProperties(self._device.id)["name"].decode(),
            "compute_capability": self._device.compute_capability,
            "multiprocessors": self.multiprocessors,
            "memory_bytes": self._device.mem_info[1],
            "l2_bytes": self._device.attributes["L2CacheSize"],
            "cupy": self.xp.__version__,
            "cuda_runtime": runtime.runtimeGetVersion(),
            "cuda_driver": runtime.driverGetVersion(),
            "nvrtc": ".".join(map(str, self.xp.cuda.nvrtc.getVersion())),
        } | self._nvidia_smi()

    def _nvidia_smi(self) -> dict[str, str]:
        fields = "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"
        command = [
            "nvidia-smi",
            f"--id={self._device.pci_bus_id}",
            f"--query-gpu={','.join(fields)}",
            "--format=csv,noheader",
        ]
        try:
            answer = subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=30
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return {}
        return dict(zip(fields, (value.strip() for value in answer.split(",")), strict=False))

    def clock(self) -> float:
        """Ticks a second of a multiprocessor, now: asked right after a timing, under its load."""
        ticks = 4_000_000
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        start.record()
        self._spin((1,), (1,), (np.int64(ticks),))
        end.record()
        end.synchronize()
        return ticks / (self.xp.cuda.get_elapsed_time(start, end) * 1e-3)

    def seconds(self, call: Callable[[], Any], least: float = 0.1) -> dict[str, float]:
        """Median and least seconds of one call on an L2 cache that holds none of its operands.

        Before each call the device is kept busy for as long as the host needs to queue that call,
        so that no launch is waited for between the two events.
        """
        synchronize = self._device.synchronize
        call()
        synchronize()
        start = time.perf_counter()
        call()
        queued = time.perf_counter() - start
        synchronize()
        once = time.perf_counter() - start
        repeats = int(np.clip(least / once, 5, 50))
        ticks = np.int64(min(2 * queued + 50e-6, 5e-3) * 2e9)

        events = [(self.xp.cuda.Event(), self.xp.cuda.Event()) for _ in range(repeats)]
        for before, after in events:
            self._flush.data.memset_async(0, self._flush.nbytes)
            self._spin((1,), (1,), (ticks,))
            before.record()
            call()
            after.record()
        synchronize()
        taken = [self.xp.cuda.get_elapsed_time(a, b) * 1e-3 for a, b in events]
        return {"median": median(taken), "min": min(taken)}


class Emulated:
    """The same calls through the emulator: answers, and no times."""

    xp = np
    multiprocessors = 1

    def context(self) -> contextlib.AbstractContextManager:
        return mf.emulated_cuda()

    def numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def record(self) -> dict[str, Any]:
        return {"name": "emulator", "compute_capability": "90", "multiprocessors": 1}

    def clock(self) -> None:
        return None

    def seconds(self, call: Callable[[], Any], least: float = 0) -> None:
        call()
