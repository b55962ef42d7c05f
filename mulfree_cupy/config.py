"""What the package runs on: the threads of the CPU kernels, and what stands beneath it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform

from mulfree_cupy.geometry import integer
from mulfree_cupy.launch import cpu_kernels
from mulfree_cupy.version import __version__

_MOST_THREADS = 1024


def set_num_threads(n: int) -> None:
    """Let the CPU kernels use at most `n` threads a call, the caller's own among them.

    At first they are as many as MULFREE_NUM_THREADS says, else OMP_NUM_THREADS, else the processors
    that the process may use. Small calls use fewer, and so do calls that run at the same time as
    others. Answers are the same, bit for bit, whatever the number.

    Parameters
    ----------
    n : int
        From 1 to 1024; more than there are processors is allowed, and seldom faster.

    Raises
    ------
    TypeError, ValueError
        If `n` is not such a number.

    Notes
    -----
    It holds for the whole process. The NumPy kernels, which serve where the install had no
    compiler, run on one thread. SciPy's and NumPy's own threads (BLAS) are set by `threadpoolctl`.

    Examples
    --------
    >>> import mulfree_cupy
    >>> before = mulfree_cupy.get_num_threads()
    >>> mulfree_cupy.set_num_threads(1)
    >>> mulfree_cupy.set_num_threads(before)
    """
    threads = integer("set_num_threads", "n", n)
    if threads > _MOST_THREADS:
        raise ValueError(f"set_num_threads: n must be at most {_MOST_THREADS}, got {threads}")
    cpu_kernels().set_num_threads(threads)


def get_num_threads() -> int:
    """The most threads that a call of a CPU kernel uses: see `set_num_threads`.

    Returns
    -------
    int

    Examples
    --------
    >>> import mulfree_cupy
    >>> mulfree_cupy.get_num_threads() >= 1
    True
    """
    return cpu_kernels().get_num_threads()


def keep_freed_memory() -> None:
    """Let this process keep the memory of arrays that are gone, for those that come next.

    A training step frees all that it computed; the system takes the memory back, and clears it page
    by page for the next step. For processes that train and then end: the ``mulfree`` command calls
    this itself.

    Notes
    -----
    It holds for the whole process, whatever allocates, and for good. Arrays of 32 MiB and more are
    still given back. Where the C library is not glibc it does nothing.

    Examples
    --------
    >>> import mulfree_cupy
    >>> mulfree_cupy.keep_freed_memory()
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(mmap_threshold, 32 << 20)  # the most there is
    mallopt(trim_threshold, -1)  # never


def show_config() -> None:
    """Print what a report of a fault should name: versions, CPU kernels, threads, GPUs.

    Examples
    --------
    >>> import mulfree_cupy
    >>> mulfree_cupy.show_config()  # doctest: +ELLIPSIS
    mulfree_cupy ...
    """
    kernels = cpu_kernels()
    lines = {
        "mulfree_cupy": __version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
        **{name: _installed(name) for name in ("numpy", "scipy")},
        "cpu kernels": f"{kernels.features()}, compiler {kernels.compiler}",
        "threads": kernels.get_num_threads(),
        "gpu": _gpus(),
    }
    for name, value in lines.items():
        print(f"{name:<13}{value}")


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> str:
    """CuPy's version and its devices, or why there are none."""
    try:
        import cupy

        runtime = cupy.cuda.runtime
        names = [
            runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())
        ]
    except ImportError:
        return "none: CuPy is not installed"
    except Exception as error:  # CuPy's own errors, which only it can name
        return f"none: {error}"
    return f"cupy {cupy.__version__}: {', '.join(names)}"
