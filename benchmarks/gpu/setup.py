"""Prepare a machine with a GPU for `python -m benchmarks gpu`, and report its configuration.

    python -m benchmarks.gpu.setup

Needs no network. Compiled CPU kernels for this Python in ``mulfree_cupy/`` are reused, otherwise
built in place on all cores. Exit status 1 if something required is missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time

from benchmarks import timing

NEEDED = "numpy", "pytest", "hypothesis"
USEFUL = "scipy", "pytest-xdist", "tqdm", "pillow", "scikit-learn", "torch", "cuvs-cu13"
TOOLS = "nvidia-smi", "nvcc", "compute-sanitizer", "g++", "ncu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--build-seconds", type=float, default=120, help="for the CPU kernels (default: 120)"
    )
    options = parser.parse_args()
    missing = []
    print(f"Python {platform.python_version()}, {timing.cores()} cores, {timing.cpu_model()}")
    for package in (*NEEDED, *USEFUL):
        try:
            print(f"  {package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {package}: not installed")
            missing += [package] if package in NEEDED else []
    print("tools: " + ", ".join(f"{tool} {shutil.which(tool) or '-'}" for tool in TOOLS))
    for check in (_cpu_kernels, _gpu):
        start = time.perf_counter()
        try:
            found = check(options.build_seconds)
        except Exception as error:  # every check is made, whatever another one met
            found, missing = f"{type(error).__name__}: {error}", [*missing, check.__name__[1:]]
        print(f"{check.__name__[1:]}: {found} ({time.perf_counter() - start:.1f} s)")
    print(f"missing: {', '.join(missing)}" if missing else "ready")
    return 1 if missing else 0


def _cpu_kernels(seconds: float) -> str:
    """The expected values of the tests come from them; the NumPy twins take far longer."""
    probe = [sys.executable, "-c", "from mulfree_cupy import _cpu; print(_cpu.__file__)"]
    done = subprocess.run(probe, cwd=timing.ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return f"taken as they lie: {timing.without_paths(done.stdout.strip())}"
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = os.environ | {"MAX_JOBS": str(timing.cores())}
    subprocess.run(command, cwd=timing.ROOT, env=environment, timeout=seconds, check=True)
    done = subprocess.run(probe, cwd=timing.ROOT, capture_output=True, text=True)
    return "built" if done.returncode == 0 else "NOT built: slow NumPy kernels will serve"


def _gpu(_: float) -> str:
    """A kernel of our own compiled by NVRTC, run, and right; a product by cuBLAS."""
    import cupy
    import numpy as np

    import mulfree_cupy as mf

    x, w = np.ones((1, 2, 4, 4), np.float32), np.full((2, 2, 1, 1), 3, np.float32)
    answer = mf.adder_conv(cupy.asarray(x), cupy.asarray(w)).get()
    np.testing.assert_allclose(answer, mf.adder_conv(x, w), rtol=1e-6)
    a = cupy.ones((64, 64), np.float32)
    if float((a @ a)[0, 0]) != 64:
        raise ValueError("cuBLAS multiplies wrongly")
    device = cupy.cuda.Device()
    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    nvrtc = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    driver = cupy.cuda.runtime.driverGetVersion()
    return f"{name}, CuPy {cupy.__version__}, NVRTC {nvrtc}, driver {driver}"


if __name__ == "__main__":
    sys.exit(main())
