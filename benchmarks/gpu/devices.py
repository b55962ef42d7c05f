"""The two places where the GPU benchmark runs: a CUDA device, and, to test itself, the emulator."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import mulfree_cupy as mf

WAIT_AND_FLUSH = """
// Keeps one thread busy for a number of clock ticks.
extern "C" __global__ void spin(long long ticks) {
  const long long start = clock64();
  while (clock64() - start < ticks) {}
}

// Fills the L2 cache by reading: what a memset leaves there, the timed kernel would write back.
extern "C" __global__ void read(const float4* from, long long count, float* never) {
  float sum = 0;
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    const float4 v = from[i];
    sum += v.x + v.y + v.z + v.w;
  }
  if (sum != 0) *never = sum;
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

        self.xp, self.kernel = cupy, functools.cache(cupy.RawKernel)
        self._device = cupy.cuda.Device()
        self.multiprocessors = self._device.attributes["MultiProcessorCount"]
        self.l2_bytes = self._device.attributes["L2CacheSize"]

    @functools.cached_property
    def _flushed(self) -> Any:
        return self.xp.zeros(2 * self.l2_bytes // 4 + 2**18, np.float32)

    def context(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def usable(self) -> bool:
        """Whether the device still works: after an illegal address it does not."""
        try:
            self._device.synchronize()
        except self.xp.cuda.runtime.CUDARuntimeError:
            return False
        return True

    def synchronize(self) -> None:
        self._device.synchronize()

    def forget(self) -> None:
        """Return freed memory to the device."""
        self.xp.get_default_memory_pool().free_all_blocks()

    def record(self) -> dict[str, Any]:
        """What the figures depend on."""
        runtime = self.xp.cuda.runtime
        return {
            "name": runtime.getDeviceProperties(self._device.id)["name"].decode(),
            "compute_capability": self._device.compute_capability,
            "multiprocessors": self.multiprocessors,
            "memory_bytes": self._device.mem_info[1],
            "l2_bytes": self.l2_bytes,
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

    def _spin(self, ticks: int) -> None:
        self.kernel(WAIT_AND_FLUSH, "spin")((1,), (1,), (np.int64(ticks),))

    def _flush(self) -> None:
        flushed = self._flushed
        arguments = flushed, np.int64(flushed.size // 4), flushed
        self.kernel(WAIT_AND_FLUSH, "read")((8 * self.multiprocessors,), (256,), arguments)

    def clock(self) -> float:
        """Current clock rate of a multiprocessor: measured right after a timing, under its load."""
        ticks = 1_000_000
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        self._spin(ticks // 4)  # while the host queues the rest
        start.record()
        self._spin(ticks)
        end.record()
        end.synchronize()
        return ticks / (self.xp.cuda.get_elapsed_time(start, end) * 1e-3)

    def seconds(self, call: Callable[[], Any], least: float = 0.04) -> dict[str, float]:
        """Median and least seconds of one call with none of its operands in the L2 cache.

        Before each call the device is kept busy for as long as the host needs to queue it, so that
        launch latency is not measured.
        """
        synchronize = self._device.synchronize
        call()
        self._flush()
        synchronize()
        start = time.perf_counter()
        call()
        queued = time.perf_counter() - start
        synchronize()
        once = time.perf_counter() - start
        repeats = int(np.clip(least / once, 5, 50))
        ticks = int(min(2 * queued + 50e-6, 5e-3) * 2e9)

        events = [(self.xp.cuda.Event(), self.xp.cuda.Event()) for _ in range(repeats)]
        for before, after in events:
            self._flush()
            self._spin(ticks)
            before.record()
            call()
            after.record()
        synchronize()
        taken = [self.xp.cuda.get_elapsed_time(a, b) * 1e-3 for a, b in events]
        return {"median": median(taken), "min": min(taken)}


class Emulated:
    """The same calls through the emulator: results without times."""

    xp, kernel = np, mf.emulator.RawKernel
    multiprocessors = 1

    def context(self) -> contextlib.AbstractContextManager:
        return mf.emulated_cuda()

    def usable(self) -> bool:
        return True

    def forget(self) -> None:
        pass

    def record(self) -> dict[str, Any]:
        return {"name": "emulator", "compute_capability": "90", "multiprocessors": 1}

    def clock(self) -> None:
        return None

    def seconds(self, call: Callable[[], Any], least: float = 0) -> None:
        return None
