"""The words of findings: the element, the way there, and what would mend it."""

import re

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda

F32, I32 = np.float32, np.int32

CODE = """
__device__ __noinline__ float at(const float* x, int i) {
    return x[i];                                          // 3
}
__device__ float twice(const float* x, int i) {
    return 2 * at(x, i);                                  // 6
}
extern "C" __global__ void words(int which, int n, float* x, double* grid, float* y) {
    __shared__ float tile[4][8], one;
    extern __shared__ float rest[];
    int t = threadIdx.x;
    switch (which) {
        case 0: x[n] = 1; break;                          // 13
        case 1: grid[n] = t; break;                       // 14
        case 2: ((float*)tile)[n] = 1; break;             // 15
        case 3: tile[1][t % 8] = t; break;                // 16
        case 4: y[t] = one; break;                        // 17
        case 5: rest[n] = 1; break;                       // 18
        case 6: y[t] = twice(x, n); break;                // 19
        case 7: *(double*)((char*)x + n) = 1; break;      // 20
        case 8:
            tile[t / 8 % 4][t % 8] = t;                   // 22
            y[t] = tile[3 - t / 8 % 4][t % 8];            // 23
            break;
        case 9: x[t] += x[(t + 1) % 40]; break;           // 25
        case 10: x[blockIdx.x] = x[1 - blockIdx.x]; break;  // 26
    }
}"""
words = RawKernel(CODE, "words")


def message(which, n=0, block=1, grid=1):
    x, table, y = np.zeros((5, 8), F32), np.zeros((2, 3, 4)), np.zeros(64, F32)
    with pytest.raises(EmulationFault) as caught:
        args = (I32(which), I32(n), x, table, y)
        words((grid,), (block,), args, shared_mem=32)
    return str(caught.value)


@pytest.mark.parametrize(
    ("which", "n", "block", "expected"),
    [
        (0, 40, 1, "words:13: .* writes 4 bytes at x[40], beyond the end of argument 2 (x), "
                   "float32 of shape (5, 8)"),
        (0, -1, 1, "x[-1], before the start of argument 2 (x), float32 of shape (5, 8)"),
        (1, 23, 2, "data race: writes 8 bytes at grid[1, 2, 3] of argument 3 (grid), float64"),
        (2, 32, 1, "tile[32], beyond the end of __shared__ tile[4][8] (128 bytes, line 9)"),
        (3, 0, 9, "writes 4 bytes at tile[1][0] of __shared__ tile[4][8]"),
        (4, 0, 1, "at one of __shared__ one (4 bytes, line 9), which no thread of the block has"),
        (5, 8, 1, "at byte 32, beyond the end of dynamic shared memory"),
        (7, 2, 1, "8 bytes at x[0, 0] + 2 bytes of argument 2 (x)"),
        (7, 156, 1, "8 bytes at x[4, 7], partly beyond the end of argument 2 (x)"),
    ],
)  # fmt: skip
def test_the_element_is_named(which, n, block, expected):
    expected = re.escape(expected).replace(r"\ \.\*\ ", " .* ").replace(r"\.\*", ".*")
    assert re.search(expected, message(which, n, block)), message(which, n, block)


NAMED = """
#define PAD 1
#define AT(i) [i]
namespace ours { __device__ int table[4][2 * 3 + PAD]; }
__device__ int plain[8];
__constant__ double weights[3] = {1, 2, 3};
const int SIZE = 5;
__device__ float sized[SIZE];
struct Row { float in[7]; };
extern "C" __global__ void named(int which, int n, int* y) {
    __shared__ float tile[4][8 + PAD];
    Row row, *rows = &row;
    int local[6], *p = plain, *q = ours::table[0];
    float* r = sized;
    const double* w = weights;
    switch (which) {
        case 0: p[n] = 1; break;
        case 1: q[n] = 1; break;
        case 2: y[0] = w[n]; break;
        case 3: r[n] = 1; break;
        case 4: y[0] = y[n - 9] + tile[y[1]][n - PAD]; break;
        case 5: y[0] = tile AT(n) [0]; break;
        case 6: rows->in[n] = row.in[0]; y[0] = row.in[n - 9]; break;
        case 7: local[n] = local[0]; y[0] = local[n - 9]; break;
        case 8: y[0] = plain[ours::table[0][n]]; break;
    }
}"""


