"""A repeated GPU step as one CUDA graph instead of hundreds of launches."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from mulfree_cupy.arrays import Array

State = Callable[[], dict[str, Array]]
WARM_UP = 3  # ordinary steps: compile kernels, upload tables, and fill the memory pool


class Replay:
    """A repeated step: launched normally a few times, then replayed as a CUDA graph.

    The graph holds the step's launches and their arguments. So the step must make the same launches
    each time, on arrays that do not move, without synchronising or copying from the host. Otherwise
    it is always launched normally, and `obstacle` says why.

    Attributes
    ----------
    stream : cupy.cuda.Stream
        Must be current at each call. A non-blocking stream.
    obstacle : str or None
        Why the step cannot be replayed.
    """

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)
        # A private pool: the graph's temporary memory must not be given to others.
        self._pool = cupy.cuda.MemoryPool()
        self.obstacle: str | None = None
        self._graph: Any = None
        self._places: dict[str, int] = {}
        self._settings: Any = None
        self._warm_up = WARM_UP

    @property
    def replayed(self) -> bool:
        """Whether the next call launches the graph."""
        return self._graph is not None

    def __call__(self, step: Callable[[], None], state: State, settings: Any = None) -> None:
        """Run the step, or launch the captured graph.

        Parameters
        ----------
        step : callable
            Takes no arguments; launches on the current stream.
        state : callable
            Returns the CuPy arrays, by name, that persist between steps.
        settings : any
            Host values baked into the launches: if they differ from those of the previous call, the
            graph is captured again.
        """
        if settings != self._settings:
            self._forget()
            self._settings = settings
        if self._graph is None and self.obstacle is None and self._warm_up == 0:
            self._capture(step)
        if self._graph is not None:
            self._graph.launch(self.stream)
            return
        before = _addresses(state)
        with self._cupy.cuda.using_allocator(self._pool.malloc):
            step()
        self._places, self._warm_up = _addresses(state), max(0, self._warm_up - 1)
        if self._warm_up == 0 and self.obstacle is None:
            self._find_what_moved(before)

    def start_anew(self, state: State) -> None:
        """Discard the graph if an array of the state has been replaced."""
        if self._places and self._places != _addresses(state):
            self._forget()

    def _forget(self) -> None:
        self._graph, self._places, self._warm_up = None, {}, WARM_UP

    def _find_what_moved(self, before: dict[str, int]) -> None:
        after = self._places
        moved = [name for name in after if after[name] != before.get(name)]
        if moved:
            self._refuse(f"the step replaces {', '.join(moved[:3])} instead of writing into it")

    def _capture(self, step: Callable[[], None]) -> None:
        error: Exception | None = None
        graph = None
        pinned = self._pinned_allocator()
        if pinned is None:
            self._refuse("pinned memory has an allocator that could not be restored")
            return
        self.stream.begin_capture()
        try:
            with self._no_copies(pinned), self._cupy.cuda.using_allocator(self._pool.malloc):
                step()
        except Exception as raised:
            error = raised
        finally:
            try:  # capture must always end, or the stream is unusable
                graph = self.stream.end_capture()
            except Exception as raised:
                error = error or raised
        if error is None:
            self._graph = graph
        else:
            self._refuse(f"{type(error).__name__}: {error}")

    def _refuse(self, why: str) -> None:
        self.obstacle = why
        warnings.warn(
            f"steps are launched kernel by kernel, not replayed as a CUDA graph: {why}",
            RuntimeWarning,
            stacklevel=3,
        )

    @contextlib.contextmanager
    def _no_copies(self, pinned: Callable[[int], Any]) -> Iterator[None]:
        """Inside it a copy from the host raises: a graph would repeat it from freed memory."""
        here = threading.get_ident()

        def allocate(size):
            if threading.get_ident() == here:
                raise NotImplementedError("the step copies from the host")
            return pinned(size)

        self._cupy.cuda.set_pinned_memory_allocator(allocate)
        try:
            yield
        finally:
            self._cupy.cuda.set_pinned_memory_allocator(pinned)

    def _pinned_allocator(self) -> Callable[[int], Any] | None:
        """The allocator of pinned memory: a pool or CuPy's default; None if it is unknown.

        CuPy has no getter for it, so it is found from an allocation.
        """
        pinned_memory = self._cupy.cuda.pinned_memory
        memory = self._cupy.cuda.alloc_pinned_memory(1).mem
        if isinstance(memory, pinned_memory.PooledPinnedMemory):
            return memory.pool().malloc
        return pinned_memory._malloc if type(memory) is pinned_memory.PinnedMemory else None


def _addresses(state: State) -> dict[str, int]:
    return {name: array.data.ptr for name, array in state().items()}
