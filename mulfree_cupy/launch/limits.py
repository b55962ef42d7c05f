"""What a GPU and the integers of the kernels can take, and the checks that keep to it.

Everything of that kind stands here; how a launch is cut to fit is `tiling`'s. Arrays are
C-contiguous, checked and not empty, here as in every launcher.
"""

from __future__ import annotations

from mulfree_cupy.geometry import ConvGeometry

# Of CUDA, on every architecture that is served.
GRID_X = 2**31 - 1  # blocks along x
GRID_LIMIT = 65535  # and along y and z
BLOCK = (1024, 1024, 64)  # threads along each axis
BLOCK_THREADS = 1024  # and in all
STATIC_SHARED = 48 * 1024  # bytes of shared memory a block; a kernel must ask for more
DYNAMIC_SHARED = 227 * 1024  # with asking, on an H100

# Of a large GPU, which launches are cut to fill.
MULTIPROCESSORS = 132  # an H100's
FULL = 128  # blocks, one on nearly each of them: with fewer the GPU stands partly idle
WORKSPACE = 64 * 2**20  # bytes of what is stored between two launches

# Of the kernels' integers.
INT32 = 2**31 - 2**16  # and room for what a last tile or step of the grid has beyond the end
LONGEST = 2**30  # rows or columns of a padded image: gather.cuh's NOWHERE lies beyond
WINDOW = (16, 15)  # rows and columns of a window that gather.cuh has bits for
FROZEN_ENTRIES = 8192  # weights of a layer in code: NVRTC's time grows faster than their number


def check_sizes(function: str, limit: int, sizes: dict[str, int]) -> None:
    """Refuse what a kernel's integers of 32 bits cannot hold."""
    for name, size in sizes.items():
        if size > limit:
            raise ValueError(f"{function}: {name} must be at most {limit}, got {size}")


def check_geometry(function: str, g: ConvGeometry, longest: int | None = None) -> None:
    """Refuse sizes that overflow 32 bits, and a padded image of more rows or columns."""
    check_sizes(function, INT32, {"N": g.batch, "C*kh*kw": g.cols_shape[1], "K": g.filters})
    check_sizes(function, INT32 if longest is None else longest, padded_sizes(g))


def padded_sizes(g: ConvGeometry) -> dict[str, int]:
    """Rows and columns of the padded image, by name."""
    return dict(zip(("H + padding", "W + padding"), g.padded_size, strict=True))
