"""What the emulator counts is what a GPU's memory system would see."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import RawKernel, emulated_cuda

F = np.float32


def count(code, name, grid, block, args):
    with emulated_cuda(trace=True) as report:
        RawKernel(code, name)(grid, block, args)
    return report, report.counts[name]


COPY = """
extern "C" __global__ void copy(const float* x, float* y, int stride, int offset) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i * stride + offset];
}"""


@pytest.mark.parametrize(
    ("stride", "offset", "sectors"),
    [(1, 0, 4), (1, 1, 5), (2, 0, 8), (8, 0, 32), (32, 0, 32), (0, 0, 1)],
)
def test_sectors_of_strided_loads(stride, offset, sectors):
    x, y = np.zeros(128 * 32 + 8, F), np.zeros(128, F)
    _, counts = count(COPY, "copy", (2,), (64,), (x, y, np.int32(stride), np.int32(offset)))
    assert (counts.global_loads, counts.global_stores) == (128, 128)
    assert counts.global_requests == 8 and counts.global_bytes == 1024
    assert counts.sectors == 4 * sectors + 4 * 4


@pytest.mark.parametrize(("pad", "conflicts"), [(0, 31), (1, 0), (2, 1), (16, 15)])
def test_bank_conflicts_of_a_transpose(pad, conflicts):
    code = """
template <int PAD> __global__ void transpose(float* to, const float* from, int n) {
    __shared__ float tile[32][32 + PAD];
    int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        tile[threadIdx.y + j][threadIdx.x] = from[(y + j) * n + x];
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x;
    y = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        to[(y + j) * n + x] = tile[threadIdx.x][threadIdx.y + j];
}"""
    a = np.arange(64 * 64, dtype=F).reshape(64, 64)
    out = np.zeros_like(a)
    name = f"transpose<{pad}>"
    report, counts = count(code, name, (2, 2), (32, 8), (out, a, np.int32(64)))
    np.testing.assert_array_equal(out, a.T)
    assert counts.line(6).bank_conflicts == 0
    assert counts.line(11).bank_conflicts == 128 * conflicts
    assert counts.shared_requests == 256
    assert counts.sectors_per_request == 4
    assert counts.barriers == counts.line(7).barriers == 4
    assert f"{name}:11" in str(report)


def test_wide_accesses_go_by_parts_of_a_warp():
    code = """
extern "C" __global__ void wide(const float4* x, float4* y) {
    __shared__ float4 s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[2 * threadIdx.x];
    __syncthreads();
}"""
    x = np.zeros((64, 4), F)
    with emulated_cuda(check=False, trace=True) as report:
        RawKernel(code, "wide")((1,), (32,), (x, np.zeros_like(x)))
    counts = report.counts["wide"]
    assert (counts.global_loads, counts.global_stores, counts.global_bytes) == (32, 32, 1024)
    assert counts.sectors == 32
    # Eight float4 at a time fill the banks once; every second one, twice.
    assert (counts.line(4).bank_conflicts, counts.line(6).bank_conflicts) == (0, 4)


def test_atomics_launches_and_loops_are_added_up():
    code = """
extern "C" __global__ void sum(const int* x, int* out, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(out, x[i]);
}"""
    x, out = np.ones(1000, np.int32), np.zeros(1, np.int32)
    kernel = RawKernel(code, "sum")
    with emulated_cuda(trace=True) as report:
        for _ in range(3):
            kernel((1,), (40,), (x, out, np.int32(1000)))
    counts = report.counts["sum"]
    assert out[0] == 3000
    assert (counts.launches, counts.threads) == (3, 120)
    assert (counts.global_loads, counts.global_atomics, counts.global_stores) == (3000, 3000, 0)
    assert counts.global_requests == 3 * 2 * 2 * 25


def test_a_long_run_without_barriers_stays_aligned():
    x, y = np.zeros(4096 * 32, F), np.zeros(32, F)
    code = """
extern "C" __global__ void columns(const float* x, float* y) {
    float s = 0;
    for (int i = 0; i < 4096; ++i) s += x[32 * i + threadIdx.x];
    y[threadIdx.x] = s;
}"""
    _, counts = count(code, "columns", (1,), (32,), (x, y))
    assert counts.global_requests == 4097 and counts.sectors == 4 * 4097
