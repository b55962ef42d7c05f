"""cooperative_groups: groups of any kind, partitions, and what can be asked of the grid."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda

I32 = np.int32
CODE = """
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;
__device__ int sum(cg::thread_group g, int* temp, int v) {
    int rank = g.thread_rank();
    for (int i = g.size() / 2; i > 0; i /= 2) {
        temp[rank] = v;
        g.sync();
        if (rank < i) v += temp[rank + i];
        g.sync();
    }
    return v;
}
extern "C" __global__ void any_group(const int* x, int* y, int size) {
    extern __shared__ int temp[];
    int t = threadIdx.x, v = x[t];
    cg::thread_block block = cg::this_thread_block();
    cg::thread_group whole = block, tile = cg::tiled_partition(block, size);
    y[t] = sum(whole, temp, v);
    y[64 + t] = sum(tile, temp + t / size * size, v);
    cg::thread_group half = cg::tiled_partition(tile, size / 2);
    y[128 + t] = sum(half, temp + t / (size / 2) * (size / 2), v);
    y[192 + t] = sum(cg::tiled_partition<8>(block), temp + t / 8 * 8, v);
}
extern "C" __global__ void partitions(const int* x, int* y) {
    int t = threadIdx.x, v = x[t];
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    auto same = cg::labeled_partition(warp, v);
    int r[] = {(int)same.size(), (int)same.thread_rank(), (int)same.meta_group_rank(),
               (int)same.meta_group_size(), cg::reduce(same, t, cg::plus<int>()), 0, 0, 0, 0, 0, 0};
    auto side = cg::binary_partition(warp, v > 2);
    r[5] = side.size(); r[6] = side.meta_group_rank(); r[7] = side.meta_group_size();
    if (t % 3 == 0) {
        auto active = cg::coalesced_threads();
        auto part = cg::binary_partition(cg::labeled_partition(active, v), t % 2);
        r[8] = part.num_threads();
        r[9] = cg::tiled_partition(active, 4).size();
    }
    auto eight = cg::tiled_partition<8>(cg::tiled_partition<16>(cg::this_thread_block()));
    r[10] = 10 * eight.meta_group_rank() + eight.meta_group_size();
    for (int i = 0; i < 11; ++i) y[11 * t + i] = r[i];
}
extern "C" __global__ void grid(unsigned long long* y) {
    cg::grid_group g = cg::this_grid();
    auto i = g.thread_rank();
    y[4 * i] = g.size();
    y[4 * i + 1] = g.block_rank() * 1000 + g.num_blocks();
    y[4 * i + 2] = g.group_dim().x + 10 * g.dim_blocks().y + 100 * g.block_index().y;
    y[4 * i + 3] = i + g.is_valid();
}"""


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("check", [True, False])
def test_thread_group(size, check):
    x, y = np.random.default_rng(0).integers(0, 9, 64).astype(I32), np.zeros((4, 64), I32)
    with emulated_cuda(check=check):
        RawKernel(CODE, "any_group")((1,), (64,), (x, y, I32(size)), shared_mem=256)
    for row, n in zip(y, (64, size, size // 2, 8), strict=True):
        np.testing.assert_array_equal(row[::n], x.reshape(-1, n).sum(1))


@pytest.mark.parametrize("check", [True, False])
def test_partitions(check):
    x, y = np.random.default_rng(0).integers(0, 5, 64).astype(I32), np.zeros((64, 11), I32)
    with emulated_cuda(check=check):
        RawKernel(CODE, "partitions")((1,), (64,), (x, y))
    for t, row in enumerate(y.tolist()):
        warp = np.arange(t // 32 * 32, t // 32 * 32 + 32)
        v = x[warp]
        same = warp[v == x[t]]
        firsts = sorted(int(np.argmax(v == label)) for label in set(v.tolist()))
        part = firsts.index(int(np.argmax(v == x[t])))
        assert row[:5] == [len(same), (same < t).sum(), part, len(firsts), same.sum()]
        assert row[5:8] == [((v > 2) == (x[t] > 2)).sum(), int(x[t] > 2), 2]
        active = warp[warp % 3 == 0]
        if t in active:
            alike = (x[active] == x[t]) & (active % 2 == t % 2)
            place = list(active).index(t) // 4
            assert row[8:10] == [alike.sum(), min(4, len(active) - 4 * place)]
        assert row[10] == t % 16 // 8 * 10 + 2


def test_grid():
    y = np.zeros((6 * 40, 4), np.uint64)
    RawKernel(CODE, "grid")((3, 2), (20, 2), (y,))
    i = np.arange(240)
    expected = [i * 0 + 240, i // 40 * 1000 + 6, 3 + 20 + 100 * (i // 120), i]
    np.testing.assert_array_equal(y, np.transpose(expected))


def test_a_barrier_of_too_small_a_group_is_a_race():
    code = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
__device__ int other(cg::thread_group group, int v) {
    __shared__ int s[8];
    s[threadIdx.x] = v;
    group.sync();
    return s[threadIdx.x ^ 4];                            // 8
}
extern "C" __global__ void f(int* x, int size) {
    x[threadIdx.x] = other(cg::tiled_partition(cg::this_thread_block(), size), threadIdx.x);
}"""
    x = np.zeros(8, I32)
    RawKernel(code, "f")((1,), (8,), (x, I32(8)))
    np.testing.assert_array_equal(x, np.arange(8) ^ 4)
    with pytest.raises(EmulationFault, match="data race") as fault:
        RawKernel(code, "f")((1,), (8,), (x, I32(4)))
    assert fault.value.finding.kind == "race"


WIDE = """
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;
extern "C" __global__ void wide(const int* x, int* y) {
    __shared__ cg::block_tile_memory<256> memory;
    __shared__ int s[256];
    auto block = cg::this_thread_block(memory);
    auto tile = cg::tiled_partition<64>(block);
    auto warp = cg::tiled_partition<32>(tile);
    int t = block.thread_rank(), first = t - tile.thread_rank();
    s[t] = x[t];
    if (tile.meta_group_rank() != 2) {           // the third does other things
        SYNC;
        y[t] = s[first + (tile.thread_rank() + 40) % 64];
        y[t] += 1000 * cg::reduce(tile, x[t], cg::plus<int>());
        SYNC;
        s[t] = tile.any(t == 70) + 2 * tile.all(t < 64) + 4 * warp.meta_group_rank();
        y[256 + t] = s[t] + 100 * tile.shfl(x[t], 5);
    }
}"""


@pytest.mark.parametrize("check", [True, False])
def test_tiles_of_several_warps(check):
    x, y = np.random.default_rng(3).integers(0, 9, 256).astype(I32), np.zeros((2, 4, 64), I32)
    with emulated_cuda(check=check):
        RawKernel(WIDE, "wide", ("-DSYNC=tile.sync()",))((1,), (256,), (x, y))
    tiles = x.reshape(4, 64)
    first = np.roll(tiles, -40, 1) + 1000 * tiles.sum(1, keepdims=True)
    tile, lane = np.indices((4, 64))
    second = (tile == 1) + 2 * (tile == 0) + 4 * (lane // 32) + 100 * tiles[:, 5:6]
    np.testing.assert_array_equal(y, np.where(tile == 2, 0, [first, second]))


def test_tiles_of_several_warps_are_ordered_by_their_barrier():
    x, y = np.zeros(256, I32), np.zeros(512, I32)
    with pytest.raises(EmulationFault) as fault:
        RawKernel(WIDE, "wide", ("-DSYNC=warp.sync()",))((1,), (256,), (x, y))
    assert fault.value.finding.kind in ("race", "uninitialised")
