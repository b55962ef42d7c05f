"""Limits of GPUs and of the kernels' integers, and their checks.

How a launch is split to fit is in `tiling`. Arrays are C-contiguous, checked and not empty, as in
every launcher.
"""

from __future__ import annotations

from mulfree_cupy.geometry import ConvGeometry

# Of CUDA, on every supported architecture.
GRID_X = 2**31 - 1  # blocks along x
GRID_LIMIT = 65535  # and along y and z
BLOCK = (1024, 1024, 64)  # threads along each axis
BLOCK_THREADS = 1024  # and in all
STATIC_SHARED = 48 * 1024  # bytes of shared memory per block; more must be requested
DYNAMIC_SHARED = 227 * 1024  # on request, on an H100

# Of a large GPU, which launches should fill.
MULTIPROCESSORS = 132  # an H100's
RESIDENT_BLOCKS = 32 * MULTIPROCESSORS  # at one time, at most
RESIDENT_THREADS = 2048 * MULTIPROCESSORS
FULL = 128  # blocks, about one per multiprocessor: with fewer the GPU is partly idle
WORKSPACE = 64 * 2**20  # bytes stored between two launches

# Of the kernels' integers.
INT32 = 2**31 - 2**16  # with room for a last tile or grid stride beyond the end
LONGEST = 2**30  # rows or columns of a padded image: gather.cuh's NOWHERE is beyond
WINDOW = (16, 15)  # rows and columns of a window that gather.cuh has bits for
FROZEN_ENTRIES = 8192  # weights of a layer in code: NVRTC's time grows faster than linearly


def check_sizes(function: str, limit: int, sizes: dict[str, int]) -> None:
    """Raise if a size exceeds a kernel's limit."""
    for name, size in sizes.items():
        if size > limit:
            raise ValueError(f"{function}: {name} must be at most {limit}, got {size}")


def check_geometry(function: str, g: ConvGeometry, longest: int | None = None) -> None:
    """Raise for sizes that overflow 32 bits, or a padded image with too many rows or columns."""
    check_sizes(function, INT32, {"N": g.batch, "C*kh*kw": g.cols_shape[1], "K": g.filters})
    check_sizes(function, INT32 if longest is None else longest, padded_sizes(g))


def padded_sizes(g: ConvGeometry) -> dict[str, int]:
    """Rows and columns of the padded image, by name."""
    return dict(zip(("H + padding", "W + padding"), g.padded_size, strict=True))
