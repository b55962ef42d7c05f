"""The real CuPy on simulated H100s, to find errors of API, dtype, shape, compilation and launch.

CUDA's runtime, driver and cuBLAS are replaced by `cuda.c` and `cublas.c`, in the host's memory;
NVRTC is the real one. No kernel is executed, so values are meaningless, and times too.

    python -m tests.rehearsal python -m pytest -m gpu
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

CUPY = "14.2."  # the version whose modules the patches fit
HERE = Path(__file__).parent
SOURCES = HERE / "cuda.c", HERE / "cublas.c"
LIBRARIES = "libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13"  # the names one file goes by


def missing() -> str | None:
    """Why there can be no rehearsal here; None if there can."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "a rehearsal patches the machine code of CuPy's wheels for Linux on x86-64"
    try:
        version = importlib.metadata.version("cupy-cuda13x")
    except importlib.metadata.PackageNotFoundError:
        return "cupy-cuda13x is not installed: pip install -e '.[rehearsal]'"
    if not version.startswith(CUPY):
        return f"this rehearsal knows CuPy {CUPY}*, installed is {version}"
    if _headers() is None:
        return "CUDA's headers are not installed: pip install -e '.[rehearsal]'"
    if shutil.which("gcc") is None:
        return "a rehearsal needs gcc"
    return None


def active() -> bool:
    """Whether this process is being rehearsed."""
    return "REHEARSAL_LIBRARY" in os.environ


@dataclass
class Rehearsal:
    """A finished command: its exit status, what it printed, and the log of its CUDA calls."""

    status: int
    output: str
    log: list[dict]

    def calls(self, call: str, **fields) -> list[dict]:
        """The records of one call, such as "launch", with these values, in order."""
        return [
            record
            for record in self.log
            if record["call"] == call
            and all(record.get(name) == value for name, value in fields.items())
        ]


def rehearse(*command: str | os.PathLike, devices: int = 1, **options) -> Rehearsal:
    """Run a command in rehearsal; `options` go to subprocess.run.

    A record of the log is a dict with "call" ("launch", "malloc", "memcpyAsync",
    "streamSynchronize", "graphLaunch", ...), the current "device", and what else is known: for a
    launch its "name", "grid", "block" and "shared"; "captured" for what a stream's capture took
    for its graph; "refused", with the reason, for what CUDA would have refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        done = subprocess.run(
            [os.fspath(part) for part in command],
            env={**environment(devices), "REHEARSAL_LOG": str(log)},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options},
        )
        lines = log.read_text().splitlines() if log.exists() else []
    return Rehearsal(done.returncode, done.stdout, [json.loads(line) for line in lines])


def environment(devices: int = 1) -> dict[str, str]:
    """The environment in which Python processes find the simulated devices."""
    built = _build()
    paths = {"PYTHONPATH": HERE / "path", "LD_LIBRARY_PATH": built}
    joined = {
        name: os.pathsep.join([str(path), *filter(None, [os.environ.get(name)])])
        for name, path in paths.items()
    }
    return {
        **os.environ,
        **joined,
        "REHEARSAL_LIBRARY": str(built / LIBRARIES[0]),
        "REHEARSAL_DEVICES": str(devices),
    }


def _headers() -> Path | None:
    for place in {sysconfig.get_path("purelib"), *site.getsitepackages()}:
        include = Path(place) / "nvidia" / "cu13" / "include"
        if (include / "cuda_runtime_api.h").exists():
            return include
    return None


def _build() -> Path:
    """The folder of the fake libraries, compiled if they are older than their sources."""
    spec = importlib.util.find_spec("cupy_backends")
    cupy = Path(spec.origin).parent
    folder = Path(tempfile.gettempdir()) / f"mulfree-rehearsal-{os.getuid()}"
    library = folder / LIBRARIES[0]
    newest = max(path.stat().st_mtime for path in (*SOURCES, HERE / "cuda.h", Path(__file__)))
    if library.exists() and library.stat().st_mtime > newest:
        return folder
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        stubs, made = Path(work) / "stubs.c", Path(work) / "made.so"
        (module,) = cupy.glob("cuda/libs/cublas.*.so")
        names = sorted(set(re.findall(rb"(?<=\0)cublas\w+(?=\0)", module.read_bytes())))
        weak = "__attribute__((weak)) int {}(void) {{ return 0; }}\n"
        stubs.write_text("".join(weak.format(name.decode()) for name in names))
        flags = ["-shared", "-fPIC", "-O2", "-w", f"-I{_headers()}"]
        subprocess.run(["gcc", *flags, *SOURCES, stubs, "-o", made, "-lpthread"], check=True)
        made.replace(library)
    for name in LIBRARIES[1:]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(library.name)
    return folder
