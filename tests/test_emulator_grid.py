"""Blocks that wait for the whole grid: this_grid().sync() in a cooperative launch."""

import numpy as np
import pytest

from mulfree_cupy import emulated_cuda
from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, RawModule

F32, I32 = np.float32, np.int32

# Each block adds up what its left neighbour has, again and again; all else stays where it was.
NEIGHBOURS = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
__device__ int deep(cg::grid_group grid, int depth, int v) {
    int local[16];
    for (int i = 0; i < 16; ++i) local[i] = v + i * depth;
    if (depth) v += deep(grid, depth - 1, v + 1);
    else SYNC;
    for (int i = 0; i < 16; ++i) v += local[i] - i * depth;
    return v;
}
extern "C" __global__ void neighbours(int* x, int* y, int steps) {
    extern __shared__ int wide[];
    __shared__ int kept[40];
    cg::grid_group grid = cg::this_grid();
    int t = threadIdx.x, n = blockDim.x, left = (blockIdx.x + gridDim.x - 1) % gridDim.x;
    kept[t] = 100 * blockIdx.x + t;
    wide[t] = 7 * kept[t];
    int own = 0;
    for (int i = 0; i < steps; ++i) {
        int v = x[left * n + t];
        cg::sync(grid);
        x[blockIdx.x * n + t] += v;
        own += deep(grid, 3, t);
    }
    y[blockIdx.x * n + t] = kept[(t + 1) % n] + 7 * kept[t] - wide[t] + own + grid.is_valid();
}"""


def deep(depth, v):
    local = v
    if depth:
        v = v + deep(depth - 1, v + 1)
    return v + 16 * local


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("trace", [True, False])
def test_blocks_that_wait_for_the_grid(check, trace):
    x, y = np.arange(200, dtype=I32).reshape(5, 40), np.zeros((5, 40), I32)
    expected, t = x.copy(), np.arange(40)
    kernel = RawKernel(
        NEIGHBOURS.replace("SYNC", "grid.sync()"), "neighbours", enable_cooperative_groups=True
    )
    with emulated_cuda(check=check, trace=trace):
        kernel((5,), (40,), (x, y, I32(3)), shared_mem=160)
    for _ in range(3):
        expected = expected + np.roll(expected, 1, 0)
    np.testing.assert_array_equal(x, expected)
    kept = 100 * np.arange(5)[:, None] + (t + 1) % 40
    np.testing.assert_array_equal(y, kept + 3 * deep(3, t) + 1)


def test_a_missing_barrier_of_the_grid_is_a_race():
    x, y = np.zeros((5, 40), I32), np.zeros((5, 40), I32)
    code = NEIGHBOURS.replace("SYNC", "cg::this_thread_block().sync()")
    kernel = RawKernel(code, "neighbours", enable_cooperative_groups=True)
    with pytest.raises(EmulationFault) as raised:
        kernel((5,), (40,), (x, y, I32(3)), shared_mem=160)
    assert raised.value.finding.kind == "race"


ENDS = """
#include <cooperative_groups.h>
extern "C" __global__ void ends(int* x) {
    if (GOES) return;
    cooperative_groups::this_grid().sync();
    x[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}"""


@pytest.mark.parametrize(
    ("goes", "kind"),
    [
        ("blockIdx.x == 1", "trap"),
        ("threadIdx.x == 1", "divergent_barrier"),
    ],
)
def test_who_does_not_come_to_the_barrier_of_the_grid(goes, kind):
    module = RawModule(code=ENDS.replace("GOES", goes), enable_cooperative_groups=True)
    with pytest.raises(EmulationFault) as raised:
        module.get_function("ends")((3,), (32,), (np.zeros(96, I32),))
    assert (raised.value.finding.kind, raised.value.finding.line) == (kind, 5)


def test_a_launch_that_is_not_cooperative_has_no_barrier_of_the_grid():
    with pytest.raises(EmulationFault, match="enable_cooperative_groups") as raised:
        RawKernel(ENDS.replace("GOES", "false"), "ends")((3,), (32,), (np.zeros(96, I32),))
    assert (raised.value.finding.kind, raised.value.finding.line) == ("trap", 5)


def test_a_cooperative_grid_fits_a_gpu():
    kernel = RawKernel(ENDS.replace("GOES", "false"), "ends", enable_cooperative_groups=True)
    with pytest.raises(ValueError, match="must fit a GPU at once, .* got 300 blocks of 1024"):
        kernel((300,), (1024,), (np.zeros(300 * 1024, I32),))


def test_shared_memory_that_another_block_wrote_is_not_written():
    code = """
#include <cooperative_groups.h>
extern "C" __global__ void f(int* x) {
    __shared__ int s[4];
    if (blockIdx.x == 0) s[threadIdx.x] = 1;
    cooperative_groups::this_grid().sync();
    if (blockIdx.x == 1) x[threadIdx.x] = s[threadIdx.x];
}"""
    kernel = RawKernel(code, "f", enable_cooperative_groups=True)
    with pytest.raises(EmulationFault) as raised:
        kernel((2,), (4,), (np.zeros(4, I32),))
    assert raised.value.finding.kind == "uninitialised"
