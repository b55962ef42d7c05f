"""A step that a GPU repeats, as one CUDA graph instead of hundreds of launches."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from mulfree_cupy.arrays import Array

WARM_UP = 3  # ordinary steps: kernels are compiled, tables uploaded, and the pool gets its memory


class Replay:
    """A step that is called over and over: a few times as it is, then as a CUDA graph.

    The graph holds the step's launches and their arguments. So the step must be the same launches
    each time, on arrays that stay where they are, and must wait for nothing and copy nothing from
    the host. Where it does otherwise it is called as it is for ever, and `obstacle` says why.

    Parameters
    ----------
    step : callable
        Takes nothing; its launches go to the current stream.
    state : callable
        Returns the CuPy arrays by name that carry over from one step to the next.

    Attributes
    ----------
    stream : cupy.cuda.Stream
        Must be current at each call. It is none of those that wait for the default stream.
    obstacle : str or None
        Why the step cannot be replayed.
    """

    def __init__(self, step: Callable[[], None], state: Callable[[], dict[str, Array]]):
        import cupy

        self._cupy, self._step, self._state = cupy, step, state
        self.stream = cupy.cuda.Stream(non_blocking=True)
        # The graph's own: what its launches use between them nobody else is given.
        self._pool = cupy.cuda.MemoryPool()
        self.obstacle: str | None = None
        self._graph: Any = None
        self._places: dict[str, int] = {}
        self._warm_up = WARM_UP

    @property
    def replayed(self) -> bool:
        """Whether the next call launches the graph."""
        return self._graph is not None

    def __call__(self) -> None:
        if self._graph is None and self.obstacle is None and self._warm_up == 0:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self.stream)
            return
        before = self._addresses()
        with self._cupy.cuda.using_allocator(self._pool.malloc):
            self._step()
        self._places, self._warm_up = self._addresses(), max(0, self._warm_up - 1)
        if self._warm_up == 0 and self.obstacle is None:
            self._find_what_moved(before)

    def start_anew(self) -> None:
        """Forget the graph if an array of the state is another one since."""
        if self._places and self._places != self._addresses():
            self._graph, self._places, self._warm_up = None, {}, WARM_UP

    def _addresses(self) -> dict[str, int]:
        return {name: array.data.ptr for name, array in self._state().items()}

    def _find_what_moved(self, before: dict[str, int]) -> None:
        after = self._addresses()
        moved = [name for name in after if after[name] != before.get(name)]
        if moved:
            self._refuse(f"the step replaces {', '.join(moved[:3])} instead of writing into it")

    def _capture(self) -> None:
        error: Exception | None = None
        graph = None
        self.stream.begin_capture()
        try:
            with self._no_copies(), self._cupy.cuda.using_allocator(self._pool.malloc):
                self._step()
        except Exception as raised:
            error = raised
        finally:
            try:  # it must end whatever happened, or the stream takes no more work
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
    def _no_copies(self) -> Iterator[None]:
        """Inside it a copy from the host raises: a graph would repeat it from memory long freed."""
        pool, here = self._cupy.get_default_pinned_memory_pool(), threading.get_ident()

        def allocate(size):
            if threading.get_ident() == here:
                raise NotImplementedError("the step copies from the host")
            return pool.malloc(size)

        self._cupy.cuda.set_pinned_memory_allocator(allocate)
        try:
            yield
        finally:
            self._cupy.cuda.set_pinned_memory_allocator(pool.malloc)
