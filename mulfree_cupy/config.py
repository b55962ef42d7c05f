"""Runtime configuration: threads of the CPU kernels, memory, versions."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform

from mulfree_cupy.geometry import integer
from mulfree_cupy.launch import cpu_kernels
from mulfree_cupy.version import __version__

_MOST_THREADS = 1024


def set_num_threads(n: int) -> None:
    """Set the maximum number of threads per call of a CPU kernel, including the caller's.

    The default is MULFREE_NUM_THREADS, else OMP_NUM_THREADS, else the number of processors
    available to the process. Small calls and concurrent calls use fewer. Results do not depend on
    the number, bit for bit.

    Parameters
    ----------
    n : int
        From 1 to 1024; more than the number of processors is seldom faster.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an int in this range.

    Notes
    -----
    The setting is process-wide. The NumPy kernels, used where the extension was not compiled, run
    on one thread. NumPy's and SciPy's own threads (BLAS) are set with `threadpoolctl`.

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
    """The maximum number of threads per call of a CPU kernel: see `set_num_threads`.

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
    """Keep the memory of freed arrays in this process for later ones.

    A training step frees all that it computed; the system then reclaims the memory, and zeroes its
    pages for the next step. For processes that train and then end; the ``mulfree`` command calls
    this itself.

    Notes
    -----
    This is process-wide and permanent. Allocations of 32 MiB and more are still returned to the
    system. Without glibc it does nothing.

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
    mallopt(mmap_threshold, 32 << 20)  # the largest allowed
    mallopt(trim_threshold, -1)  # never


def show_config() -> None:
    """Print what a bug report should include: versions, CPU kernels, threads, GPUs.

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
    except Exception as error:  # CuPy's error classes exist only once it is imported
        return f"none: {error}"
    return f"cupy {cupy.__version__}: {', '.join(names)}"
