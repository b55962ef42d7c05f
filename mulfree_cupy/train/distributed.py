"""The ranks of ``mulfree train --distributed``: processes joined by MPI or by NCCL."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from mulfree_cupy.arrays import Array
from mulfree_cupy.communicator import ALONE, Communicator
from mulfree_cupy.config import set_num_threads
from mulfree_cupy.progress import report

DEVICES = {"mpi": "cpu", "nccl": "cuda"}  # where each kind of rank trains
_THREADS = "MULFREE_NUM_THREADS", "OMP_NUM_THREADS"  # set by the user
_BLAS_THREADS = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"
_SIZES = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"  # set by Open MPI; by MPICH and those built on it
_LOCAL_RANKS = "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"


class MPI(Communicator):
    """A rank of MPI, which sums NumPy arrays.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    """

    def __init__(self, comm: Any):
        self._comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def gather(self, array: np.ndarray) -> np.ndarray:
        gathered = np.empty((self.size, *array.shape), array.dtype)
        self._comm.Allgather(array, gathered)
        return gathered

    def exchange(self, parts: np.ndarray) -> np.ndarray:
        received = np.empty_like(parts)
        self._comm.Alltoall(parts, received)
        return received


class NCCL(Communicator):
    """A rank of NCCL, which sums CuPy arrays on the current stream.

    Parameters
    ----------
    group : cupyx.distributed.NCCLBackend
        What ``cupyx.distributed.init_process_group`` returns.
    size : int
        Number of ranks.
    """

    def __init__(self, group: Any, size: int):
        self._group = group
        self.rank, self.size = group.rank, size

    def gather(self, array: Array) -> Array:
        import cupy

        gathered = cupy.empty((self.size, *array.shape), array.dtype)
        self._group.all_gather(array, gathered, array.size)
        return gathered

    def exchange(self, parts: Array) -> Array:
        import cupy

        received = cupy.empty_like(parts)
        self._group.all_to_all(parts, received)
        return received


def launched() -> int:
    """The number of processes that an MPI launcher started with this one, or 1."""
    sizes = [os.environ.get(name, "") for name in _SIZES]
    return max([1, *(int(size) for size in sizes if size.isdecimal())])


@contextlib.contextmanager
def connect(kind: str | None) -> Iterator[Communicator]:
    """This process's communicator among the ranks that it was started with.

    A process that leaves the context by an exception ends the others when it ends itself, if MPI
    started them; they would wait for it otherwise.

    Parameters
    ----------
    kind : {"mpi", "nccl"} or None
        Ranks on CPUs, joined by mpi4py; on GPUs, by ``cupyx.distributed``, started by MPI or with
        ``RANK`` and ``WORLD_SIZE`` in the environment; or this process alone.

    Raises
    ------
    ImportError
        If mpi4py or CuPy is not installed.
    ValueError
        If there is no GPU, or the environment is not of a rank.
    """
    if kind is None:
        yield ALONE
    elif kind == "nccl" and "WORLD_SIZE" in os.environ:
        cupy = _cupy()
        rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
        if rank >= size:
            raise ValueError(f"RANK must be below WORLD_SIZE, {size}, got {rank}")
        yield _nccl(cupy, rank, size, use_mpi=False)
    elif kind in DEVICES:
        cupy = _cupy() if kind == "nccl" else None
        world = _mpi().COMM_WORLD
        rank, size = world.Get_rank(), world.Get_size()
        atexit.register(world.Abort, 1)
        if size == 1:
            report("--distributed: there is one rank; start several with mpirun -n RANKS")
            yield ALONE
        elif cupy:
            yield _nccl(cupy, rank, size, use_mpi=True)
        else:
            _share_processors(world)
            yield MPI(world)
        atexit.unregister(world.Abort)
    else:
        raise ValueError(f"distributed must be 'mpi' or 'nccl', got {kind!r}")


def _mpi() -> ModuleType:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # of mpi4py, or of the library that it loads
        raise ImportError(
            f"--distributed needs mpi4py and an MPI library: {str(error).splitlines()[0]}; "
            "pip install 'mulfree_cupy[distributed]', and Open MPI or another MPI"
        ) from None
    return MPI


def _cupy() -> ModuleType:
    from mulfree_cupy.train.evaluation import namespace_of

    cupy = namespace_of("cuda")
    if not cupy.cuda.nccl.available:
        raise ImportError("--distributed nccl: CuPy finds no NCCL; pip install nvidia-nccl-cu13")
    return cupy


def _nccl(cupy: ModuleType, rank: int, size: int, *, use_mpi: bool) -> Communicator:
    if size == 1:
        return ALONE
    import cupyx.distributed

    place = next((_number(name, 0) for name in _LOCAL_RANKS if name in os.environ), rank)
    cupy.cuda.Device(place % cupy.cuda.runtime.getDeviceCount()).use()
    return NCCL(cupyx.distributed.init_process_group(size, rank, use_mpi=use_mpi), size)


def _number(name: str, least: int) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal() or int(text) < least:
        raise ValueError(
            f"{name} in the environment must be a whole number of at least {least}, got {text!r}"
        )
    return int(text)


def _share_processors(world: Any) -> None:
    """Divide a machine's processors among its ranks, unless the user has set numbers of threads."""
    from threadpoolctl import threadpool_limits

    own = _processors()
    everybodys = world.Split_type(_mpi().COMM_TYPE_SHARED).allgather(own)
    sharing = sum(bool(own & processors) for processors in everybodys)  # unless they are bound
    share = max(1, len(own) // sharing)
    if not any(name in os.environ for name in _THREADS):
        set_num_threads(share)
    if not any(name in os.environ for name in _BLAS_THREADS):
        threadpool_limits(share, user_api="blas")


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
