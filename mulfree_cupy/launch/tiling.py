"""Launch configurations: tiles, parts of a split sum, threads and blocks.

A tile is chosen by the extent to cover, and made smaller where there would be too few blocks for
the GPU; `docs/cuda.md` has the cost of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mulfree_cupy.arrays import address
from mulfree_cupy.launch import limits

DEPTH = 8  # terms per step, in most tiles


class Tile(NamedTuple):
    """Outputs per block and per thread (cuda/adder/tile.cuh)."""

    rows: int
    columns: int
    each_row: int
    each_column: int
    depth: int = DEPTH

    @property
    def threads(self) -> int:
        return self.rows // self.each_row * (self.columns // self.each_column)

    def blocks(self, rows: int, columns: int, groups: int = 1) -> int:
        """Number of tiles that cover the rows and columns of each group."""
        return -(-rows // self.rows) * -(-columns // self.columns) * groups

    def fills(self, rows: int, columns: int, groups: int = 1) -> bool:
        """Whether there are two blocks for nearly every multiprocessor."""
        return self.blocks(rows, columns, groups) >= 2 * limits.FULL

    def defines(self, rows: str = "F") -> dict[str, int]:
        """The macros; `rows` is the letter of the row dimension."""
        names = rows, "P", f"EACH_{rows}", "EACH_P", "DEPTH"
        return dict(zip(names, self, strict=True))


def vector(array, *lengths: int) -> int:
    """Elements per vector: 16 bytes' worth if all lengths are multiples of it, else one."""
    n = 16 // array.itemsize
    aligned = address(array) % 16 == 0 and all(length % n == 0 for length in lengths)
    return n if aligned else 1


def chunks(total: int, size: int) -> Iterator[slice]:
    """Ranges of at most `size` that cover `total`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def plane_launch(pixels: int, planes: int, images: int) -> tuple[tuple, tuple]:
    """Grid and block with one thread per pixel; the kernel loops further along y and z."""
    threads = min(256, -(-pixels // 32) * 32)
    most = limits.GRID_LIMIT
    return (-(-pixels // threads), min(planes, most), min(images, most)), (threads,)


def small_conv_tile(itemsize: int, filters: int, pixels: int, groups: int) -> Tile:
    """No more rows than filters, 8 x 8 outputs per thread, 128 threads."""
    if filters == 1:
        return Tile(1, 512, 1, 4) if itemsize == 4 else Tile(1, 256, 1, 2)
    if filters <= 4:
        return Tile(4, 512, 4, 4) if itemsize == 4 else Tile(4, 256, 4, 2)
    if filters <= 16:
        return Tile(16, 256, 8, 4) if itemsize == 4 else Tile(16, 128, 4, 4)
    if itemsize == 8:
        return Tile(64, 64, 8, 4)
    if filters <= 32:
        return Tile(32, 256, 8, 8)
    tile = Tile(64, 128, 8, 8) if (filters - 1) % 128 < 64 else Tile(128, 64, 8, 8)
    return tile if tile.fills(filters, pixels, groups) else Tile(64, 64, 8, 4)


def conv_tile(itemsize: int, filters: int, pixels: int, groups: int) -> Tile:
    """Of 5_implicit_conv: 16 x 8 outputs per thread where that leaves enough blocks."""
    if itemsize == 4 and 4 < filters <= 16:
        return Tile(16, 256, 16, 8, 4)
    if itemsize == 4 and filters > 32:
        tile = Tile(64, 256, 16, 8) if (filters - 1) % 128 < 64 else Tile(128, 128, 16, 8)
        if tile.fills(filters, pixels, groups):
            return tile
    return small_conv_tile(itemsize, filters, pixels, groups)


def half_tile(itemsize: int, filters: int, pixels: int, groups: int) -> Tile:
    """Of 7_half2, with at most 8 x 8: a thread has two sums per output."""
    tile = small_conv_tile(itemsize, filters, pixels, groups)
    return tile._replace(depth=DEPTH if filters <= 4 else 2 * DEPTH)


def word_tile(itemsize: int, filters: int, pixels: int, groups: int) -> Tile:
    """Of cuda/binary/2_register_tile.cu: 8 x 4 outputs per thread, since POPC is the bottleneck."""
    rows = next((rows for rows in (1, 4, 16, 32) if filters <= rows), 64)
    each = min(8, rows)
    return Tile(rows, 512 * each // rows, each, 4)


class BitTile(NamedTuple):
    """Of cuda/binary/3_tensor_cores.cu: filters per block, in units of 16."""

    tiles: int
    pixels: int = 128
    threads: int = 128

    def blocks(self, filters: int, pixels: int, groups: int) -> int:
        return -(-filters // (16 * self.tiles)) * -(-pixels // self.pixels) * groups


def bit_tile(filters: int, pixels: int, groups: int) -> BitTile:
    """As many filters, up to K, as leave two blocks per multiprocessor."""
    for tiles in (4, 2, 1):
        tile = BitTile(tiles)
        if filters > 8 * tiles and tile.blocks(filters, pixels, groups) >= 2 * limits.FULL:
            break
    return tile


def grad_x_tile(itemsize: int, channels: int) -> Tile:
    """Channels by pixels; a thread's pixels are one vector."""
    if channels == 1:
        return Tile(1, 512, 1, 4) if itemsize == 4 else Tile(1, 256, 1, 2)
    if channels <= 4:
        return Tile(4, 512, 4, 4) if itemsize == 4 else Tile(4, 256, 4, 2)
    if itemsize == 8:
        return Tile(32, 32, 4, 2)
    if channels <= 16:
        return Tile(16, 128, 4, 4)
    return Tile(32, 128, 8, 4) if channels <= 32 else Tile(64, 64, 8, 4)


