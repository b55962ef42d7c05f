"""Tiles of the implicit products, which adder and shift share (cuda/adder/tile.cuh)."""

from __future__ import annotations

from mulfree_cupy.arrays import address

LONGEST = 2**30  # rows or columns of a padded image: gather.cuh's NOWHERE lies beyond
FULL = 256  # blocks below which a large GPU stands partly idle, and a smaller tile is better


def vector(array, *lengths: int) -> int:
    """Elements that move as one: 16 bytes' worth if all lengths are multiples of it, or one."""
    n = 16 // array.itemsize
    aligned = address(array) % 16 == 0 and all(length % n == 0 for length in lengths)
    return n if aligned else 1


def conv_tile(itemsize: int, filters: int, pixels: int, groups: int) -> tuple[int, int, int, int]:
    """F, P, EACH_F, EACH_P: no more rows than there are filters to fill them, 128 threads."""
    if filters == 1:
        return (1, 512, 1, 4) if itemsize == 4 else (1, 256, 1, 2)
    if filters <= 4:
        return (4, 512, 4, 4) if itemsize == 4 else (4, 256, 4, 2)
    if filters <= 16:
        return (16, 256, 8, 4) if itemsize == 4 else (16, 128, 4, 4)
    if itemsize == 8:
        return 64, 64, 8, 4
    if filters <= 32:
        return 32, 256, 8, 8
    tile = (64, 128, 8, 8) if (filters - 1) % 128 < 64 else (128, 64, 8, 8)
    return tile if blocks(tile, filters, pixels, groups) >= FULL else (64, 64, 8, 4)


def blocks(tile: tuple, rows: int, pixels: int, groups: int) -> int:
    return -(-rows // tile[0]) * -(-pixels // tile[1]) * groups
