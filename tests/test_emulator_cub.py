"""Reductions and scans of blocks and warps by CUB's names, and how they are misused."""

import re

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda

F32, I32 = np.float32, np.int32
UNDEFINED = 0x7FFF7FFF
rng = np.random.default_rng(5)

REDUCE = """
#include <cub/cub.cuh>
struct Affine { float a, b; };
struct Compose { __device__ Affine operator()(Affine f, Affine g) const { return {f.a * g.a, f.b * g.a + g.b}; } };
template <int N> __global__ void blocks(const int* x, int* y, int valid) {
    typedef cub::BlockReduce<int, N> BlockReduce;
    __shared__ typename BlockReduce::TempStorage temp;
    int t = threadIdx.x, v = x[t], pair[2] = {v, 1};
    y[t] = BlockReduce(temp).Sum(v);
    __syncthreads();
    y[N + t] = BlockReduce(temp).Reduce(v, cub::Max());
    __syncthreads();
    y[2 * N + t] = BlockReduce(temp).Sum(v, valid);
    __syncthreads();
    y[3 * N + t] = BlockReduce(temp).Reduce(v, [](int a, int b) { return a < b ? a : b; }, valid);
    __syncthreads();
    y[4 * N + t] = BlockReduce(temp).Sum(pair);
    y[5 * N + t] = BlockReduce().Reduce(pair, cuda::std::bit_or<>());
}
extern "C" __global__ void box(const double* x, double* y) {
    using BlockReduce = cub::BlockReduce<double, 8, cub::BLOCK_REDUCE_RAKING, 3, 2>;
    __shared__ BlockReduce::TempStorage temp;
    int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    double sum = BlockReduce(temp).Sum(x[t]);
    if (t == 0) y[0] = sum;
}
extern "C" __global__ void ordered(const Affine* x, Affine* y) {
    using BlockReduce = cub::BlockReduce<Affine, 96>;
    __shared__ BlockReduce::TempStorage temp;
    Affine all = BlockReduce(temp).Reduce(x[threadIdx.x], Compose());
    if (threadIdx.x == 0) y[0] = all;
}
extern "C" __global__ void largest(const float* x, int* at) {
    using Pair = cub::KeyValuePair<int, float>;
    using BlockReduce = cub::BlockReduce<Pair, 64>;
    __shared__ BlockReduce::TempStorage temp;
    Pair best = BlockReduce(temp).Reduce(Pair{(int)threadIdx.x, x[threadIdx.x]}, cub::ArgMax());
    if (threadIdx.x == 0) at[0] = best.key;
}
"""  # noqa: E501


@pytest.mark.parametrize("n", [20, 64, 100])
@pytest.mark.parametrize("check", [True, False])
def test_block_reduce(n, check):
    x, y = rng.integers(-99, 99, n).astype(I32), np.zeros((6, n), I32)
    valid = n // 3
    with emulated_cuda(check=check):
        RawKernel(REDUCE, f"blocks<{n}>")((1,), (n,), (x, y, I32(valid)))
    expected = [x.sum(), x.max(), x[:valid].sum(), x[:valid].min(), x.sum() + n]
    assert y[:, 0].tolist() == [*expected, np.bitwise_or.reduce(x) | 1]
    np.testing.assert_array_equal(y[:, 1:], UNDEFINED)


def test_block_reduce_of_other_shapes_and_types():
    x, y = rng.standard_normal(48), np.zeros(1)
    RawKernel(REDUCE, "box")((1,), (8, 3, 2), (x, y))
    np.testing.assert_allclose(y, x.sum(), rtol=1e-12)
    maps, y = rng.integers(1, 3, (96, 2)).astype(F32) / 2, np.zeros(2, F32)
    RawKernel(REDUCE, "ordered")((1,), (96,), (maps, y))
    a, b = 1.0, 0.0
    for p, q in maps.astype(float):
        a, b = a * p, b * p + q
    np.testing.assert_allclose(y, [a, b], rtol=1e-5)
    x, at = rng.integers(0, 20, 64).astype(F32), np.zeros(1, I32)
    RawKernel(REDUCE, "largest")((1,), (64,), (x, at))
    assert at[0] == x.argmax()


def test_a_sum_of_floats_is_in_the_order_of_a_gpu():
    # By pairs of neighbours, pairs of these, ...; then warp after warp.
    x, y = rng.standard_normal(128).astype(F32), np.zeros(1, F32)
    code = """
#include <cub/block/block_reduce.cuh>
extern "C" __global__ void f(const float* x, float* y) {
    __shared__ cub::BlockReduce<float, 128>::TempStorage temp;
    float sum = cub::BlockReduce<float, 128>(temp).Sum(x[threadIdx.x]);
    if (threadIdx.x == 0) y[0] = sum;
}"""
    RawKernel(code, "f")((1,), (128,), (x, y))
    sums = x.reshape(4, 32)
    while sums.shape[1] > 1:
        sums = sums[:, ::2] + sums[:, 1::2]
    expected = F32(0)
    for sum_of_warp in sums[:, 0]:
        expected += sum_of_warp
    assert y[0] == expected