def grad_w_tile(itemsize: int, filters: int, taps: int) -> Tile:
    """Filters by taps, with the least padding."""
    heights = (8, 16, 32) if itemsize == 8 else (8, 16, 32, 64)
    f = next((f for f in heights if filters <= f), heights[-1])
    widths = (32, 64) if itemsize == 8 else (32, 64, 96, 144)  # 144 is 16 channels of 3 x 3
    p = min(widths[: 3 if f == 64 else 4], key=lambda p: (-(-taps // p) * (p + 16), -p))
    return Tile(f, p, {8: 2, 64: 8}.get(f, 4), 4)


def grad_w_parts(itemsize: int, tile: Tile, blocks: int) -> int:
    """Number of parts for which all blocks are resident at once, as grad_w.cu requires."""
    threads = 384 if tile.each_row == 8 or itemsize == 8 else 576  # per multiprocessor
    return limits.MULTIPROCESSORS * min(16, threads // tile.threads) // blocks


def shift_grad_w_tile(filters: int, channels: int) -> Tile:
    return Tile(32, 32, 4, 4) if max(filters, channels) <= 32 else Tile(64, 64, 8, 4)


def shift_grad_w_parts(blocks: int) -> int:
    """Number of parts that gives about four blocks per multiprocessor."""
    return 4 * limits.FULL // blocks


class FusedTile(NamedTuple):
    """Of cuda/winograd/3_fused.cu: tiles per thread, warps per block, and channels per slab."""

    each: int
    warps: int
    chunk: int

    @property
    def threads(self) -> int:
        return 32 * self.warps

    def defines(self) -> dict[str, int]:
        return {"EACH": self.each, "WARPS_K": self.warps, "CHUNK": self.chunk}

    def blocks(self, tiles: int, filters: int) -> tuple[int, int]:
        return -(-tiles // (32 * self.each)), -(-filters // (4 * self.warps))


_SLAB = 32 * 1024  # bytes of shared memory for V


def winograd_fused_tile(itemsize: int, filters: int, tiles: int) -> FusedTile:
    """As many tiles per thread as leave about one block per multiprocessor."""
    for each, warps in ((4, 16), (4, 8), (2, 8), (2, 4), (1, 4)):
        tile = FusedTile(each, warps, _SLAB // (32 * each * itemsize))
        across, down = tile.blocks(tiles, filters)
        fits = each * itemsize <= 16 and (warps == 4 or 2 * warps < filters)
        if fits and across * down >= limits.FULL:
            break
    return tile


class FrozenTile(NamedTuple):
    """Of cuda/winograd/4_frozen.cu: filters per thread, warps along the filters and the tiles."""

    rows: int
    warps_k: int
    warps_p: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_k * self.warps_p

    def defines(self) -> dict[str, int]:
        return {"ROWS": self.rows, "WARPS_K": self.warps_k, "WARPS_P": self.warps_p}

    def blocks(self, tiles: int, filters: int) -> tuple[int, int]:
        return -(-tiles // (32 * self.warps_p)), -(-filters // (self.rows * self.warps_k))


def winograd_frozen_tile(itemsize: int, filters: int, tiles: int) -> FrozenTile:
    """16 filters per thread, or 8 in float64; up to 64 filters and 64 tiles per block."""
    rows = 64 // itemsize
    wide = FrozenTile(rows, min(4, -(-filters // rows)), 2)
    across, down = wide.blocks(tiles, filters)
    return wide if across * down >= limits.FULL else wide._replace(warps_p=1)


_HELD = 128  # bytes of a channel that a thread of batch normalisation keeps in registers
_FEW, _MANY = 256, 512  # threads per block for few elements and for many
_LEAST, _LONGEST = 2**12, 2**16  # elements per part; a thread sums at most 256 in the element type


def channel_parts(channels: int, count: int) -> tuple[int, int]:
    """Number of parts of a channel, and elements per part, a multiple of the vector.

    About 16 blocks per multiprocessor, two waves of resident blocks.
    """
    parts = min(-(-count // _LEAST), -(-16 * limits.FULL // channels))
    parts = max(parts, -(-count // _LONGEST))
    length = -(-count // (4 * parts)) * 4
    return -(-count // length), length


def channel_capacity(itemsize: int, width: int | None = None) -> int:
    """Most elements of a channel that registers hold.

    In the gradient with scalar accesses (a `width` of 1, as on odd planes), `_MANY` threads have
    too few registers.
    """
    return (_FEW if width == 1 else _MANY) * _HELD // itemsize


def channel_in_registers(itemsize: int, count: int) -> tuple[int, int]:
    """Threads per block that holds a channel, and elements per thread."""
    each = _HELD // itemsize
    return (_FEW if count <= _FEW * each else _MANY), each
