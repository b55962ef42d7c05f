"""Run CUDA C++ on the CPU: `RawKernel` with CuPy's protocol on NumPy arrays, and `emulated_cuda`.

The kernel's source is compiled by the machine's C++ compiler with headers that implement CUDA's
language. Its accesses can be checked and counted; see ``docs/emulator.md``.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mulfree_cupy.launch import limits, source
from mulfree_cupy.launch.emulator import runtime
from mulfree_cupy.launch.emulator.arguments import convert
from mulfree_cupy.launch.emulator.compiler import CompilationError, compile_kernel, expand
from mulfree_cupy.launch.emulator.declarations import Text
from mulfree_cupy.launch.emulator.module import Globals
from mulfree_cupy.launch.emulator.reading import read_counts, read_findings
from mulfree_cupy.launch.emulator.report import (
    Counts,
    EmulationFault,
    Finding,
    KernelCounts,
    Launch,
    Memory,
    Report,
    Step,
    table_of,
)
from mulfree_cupy.launch.emulator.steps import read_steps

__all__ = [
    "CompilationError",
    "Counts",
    "Device",
    "EmulationFault",
    "Finding",
    "KernelCounts",
    "Launch",
    "Memory",
    "RawKernel",
    "RawModule",
    "Report",
    "Step",
    "active",
    "device",
    "emulated_cuda",
    "table_of",
]


@dataclass(frozen=True)
class Settings:
    """Current settings: checks, counts, and the report."""

    check: bool | Literal["collect"]
    trace: bool
    report: Report
    guide: bool = True  # a barrier is one for all threads, as the programming guide asks
    follow: tuple[int, int, int] | None = None  # the block whose accesses are recorded


_settings: contextvars.ContextVar[Settings | None] = contextvars.ContextVar(
    "emulated_cuda", default=None
)
_one_launch = threading.Lock()


def active() -> Settings | None:
    """The settings of the innermost `emulated_cuda` block, or None."""
    return _settings.get()


@contextlib.contextmanager
def emulated_cuda(
    check: bool | Literal["collect"] = True,
    trace: bool = False,
    barriers: Literal["guide", "hardware"] = "guide",
    follow: Sequence[int] | None = None,
) -> Iterator[Report]:
    """Context in which operations on NumPy arrays run the CUDA kernels, on the CPU.

    Parameters
    ----------
    check : bool or "collect"
        True raises `EmulationFault` at the faulty launch; ``"collect"`` collects faults in
        ``report.findings`` and continues; False checks nothing and is several times faster.
    trace : bool
        Count loads, stores, sectors, bank conflicts and barriers into ``report.counts``.
    barriers : {"guide", "hardware"}
        ``"guide"``: threads that wait at another barrier, or have returned, are a fault, as in the
        programming guide. ``"hardware"``: a barrier is complete when all threads that have not
        returned wait at some barrier, as on GPUs since Volta.
    follow : tuple of 1 to 3 int, optional
        A block whose accesses are recorded in ``report.steps``; needs ``trace=True``.

    Yields
    ------
    Report
        Prints as a table.

    Raises
    ------
    ValueError
        If `check` or `barriers` has another value, or `follow` is invalid, or given without
        `trace`.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy import emulator
    >>> twice = emulator.RawKernel('''
    ... extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }
    ... ''', "twice")
    >>> x = np.ones(8, np.float32)
    >>> with emulator.emulated_cuda(trace=True) as report:
    ...     twice((1,), (8,), (x,))
    >>> report.counts["twice"].global_loads, float(x[0])
    (8, 2.0)
    """
    if not (check is True or check is False or check == "collect"):
        raise ValueError(f"emulated_cuda: check must be True, False or 'collect', got {check!r}")
    if barriers not in ("guide", "hardware"):
        raise ValueError(f"emulated_cuda: barriers must be 'guide' or 'hardware', got {barriers!r}")
    if follow is not None and not trace:
        raise ValueError("emulated_cuda: follow needs trace=True")
    block = None if follow is None else _block("emulated_cuda", follow)
    report = Report()
    token = _settings.set(Settings(check, bool(trace), report, barriers == "guide", block))
    try:
        yield report
    finally:
        _settings.reset(token)


def _limit() -> float:
    """Seconds that a launch may take."""
    text = os.environ.get("MULFREE_EMULATOR_SECONDS", "60")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"MULFREE_EMULATOR_SECONDS must be a number, got {text!r}") from None


class RawKernel:
    """A CUDA kernel from source, with the interface of `cupy.RawKernel`, on NumPy arrays.

    Parameters
    ----------
    code : str
        CUDA C++.
    name : str
        The ``__global__`` function: its name if ``extern "C"``, else a name expression such as
        ``"scale<float, 4>"``.
    options : tuple of str
        ``-D``, ``-U``, ``-I`` and ``-std`` are used; other options of NVRTC are ignored.
    backend : str
        Accepted for CuPy's sake.
    enable_cooperative_groups : bool
        Launch so that a block may wait for the whole grid: ``this_grid().sync()``.

    Notes
    -----
    Outside of `emulated_cuda` a launch is checked but not counted. The kernel is compiled at the
    first call and cached on disk.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy import emulator
    >>> add = emulator.RawKernel('''
    ... extern "C" __global__ void add(const int* a, const int* b, int* c, int n) {
    ...     int i = blockIdx.x * blockDim.x + threadIdx.x;
    ...     if (i < n) c[i] = a[i] + b[i];
    ... }''', "add")
    >>> a = np.arange(5, dtype=np.int32)
    >>> c = np.empty_like(a)
    >>> add((1,), (8,), (a, a, c, np.int32(5)))
    >>> c
    array([0, 2, 4, 6, 8], dtype=int32)
    """

    def __init__(
        self,
        code: str,
        name: str,
        options: Sequence[str] = (),
        backend: str = "nvrtc",
        *,
        enable_cooperative_groups: bool = False,
    ) -> None:
        _check_text("RawKernel", code, options)
        if not isinstance(name, str):
            raise TypeError(f"RawKernel: name must be a string, got {type(name).__name__}")
        self.code, self.name, self.options, self.backend = code, name, tuple(options), backend
        self.enable_cooperative_groups = bool(enable_cooperative_groups)
        self._largest_dynamic: int | None = None  # what static memory leaves of 48 KiB
        self._compiled: dict[bool, tuple[Any, runtime.Kernel]] = {}
        self._module: RawModule | None = None  # that it is a function of

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """The maximum ``shared_mem`` of a launch.

        Together with static shared memory at most 48 KiB unless set, and 227 KiB if set.
        """
        if self._largest_dynamic is not None:
            return self._largest_dynamic
        return limits.STATIC_SHARED - self._library(active())[0].shared_size

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if not 0 <= size <= limits.DYNAMIC_SHARED:
            raise ValueError(
                f"max_dynamic_shared_size_bytes must be 0 to {limits.DYNAMIC_SHARED}, got {size}"
            )
        self._largest_dynamic = size

    def compile(self) -> None:
        """Compile now, for the active checks and counts, instead of at the first call."""
        self._library(active())

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0
    ) -> None:
        """Run the kernel.

        Parameters
        ----------
        grid, block : tuple of 1 to 3 int
            Blocks in the grid, threads in a block.
        args : tuple
            C-contiguous NumPy arrays for pointers; NumPy scalars; Python int (long long), float
            (double) and bool; None (a null pointer).
        shared_mem : int
            Bytes of dynamic shared memory.

        Raises
        ------
        EmulationFault
            If a fault is found in the kernel.
        ValueError, TypeError
            If the launch configuration or an argument is invalid.
        CompilationError, NotImplementedError
            If the source does not compile, or needs unsupported features.
        """
        settings = active() or Settings(True, False, Report())
        most = limits.GRID_X, limits.GRID_LIMIT, limits.GRID_LIMIT
        grid = _dimensions(self.name, "grid", grid, most)
        block = _dimensions(self.name, "block", block, limits.BLOCK)
        if block[0] * block[1] * block[2] > limits.BLOCK_THREADS:
            raise ValueError(f"kernel {self.name!r}: a block has 1024 threads at most, got {block}")
        if self.enable_cooperative_groups:
            _check_cooperative(self.name, grid, block)
        library, kernel = self._library(settings)
        self._check_shared(library.shared_size, shared_mem)
        # A name that could not be read is empty.
        names = [*library.parameter_names, *[""] * kernel.parameter_count][: kernel.parameter_count]
        arguments = convert(self.name, args, kernel.parameters[: kernel.parameter_count], names)
        launch = runtime.Launch(
            grid=grid,
            block=block,
            dynamic_shared=shared_mem,
            check={False: 0, True: 1, "collect": 2}[settings.check],
            trace=settings.trace,
            followed=self._followed(settings, grid),
            stacks=runtime.stacks(),
            stack_size=runtime.STACK_SIZE,
            arguments=arguments.pointers,
            arrays=(runtime.Array * len(arguments.arrays))(*arguments.arrays),
            array_count=len(arguments.arrays),
            variables=library.variables,
            variable_count=len(library.variables),
            guide=settings.guide,
            cooperative=self.enable_cooperative_groups,
            seconds=_limit(),
        )
        shared = contextlib.nullcontext()
        if self._module:
            shared = self._module.globals.lent(library.places)
        with _one_launch:
            with shared:
                found = library.mulfree_launch(kernel, launch)
            if found < 0:
                raise KeyboardInterrupt
            text = Text(functools.partial(expand, self.code, self.name, self.options))
            findings = read_findings(library, found, self.name, launch, arguments, text)
            if settings.trace:
                read_counts(library, self.name, launch, settings.report)
            if launch.followed >= 0:
                settings.report.steps[self.name] = read_steps(library, launch, arguments)
        errors = [f for f in findings if f.level == "error"]
        settings.report.findings.extend(
            f
            for f in sorted(findings, key=lambda f: (_consequence(f), f.line))
            if settings.check == "collect" or f.level == "note"
        )
        if errors and settings.check != "collect":
            last = errors[-1]
            raise EmulationFault(min(errors, key=_consequence) if last.kind in _CAUSES else last)

    def _followed(self, settings: Settings, grid: tuple[int, int, int]) -> int:
        """The number of the block to follow, -1 for none."""
        if settings.follow is None or self.name in settings.report.steps:
            return -1
        (x, y, z), (width, height, depth) = settings.follow, grid
        inside = x < width and y < height and z < depth
        return (z * height + y) * width + x if inside else -1

    def _check_shared(self, static: int, dynamic: int) -> None:
        """Raise if a block cannot have this much shared memory."""
        if static > limits.STATIC_SHARED:
            raise ValueError(
                f"kernel {self.name!r}: its __shared__ variables take {static} bytes, "
                f"{limits.STATIC_SHARED} at most; use dynamic shared memory for more"
            )
        most = self.max_dynamic_shared_size_bytes
        if not 0 <= dynamic <= most:
            unset = self._largest_dynamic is None
            raise ValueError(
                f"kernel {self.name!r}: shared_mem must be 0 to {most}, got {dynamic}"
                f"{f' beside {static} bytes of static shared memory' if static and unset else ''}; "
                "set max_dynamic_shared_size_bytes for more than 48 KiB in all"
            )
        if static + dynamic > limits.DYNAMIC_SHARED:
            raise ValueError(
                f"kernel {self.name!r}: {static} bytes of static and {dynamic} of dynamic shared "
                f"memory are more than a block can have, {limits.DYNAMIC_SHARED}"
            )

    def _library(self, settings: Settings | None) -> tuple[Any, runtime.Kernel]:
        instrumented = settings is None or bool(settings.check or settings.trace)
        if instrumented not in self._compiled:
            library = compile_kernel(self.code, self.name, self.options, instrumented)
            self._compiled[instrumented] = library, runtime.bind(library)
        return self._compiled[instrumented]


# After a divergent barrier threads race, and a racing thread may read uninitialised memory.
_CAUSES = ("divergent_barrier", "race", "uninitialised")


def _consequence(finding: Finding) -> int:
    """Smaller for a finding that may be the cause of others."""
    return _CAUSES.index(finding.kind) if finding.kind in _CAUSES else len(_CAUSES)


class RawModule:
    """Kernels and variables from one source, with the interface of `cupy.RawModule`, on NumPy
    arrays.

    Parameters
    ----------
    code : str
        CUDA C++.
    options : tuple of str
        As in `RawKernel`.
    backend : str
        Accepted for CuPy's sake.
    enable_cooperative_groups : bool
        For all its kernels, as `RawKernel` takes it.
    name_expressions : sequence of str, optional
        Accepted for compatibility with CuPy; any name expression can be used.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy import emulator
    >>> module = emulator.RawModule(code='''
    ... __constant__ float weights[3];
    ... extern "C" __global__ void dot(const float* x, float* y) {
    ...     y[0] = weights[0] * x[0] + weights[1] * x[1] + weights[2] * x[2];
    ... }''')
    >>> weights = np.ndarray(3, np.float32, module.get_global("weights"))
    >>> weights[:] = 1, 2, 3
    >>> x, y = np.ones(3, np.float32), np.zeros(1, np.float32)
    >>> module.get_function("dot")((1,), (1,), (x, y))
    >>> float(y[0])
    6.0
    """

    def __init__(
        self,
        *,
        code: str,
        options: Sequence[str] = (),
        backend: str = "nvrtc",
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
    ) -> None:
        _check_text("RawModule", code, options)
        self.code, self.options, self.backend = code, tuple(options), backend
        self.enable_cooperative_groups = bool(enable_cooperative_groups)
        self.name_expressions = name_expressions
        self._functions: dict[str, RawKernel] = {}

    def get_function(self, name: str) -> RawKernel:
        """The kernel of this name or name expression; it is compiled at its first call."""
        if name not in self._functions:
            kernel = RawKernel(
                self.code,
                name,
                self.options,
                self.backend,
                enable_cooperative_groups=self.enable_cooperative_groups,
            )
            kernel._module = self
            self._functions[name] = kernel
        return self._functions[name]

    def get_global(self, name: str) -> np.ndarray:
        """The memory of a ``__device__`` or ``__constant__`` variable.

        Parameters
        ----------
        name : str
            With its namespace: ``"weights"``, ``"ours::weights"``.

        Returns
        -------
        ndarray of uint8
            Its bytes, shared with the kernels: writes are visible to the next launch, and vice
            versa. ``numpy.ndarray(shape, dtype, module.get_global(name))`` is a view, like
            ``cupy.ndarray(shape, dtype, pointer)`` in CuPy.

        Raises
        ------
        ValueError
            If the module has no such variable.
        """
        return self.globals[name]

    @functools.cached_property
    def globals(self) -> Globals:
        """Its variables; one compilation for all of them."""
        return Globals(self.code, self.options)


def _check_text(function: str, code: str, options: Sequence[str]) -> None:
    if not isinstance(code, str):
        raise TypeError(f"{function}: code must be a string, got {type(code).__name__}")
    if isinstance(options, str):
        raise TypeError(
            f"{function}: options must be a tuple of strings, got the string {options!r}"
        )


def _block(function: str, given: Sequence[int]) -> tuple[int, int, int]:
    block = tuple(given) if isinstance(given, Sequence) else (given,)
    whole = all(isinstance(i, int | np.integer) and i >= 0 for i in block)
    if not (whole and 1 <= len(block) <= 3):
        raise ValueError(f"{function}: follow must be 1 to 3 indices of a block, got {given!r}")
    return (*(int(i) for i in block), 0, 0)[:3]


def _dimensions(
    kernel: str, what: str, given: Sequence[int], limits: tuple[int, ...]
) -> tuple[int, int, int]:
    sizes = tuple(given) if isinstance(given, Sequence) else (given,)
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"kernel {kernel!r}: {what} must have 1 to 3 dimensions, got {given!r}")
    for size, limit in zip(sizes, limits, strict=False):
        if not isinstance(size, int | np.integer) or not 1 <= size <= limit:
            raise ValueError(
                f"kernel {kernel!r}: {what} must be within 1 and {limits}, got {given!r}"
            )
    return (*(int(s) for s in sizes), 1, 1)[:3]


def _check_cooperative(
    kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int]
) -> None:
    """Refuse blocks that wait for one another and are more than a GPU holds at once."""
    blocks, threads = math.prod(grid), math.prod(block)
    if blocks > limits.RESIDENT_BLOCKS or blocks * threads > limits.RESIDENT_THREADS:
        raise ValueError(
            f"kernel {kernel!r}: a cooperative grid must fit a GPU at once, with at most "
            f"{limits.RESIDENT_BLOCKS} blocks and {limits.RESIDENT_THREADS} threads; "
            f"got {blocks} blocks of {threads}"
        )


class Device:
    """The emulator as a `Device` of the launchers."""

    xp = np
    architecture = 90  # its __CUDA_ARCH__ is 900

    def __init__(self) -> None:
        self._kernels: dict[tuple[str, str], RawKernel] = {}

    def constant(self, values: np.ndarray) -> np.ndarray:
        """The array itself: kernels run in host memory."""
        return values

    def launch(
        self,
        path: str,
        entry: str,
        defines: dict[str, object],
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
    ) -> None:
        """Launch `entry` of ``cuda/<path>`` with the macros `defines`."""
        code = source.read(path, defines)
        kernel = self._kernels.get((code, entry))
        if kernel is None:
            kernel = self._kernels[code, entry] = RawKernel(code, entry)
            kernel.max_dynamic_shared_size_bytes = limits.DYNAMIC_SHARED
        if (settings := active()) and settings.trace:
            launch = Launch(path, entry, dict(defines), tuple(grid), tuple(block))
            settings.report.launches.append(launch)
        kernel(grid, block, args, shared_mem=shared_mem)


device = Device()