SCAN = """
#include <cub/cub.cuh>
struct Running { int total; __device__ int operator()(int sum) { int old = total; total += sum; return old; } };
template <int N> __global__ void blocks(const int* x, int* y) {
    typedef cub::BlockScan<int, N> BlockScan;
    __shared__ union { typename BlockScan::TempStorage scan; int other[4]; } temp;
    int t = threadIdx.x, v = x[t], all = 0;
    BlockScan(temp.scan).ExclusiveSum(v, y[t]);
    __syncthreads();
    BlockScan(temp.scan).InclusiveSum(v, y[N + t], all);
    __syncthreads();
    y[2 * N + t] = all;
    BlockScan(temp.scan).ExclusiveScan(v, y[3 * N + t], -5, cub::Max(), all);
    __syncthreads();
    BlockScan(temp.scan).ExclusiveScan(v, y[4 * N + t], cub::Max());
    __syncthreads();
    BlockScan(temp.scan).InclusiveScan(v, y[5 * N + t], cub::Min());
    __syncthreads();
    y[6 * N + t] = all;
    Running running = {0};
    for (int round = 0; round < 2; ++round) {
        BlockScan(temp.scan).ExclusiveSum(v, y[(7 + round) * N + t], running);
        __syncthreads();
    }
    int items[3] = {v, 1, 2};
    BlockScan(temp.scan).ExclusiveSum(items, items);
    for (int i = 0; i < 3; ++i) y[9 * N + 3 * t + i] = items[i];
    __syncthreads();
    BlockScan(temp.scan).InclusiveScan(items, items, cub::Sum(), all);
    for (int i = 0; i < 3; ++i) y[12 * N + 3 * t + i] = items[i];
}
template <int W> __global__ void warps(const int* x, int* y) {
    __shared__ typename cub::WarpReduce<int, W>::TempStorage reduce[64 / W];
    __shared__ typename cub::WarpScan<int, W>::TempStorage scan[64 / W];
    int t = threadIdx.x, w = t / W, v = x[t], all, inclusive;
    y[t] = cub::WarpReduce<int, W>(reduce[w]).Sum(v);
    y[64 + t] = cub::WarpReduce<int, W>(reduce[w]).Reduce(v, cub::Max(), W / 2);
    y[128 + t] = cub::WarpReduce<int, W>(reduce[w]).HeadSegmentedSum(v, t % 3 == 0);
    y[192 + t] = cub::WarpReduce<int, W>(reduce[w]).TailSegmentedSum(v, t % 3 == 2);
    cub::WarpScan<int, W>(scan[w]).InclusiveSum(v, y[256 + t], all);
    cub::WarpScan<int, W>(scan[w]).ExclusiveSum(v, y[320 + t]);
    cub::WarpScan<int, W>(scan[w]).ExclusiveScan(v, y[384 + t], 3, cub::Max(), y[448 + t]);
    cub::WarpScan<int, W>(scan[w]).Scan(v, inclusive, y[512 + t], cub::Min());
    y[576 + t] = all + cub::WarpScan<int, W>(scan[w]).Broadcast(inclusive, W - 1);
}
"""  # noqa: E501


@pytest.mark.parametrize("n", [20, 64, 100])
@pytest.mark.parametrize("check", [True, False])
def test_block_scan(n, check):
    x, y = rng.integers(-99, 99, n).astype(I32), np.zeros((15, n), I32)
    with emulated_cuda(check=check):
        RawKernel(SCAN, f"blocks<{n}>")((1,), (n,), (x, y))
    sums = np.cumsum(x)
    exclusive, maxima = sums - x, np.maximum.accumulate(x)
    np.testing.assert_array_equal(y[:3], [exclusive, sums, np.full(n, sums[-1])])
    np.testing.assert_array_equal(y[3], np.append(-5, np.maximum(maxima, -5)[:-1]))
    np.testing.assert_array_equal(y[4], np.append(UNDEFINED, maxima[:-1]))
    np.testing.assert_array_equal(y[5:7], [np.minimum.accumulate(x), np.full(n, maxima[-1])])
    np.testing.assert_array_equal(y[7:9], [exclusive, exclusive + sums[-1]])
    items = np.stack([x, np.full(n, 1), np.full(n, 2)], 1).ravel()
    scanned = np.cumsum(items) - items
    np.testing.assert_array_equal(y[9:12].ravel(), scanned)
    np.testing.assert_array_equal(y[12:].ravel(), np.cumsum(scanned))