@pytest.mark.parametrize(
    ("which", "n", "expected"),
    [
        (0, 9, "writes 4 bytes at plain[9], beyond the end of plain (32 bytes)"),
        (1, 29, "writes 4 bytes at table[29], beyond the end of table (112 bytes)"),
        (2, 3, "reads 8 bytes at weights[3], beyond the end of weights (24 bytes)"),
        (3, 5, "writes 4 bytes at byte 20, beyond the end of sized (20 bytes)"),
        (4, 10, "indexes tile[y[1]][n - 1] with 9, outside of 'float [9]'"),
        (5, 9, "indexes tile [n] with 9, outside of 'float [4][9]'"),
        (6, 9, "indexes rows->in[n] with 9, outside of 'float [7]'"),
        (7, 9, "indexes local[n] with 9, outside of 'int [6]'"),
        (8, 9, "indexes ours::table[0][n] with 9, outside of 'int [7]'"),
    ],
)
def test_arrays_that_are_no_arguments_are_named(which, n, expected):
    with pytest.raises(EmulationFault, match=re.escape(expected)):
        RawKernel(NAMED, "named")((1,), (1,), (I32(which), I32(n), np.zeros(20, I32)))


def test_the_calls_that_led_there():
    with pytest.raises(EmulationFault) as caught:
        words((1,), (1,), (I32(6), I32(40), np.zeros((5, 8), F32), np.zeros(2), np.zeros(4, F32)))
    found = caught.value.finding
    assert (found.file, found.line) == ("words", 3)
    assert found.calls == (("words", 6), ("words", 19))
    assert ", called from words:6, called from words:19" in str(found)


@pytest.mark.parametrize(
    ("which", "block", "grid", "expected"),
    [
        (8, 32, 1, "__syncthreads() or __syncwarp(), is needed between lines 22 and 23"),
        (8, 64, 1, "a barrier, __syncthreads()"),
        (9, 32, 1, "needed between the two accesses of line 25"),
        (10, 1, 2, "blocks run in any order"),
        (1, 32, 1, "let one thread write, or each its own element, or use an atomic function"),
    ],
)
def test_what_would_mend_a_race(which, block, grid, expected):
    assert expected in message(which, 0, block, grid)


ROUNDS = """
#include <cooperative_groups.h>
extern "C" __global__ void rounds(int which, float* y) {
    __shared__ float s[64];
    int t = threadIdx.x, w = t / 32 * 32;
    for (int i = 0; i < 4; ++i) {
        s[t] = t + i;                                     // 7
        switch (which) {
            case 0: case 1: __syncthreads(); break;
            case 2: __syncwarp(); break;
            case 3: cooperative_groups::tiled_partition<32>(cooperative_groups::this_thread_block()).sync(); break;
        }
        y[t] += which == 0 ? s[63 - t] : s[w + w + 31 - t];  // 13
        if (which == 4) __syncthreads();
        else if (which == 5) __syncwarp();
    }
}"""  # noqa: E501


@pytest.mark.parametrize(
    ("which", "expected"),
    [(which, "after line 13, before line 7 is executed again") for which in range(4)]
    + [(which, "between lines 7 and 13") for which in (4, 5)],
)
def test_the_barrier_that_a_loop_has_is_not_the_one_it_lacks(which, expected):
    with emulated_cuda(check="collect") as report:
        RawKernel(ROUNDS, "rounds")((1,), (64,), (I32(which), np.zeros(64, F32)))
    races = [f for f in report.findings if f.kind == "race"]
    assert races and all(f.text.endswith(expected) for f in races), report


ATOMICS = """
__device__ unsigned lock, count;
__device__ void take(int* y) {
    while (atomicCAS(&lock, 0, 1)) {}
    y[0] += 1;                                            // 5
    atomicExch(&lock, 0);
}
extern "C" __global__ void unfenced(int which, int* y) {
    __shared__ bool last;
    int t = threadIdx.x;
    if (which == 0 && t == 0 || which == 1) return take(y);
    if (which == 2) {
        if (t == 0) y[blockIdx.x] = 1;                    // 13
    } else {
        if (t == 1) y[blockIdx.x] = 1;                    // 15
        __threadfence();
    }
    if (t == 0) last = atomicInc(&count, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (!last || t) return;
    for (int i = 1; i < gridDim.x; ++i) y[0] += y[i];
}"""


