"""Shuffles that read from lanes which take no part, and barriers that threads reach apart."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda

F32, I32 = np.float32, np.int32

SHUFFLES = """
#include <cuda_fp16.h>
template <class T> __device__ T sum(unsigned mask, T v, int from) {
    for (int o = from; o; o /= 2) v += __shfl_down_sync(mask, v, o);  // 4
    return v;
}
extern "C" __global__ void shuffles(int which, int n, float* x, double* d, int* i, __half* h) {
    int t = threadIdx.x;
    float v = 1;
    switch (which) {
        case 0: if (t < 8) x[t] = sum(0xff, v, n); break;
        case 1: x[t] = sum(0xffffffff, v, n); break;
        case 2: x[t] = __shfl_up_sync(0xffffffff, v, n); break;             // 13
        case 3: x[t] = __shfl_xor_sync(0xffffffff, v, n); break;            // 14
        case 4: x[t] = __shfl_sync(0xffffffff, v, n); break;                // 15
        case 5: if (t < 8) d[t] = __shfl_down_sync(0xff, 1.0, n); break;
        case 6: if (t < 8) i[t] = __shfl_down_sync(0xff, 1, n); break;
        case 7: if (t < 8) h[t] = __shfl_down_sync(0xff, __half(1.0f), n); break;
        case 8: if (t >= n) return; x[t] = __shfl_down_sync(0xffffffff, v, 4); break;
        case 9: if (t < 8) x[t] = __shfl_down_sync(0xff, v, n, 8); break;
    }
}"""
shuffles = RawKernel(SHUFFLES, "shuffles")


def run(which, n, block, check=True):
    x, d, i, h = np.zeros(64, F32), np.zeros(64), np.zeros(64, I32), np.zeros(64, np.float16)
    with emulated_cuda(check=check):
        shuffles((1,), (block,), (I32(which), I32(n), x, d, i, h))
    return {5: d, 6: i, 7: h}.get(which, x)[:block]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("which", "block", "n", "summed"), [(0, 32, 4, 8), (1, 32, 16, 32), (1, 16, 8, 16)]
)
def test_the_right_width(which, block, n, summed, check):
    assert run(which, n, block, check)[0] == summed


@pytest.mark.parametrize(
    ("which", "block", "n", "line"),
    [
        (0, 32, 16, 4),
        (0, 32, 8, 4),
        (1, 16, 16, 4),
        (1, 8, 16, 4),
        (2, 16, 0, None),
        (3, 16, 16, 14),
        (4, 16, 16, 15),
        (4, 16, 31, 15),
    ],
)
def test_nobody_reads_from_a_lane_that_takes_part(which, block, n, line):
    if line is None:
        assert (run(which, n, block) == 1).all()
        return
    with pytest.raises(EmulationFault, match="no lane reads from a lane that takes part") as caught:
        run(which, n, block)
    assert (caught.value.finding.kind, caught.value.finding.line) == ("divergent_collective", line)
    assert np.isnan(run(which, n, block, check=False)[0])


def test_a_value_from_nowhere_shows():
    """Where some lanes read rightly it is no fault, but what the others get is no number."""
    for which in (5, 7):
        out = run(which, 3, 32)
        assert (out[:5] == 1).all() and np.isnan(out[5:8]).all()
    out = run(6, 3, 32)
    assert (out[:5] == 1).all() and (out[5:8] == 0x7FFF7FFF).all()
    out = run(8, 20, 32)
    assert (out[:16] == 1).all() and np.isnan(out[16:20]).all()
    assert np.isnan(run(1, 16, 20)[0])  # lanes 20 to 31 are not there
    assert (run(9, 3, 32)[:8] == 1).all()  # beyond its width a lane keeps its own


BRANCHES = """
extern "C" __global__ void branches(int* x, int n) {
    __shared__ int s[64];
    int t = threadIdx.x;
    s[t] = t;
    if (t < n) __syncthreads();                // 6
    else __syncthreads();                      // 7
    x[t] = s[63 - t];
}
extern "C" __global__ void returned(int* x, int n) {
    __shared__ int s[64];
    int t = threadIdx.x;
    if (t >= n) return;
    s[t] = t;
    __syncthreads();                           // 15
    x[t] = s[n - 1 - t];
}
extern "C" __global__ void unequal(int* x, int n) {
    __shared__ int s[64];
    int t = threadIdx.x;
    s[t] = t;
    if (t < n) { __syncthreads(); s[t] = 2 * t; __syncthreads(); }   // 22
    else __syncthreads();                      // 23
    x[t] = s[63 - t];                          // 24
}"""


@pytest.mark.parametrize(("name", "line"), [("branches", 6), ("returned", 15)])
def test_barriers_by_the_guide_or_the_hardware(name, line):
    kernel, x = RawKernel(BRANCHES, name), np.zeros(64, I32)
    with pytest.raises(EmulationFault, match="barriers='hardware'") as caught:
        kernel((1,), (64,), (x, I32(32)))
    assert (caught.value.finding.kind, caught.value.finding.line) == ("divergent_barrier", line)
    with emulated_cuda(barriers="hardware"):
        kernel((1,), (64,), (x, I32(32)))
    last = {"branches": 63, "returned": 31}[name]
    np.testing.assert_array_equal(x[: last + 1], last - np.arange(last + 1))


def test_what_the_hardware_lets_pass_may_still_race():
    kernel, x = RawKernel(BRANCHES, "unequal"), np.zeros(64, I32)
    with emulated_cuda(barriers="hardware"), pytest.raises(EmulationFault, match="data race"):
        kernel((1,), (64,), (x, I32(32)))
    refused = pytest.raises(ValueError, match="barriers must be 'guide' or 'hardware', got 'gpu'")
    with refused, emulated_cuda(barriers="gpu"):
        pass


LARGEST = """
#include <cub/cub.cuh>
template <class T> __global__ void largest(T* v, int which) {
    T x = v[threadIdx.x];
    for (int o = 16; o; o /= 2) {
        T other = __shfl_down_sync(~0u, x, o);
        switch (which) {
            case 0: x = fmax(x, other); break;
            case 1: x = min(other, x); break;
            case 2: x = sizeof(T) == 4 ? fmaxf(x, other) : std::fmin(x, other); break;
            case 3: x = cub::Max()(x, other); break;
            case 4: x = cub::Min()(-other, x); break;
        }
    }
    v[threadIdx.x] = x;
}"""


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("kind", ["float", "double"])
def test_a_lane_that_is_not_there_has_no_maximum(kind, which, check):
    """A full mask in a block of 20: lanes that it has not got are read, so all is undefined."""
    dtype = np.dtype(kind.replace("float", "float32"))
    with emulated_cuda(check=check):
        v = -1 - np.arange(20, dtype=dtype)
        RawKernel(LARGEST, f"largest<{kind}>")((1,), (20,), (v, np.int32(which)))
        assert np.isnan(v[0])
        v = -1 - np.arange(32, dtype=dtype)
        v[5] = np.nan  # of the text's own, which is no number beside one
        RawKernel(LARGEST, f"largest<{kind}>")((1,), (32,), (v, np.int32(which)))
        assert which > 2 or v[0] in (-1, -32)