@pytest.mark.parametrize("width", [4, 16, 32])
def test_warps(width):
    x, y = rng.integers(-99, 99, 64).astype(I32), np.zeros((10, 64), I32)
    RawKernel(SCAN, f"warps<{width}>")((1,), (64,), (x, y))
    first = np.arange(64) % width == 0
    for row, of in ((0, np.sum), (1, lambda v, axis: v[:, : width // 2].max(axis))):
        expected = np.full(64, UNDEFINED)
        expected[first] = of(x.reshape(-1, width), 1)
        np.testing.assert_array_equal(y[row], expected)
    starts = first | (np.arange(64) % 3 == 0)
    segment = np.cumsum(starts) - 1
    expected = np.where(starts, np.bincount(segment, x)[segment], UNDEFINED)
    np.testing.assert_array_equal(y[2:4], [expected, expected])
    rows = x.reshape(-1, width)
    sums = np.cumsum(rows, 1)
    maxima = np.maximum.accumulate(rows, 1)
    begun = np.concatenate([np.full((64 // width, 1), 3), np.maximum(maxima, 3)[:, :-1]], 1)
    minima = np.minimum.accumulate(rows, 1)
    before = np.concatenate([np.full((64 // width, 1), UNDEFINED), minima[:, :-1]], 1)
    spread = np.ones((1, width), int)
    expected = [sums, sums - rows, begun, maxima[:, -1:] * spread, before]
    expected += [(sums[:, -1:] + minima[:, -1:]) * spread]
    np.testing.assert_array_equal(y[4:], np.reshape(expected, (6, 64)))


MISUSED = """
#include <cub/cub.cuh>
extern "C" __global__ void misused(const int* x, int* y, int which) {
    using BlockReduce = cub::BlockReduce<int, 64>;
    __shared__ BlockReduce::TempStorage temp;
    if (which == 2 && threadIdx.x >= 32) return;
    int sum = BlockReduce(temp).Sum(x[threadIdx.x]);          // 7
    if (which != 0) __syncthreads();
    int most = BlockReduce(temp).Reduce(sum, cub::Max());     // 9
    if (threadIdx.x == 0) y[0] = most;
}"""


@pytest.mark.parametrize(
    ("which", "block", "kind", "lines"),
    [(0, 64, "race", (9, 7)), (2, 64, "divergent_barrier", (7,)), (1, 32, "trap", (7,))],
)
def test_misuse_is_found_on_the_texts_line(which, block, kind, lines):
    x, y = np.zeros(64, I32), np.zeros(1, I32)
    with pytest.raises(EmulationFault) as fault:
        RawKernel(MISUSED, "misused")((1,), (block,), (x, y, I32(which)))
    finding = fault.value.finding
    assert (finding.kind, finding.line) == (kind, lines[0])
    assert all(f"misused:{line}" in str(finding) for line in lines)
    assert "temp" in str(finding) or kind != "race"


TWICE = """
#include <cub/cub.cuh>
#include <curand_kernel.h>
extern "C" __global__ void twice(int which, int* y, curandState* state) {
    __shared__ cub::BlockReduce<int, 64>::TempStorage reduce;
    __shared__ cub::BlockScan<int, 64>::TempStorage scan;
    int t = threadIdx.x, v = t;
    if (which == 0) {
        v = cub::BlockReduce<int, 64>(reduce).Sum(v);           // 9
        v = cub::BlockReduce<int, 64>(reduce).Sum(v);           // 10
    } else if (which == 1) {
        cub::BlockScan<int, 64>(scan).InclusiveSum(v, v);       // 12
        cub::BlockScan<int, 64>(scan).ExclusiveSum(v, v);       // 13
    } else if (which == 2) {
        for (int i = 0; i < 2; ++i)
            cub::BlockScan<int, 64>(scan).InclusiveSum(v, v);   // 16
    } else if (which == 3) {
        cub::WarpScan<int>::TempStorage none;
        cub::WarpScan<int>(none).InclusiveSum(v, y[0]);         // 19
    } else {
        if (t == 0) curand_init(1, 2, 3, state);                // 21
        v = curand(state);                                      // 22
    }
    y[t] += v;
}"""


@pytest.mark.parametrize(
    ("which", "lines"), [(0, {9, 10}), (1, {12, 13}), (2, {16}), (3, {19, 24}), (4, {21, 22})]
)
def test_both_accesses_of_a_race_in_a_library_are_on_the_texts_lines(which, lines):
    with emulated_cuda(check="collect") as report:
        args = I32(which), np.zeros(64, I32), np.zeros(64, np.uint8)
        RawKernel(TWICE, "twice")((1,), (64,), args)
    named = {int(n) for f in report.findings for n in re.findall(r"twice:(\d+)", str(f))}
    assert named and named <= lines, report
    assert not any("?" in str(f) for f in report.findings), report


def test_storage_reused_behind_a_barrier_is_no_race():
    x, y = np.ones(64, I32), np.zeros(1, I32)
    with emulated_cuda(trace=True) as report:
        RawKernel(MISUSED, "misused")((1,), (64,), (x, y, I32(1)))
    assert y[0] == UNDEFINED  # the largest of what 63 threads got
    assert report.counts["misused"].line(7).barriers == 1