@pytest.mark.parametrize(
    ("which", "grid", "expected"),
    [
        (0, 3, "before it: a fence, __threadfence(), is needed between line 5 and it"),
        (1, 1, "that of a lock does, a fence, __threadfence(), is needed between line 5 and it"),
        (2, 3, "before it: a fence, __threadfence(), is needed between line 13 and it"),
        (3, 3, "a barrier, __syncthreads(), and then a fence, __threadfence(), are needed between"),
    ],
)
def test_a_race_beside_an_atomic_access_wants_a_fence(which, grid, expected):
    with emulated_cuda(check="collect") as report:
        RawKernel(ATOMICS, "unfenced")((grid,), (32,), (I32(which), np.zeros(8, I32)))
    assert any(expected in f.text for f in report.findings if f.kind == "race"), report


@pytest.mark.parametrize("barrier", ["", "if (t < m) __syncthreads();"])
def test_causes_are_listed_before_what_follows_from_them(barrier):
    code = """extern "C" __global__ void sums(float* y, int m) {
    __shared__ float s[64];
    int t = threadIdx.x;
    y[100] = t;
    for (int i = 0; i < 4; ++i) {
        s[t] = i + t;
        BARRIER
        y[t] += s[(t + 1) % 64];
    }
    if (t == 3) y[64 * m] = 0;
}"""
    with emulated_cuda(check="collect") as report:
        kernel = RawKernel(code.replace("BARRIER", barrier), "sums")
        kernel((1,), (64,), (np.zeros(128, F32), I32(20)))
    causes = ["divergent_barrier", "race", "uninitialised", "out_of_bounds"]
    found = [(causes.index(f.kind), f.line) for f in report.findings if f.level == "error"]
    assert found == sorted(found)
    assert {kind for kind, _ in found} == set(range(not barrier, 4))


def test_the_time_limit_is_named(monkeypatch):
    monkeypatch.setenv("MULFREE_EMULATOR_SECONDS", "0.25")
    code = "__global__ void ends(volatile int* x) { while (*x == 0) {} }"
    with pytest.raises(EmulationFault, match="after 0.25 seconds, the limit that MULFREE_EMUL"):
        RawKernel(code, "ends")((1,), (1,), (np.zeros(1, I32),))


SHARED = """
extern "C" __global__ void shared(int* x) {
    __shared__ char s[SIZE];
    extern __shared__ char d[];
    s[threadIdx.x] = 1;
    if (SIZE < 40000) d[threadIdx.x] = 1;
    x[threadIdx.x] = s[threadIdx.x];
}"""


def test_static_and_dynamic_shared_memory_together():
    x = np.zeros(1, I32)

    def kernel(size):
        return RawKernel(SHARED, "shared", (f"-DSIZE={size}",))

    half = kernel(24 << 10)
    assert half.max_dynamic_shared_size_bytes == 24 << 10
    half((1,), (1,), (x,), shared_mem=24 << 10)
    with pytest.raises(ValueError, match="0 to 24576, got 24577 beside 24576 bytes of static"):
        half((1,), (1,), (x,), shared_mem=(24 << 10) + 1)
    half.max_dynamic_shared_size_bytes = 227 << 10
    half((1,), (1,), (x,), shared_mem=203 << 10)
    with pytest.raises(ValueError, match="24576 bytes of static and 207873 of dynamic shared"):
        half((1,), (1,), (x,), shared_mem=(203 << 10) + 1)
    kernel(48 << 10)((1,), (1,), (x,))
    with pytest.raises(EmulationFault, match=r"byte 0, beyond the end of dynamic shared memory"):
        kernel(100)((1,), (1,), (x,))
    with pytest.raises(ValueError, match="__shared__ variables take 49153 bytes, 49152 at most"):
        kernel((48 << 10) + 1)((1,), (1,), (x,))
    with emulated_cuda(check=False), pytest.raises(ValueError, match="take 60000 bytes"):
        kernel(60000)((1,), (1,), (x,))
