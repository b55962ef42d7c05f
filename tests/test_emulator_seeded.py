"""Faults seeded into kernels of many styles: each is found on its line; the right ones are clean.

Every barrier of the package's own tiled kernels is left out once, too.
"""
# The texts and the table of faults keep their long lines.
# ruff: noqa: E501

import re

import numpy as np
import pytest

import mulfree_cupy as mf
from mulfree_cupy.launch import source
from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda
from mulfree_cupy.ops.batch_norm import batch_norm

F32, I32 = np.float32, np.int32
rng = np.random.default_rng(0)


REDUCTION = """
__device__ float warp_sum(float v) {
    for (int o = 16; o; o /= 2) v += __shfl_down_sync(0xffffffff, v, o);  // 3
    return v;
}
extern "C" __global__ void kernel(const float* x, float* out, int n) {
    __shared__ float sums[32];
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) v += x[i];  // 10
    v = warp_sum(v);
    if (lane == 0) sums[warp] = v;                                        // 12
    __syncthreads();                                                      // 13
    if (warp == 0) {
        v = lane < blockDim.x / 32 ? sums[lane] : 0;                      // 15
        v = warp_sum(v);
        if (lane == 0) atomicAdd(out, v);                                 // 17
    }
}"""
TREE = """
extern "C" __global__ void kernel(const float* x, float* out, int n) {
    extern __shared__ float s[];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    s[t] = i < n ? x[i] : 0;                                              // 5
    __syncthreads();                                                      // 6
    for (int k = blockDim.x / 2; k > 32; k /= 2) {
        if (t < k) s[t] += s[t + k];                                      // 8
        __syncthreads();                                                  // 9
    }
    if (t < 32)
        for (int k = 32; k; k /= 2) {
            float other = s[t + k];                                       // 13
            __syncwarp();                                                 // 14
            s[t] += other;                                                // 15
            __syncwarp();                                                 // 16
        }
    if (t == 0) atomicAdd(out, s[0]);                                     // 18
}"""
TRANSPOSE = """
extern "C" __global__ void kernel(const float* x, float* y, int n) {
    __shared__ float tile[32][33];                                        // 3
    int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        if (row + j < n && column < n) tile[threadIdx.y + j][threadIdx.x] = x[(row + j) * n + column];  // 6
    __syncthreads();                                                      // 7
    column = blockIdx.y * 32 + threadIdx.x;
    row = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        if (row + j < n && column < n) y[(row + j) * n + column] = tile[threadIdx.x][threadIdx.y + j];  // 11
}"""
HISTOGRAM = """
extern "C" __global__ void kernel(const float* x, int* bins, int n) {
    __shared__ int local[64];
    for (int b = threadIdx.x; b < 64; b += blockDim.x) local[b] = 0;      // 4
    __syncthreads();                                                      // 5
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&local[(int)x[i] & 63], 1);                             // 7
    __syncthreads();                                                      // 8
    for (int b = threadIdx.x; b < 64; b += blockDim.x) atomicAdd(&bins[b], local[b]);  // 9
}"""
SCAN = """
extern "C" __global__ void kernel(const float* x, float* y, int n) {
    extern __shared__ float s[];
    int t = threadIdx.x;
    s[t] = t < n ? x[t] : 0;                                              // 5
    for (int o = 1; o < blockDim.x; o *= 2) {
        __syncthreads();                                                  // 7
        float before = t >= o ? s[t - o] : 0;                             // 8
        __syncthreads();                                                  // 9
        s[t] += before;                                                   // 10
    }
    if (t < n) y[t] = s[t];                                               // 12
}"""
STENCIL = """
extern "C" __global__ void kernel(const float* x, float* y, int n) {
    __shared__ float s[130];                                              // 3
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    s[t + 1] = i < n ? x[i] : 0;                                          // 5
    if (t == 0) s[0] = i > 0 ? x[i - 1] : 0;                              // 6
    if (t == blockDim.x - 1) s[t + 2] = i + 1 < n ? x[i + 1] : 0;         // 7
    __syncthreads();                                                      // 8
    if (i < n) y[i] = s[t] + 2 * s[t + 1] + s[t + 2];                     // 9
}"""


def reduced(x):
    return [x.sum()]


def transposed(x):
    return x[: 40 * 40].reshape(40, 40).T.ravel()


def stencilled(x):
    p = np.pad(x, 1)
    return p[:-2] + 2 * x + p[2:]


# Text, grid, block, length of x, length and type of the answer, answer.
STYLES = {
    "reduction": (REDUCTION, (3,), (128,), 1000, 1, F32, reduced),
    "tree": (TREE, (8,), (128,), 1000, 1, F32, reduced),
    "transpose": (TRANSPOSE, (2, 2), (32, 8), 1600, 1600, F32, transposed),
    "histogram": (HISTOGRAM, (3,), (96,), 1000, 64, I32, lambda x: np.bincount(x.astype(int), minlength=64)),
    "scan": (SCAN, (1,), (128,), 100, 100, F32, np.cumsum),
    "stencil": (STENCIL, (3,), (128,), 300, 300, F32, stencilled),
}  # fmt: skip


def run(style, right="", wrong="", check="collect", trace=False):
    code, grid, block, size, out_size, dtype, _ = STYLES[style]
    assert right in code
    x = rng.integers(0, 64, size).astype(F32)
    out = np.zeros(out_size, dtype)
    n = 40 if style == "transpose" else size
    with emulated_cuda(check=check, trace=trace) as report:
        kernel = RawKernel(code.replace(right, wrong, 1) if right else code, "kernel")
        kernel(grid, block, (x, out, I32(n)), shared_mem=512)
    return report, x, out


@pytest.mark.parametrize("style", STYLES)
def test_the_right_kernel_is_clean(style):
    report, x, out = run(style)
    assert report.findings == []
    np.testing.assert_array_equal(out, STYLES[style][-1](x))


SEEDED = [
    # a barrier left out
    ("reduction", "__syncthreads();  ", "", {"race", "uninitialised"}, {12, 15}),
    ("tree", "__syncthreads();                                                      // 6", "", {"race", "uninitialised"}, {5, 8}),
    ("tree", "__syncthreads();                                                  // 9", "", {"race"}, {8, 13}),
    ("transpose", "__syncthreads();", "", {"race", "uninitialised"}, {6, 11}),
    ("histogram", "__syncthreads();                                                      // 5", "", {"race", "uninitialised"}, {4, 7}),
    ("histogram", "__syncthreads();                                                      // 8", "", {"race"}, {7, 9}),
    ("scan", "__syncthreads();                                                  // 7", "", {"race", "uninitialised"}, {5, 8, 10}),
    ("scan", "__syncthreads();                                                  // 9", "", {"race"}, {8, 10}),
    ("stencil", "__syncthreads();", "", {"race", "uninitialised"}, {5, 6, 7, 9}),
    # one read past the end
    ("reduction", "i < n;", "i <= n;", {"out_of_bounds"}, {10}),
    ("tree", "i < n ?", "i <= n ?", {"out_of_bounds"}, {5}),
    ("transpose", "row + j < n && column < n) tile", "column < n) tile", {"out_of_bounds"}, {6}),
    ("histogram", "i < n;", "i <= n;", {"out_of_bounds"}, {7}),
    ("scan", "t < n ? x", "t <= n ? x", {"out_of_bounds"}, {5}),
    ("stencil", "i + 1 < n ?", "i + 1 <= n ?", None, set()),  # the last thread has no neighbour: clean
    ("stencil", "if (i < n) y", "if (i <= n) y", {"out_of_bounds"}, {9}),
    ("stencil", "s[130]", "s[129]", {"out_of_row"}, {7, 9}),
    # a barrier under a divergent branch
    ("reduction", "__syncthreads();  ", "if (lane == 0) __syncthreads();", {"divergent_barrier"}, {13}),
    ("tree", "if (t < k) s[t] += s[t + k]; ", "if (t < k) { s[t] += s[t + k]; __syncthreads(); }", {"divergent_barrier"}, {8, 9}),
    ("stencil", "int t = threadIdx.x,", "if (blockIdx.x * blockDim.x + threadIdx.x >= n) return; int t = threadIdx.x,", {"divergent_barrier"}, {8}),
    # a shared tile that is not filled
    ("reduction", "lane < blockDim.x / 32 ?", "true ?", {"uninitialised"}, {15}),
    ("histogram", "b < 64; b += blockDim.x) local", "b < 32; b += blockDim.x) local", {"uninitialised"}, {7, 9}),
    ("stencil", "if (t == 0) s[0] = i > 0 ? x[i - 1] : 0;", "", {"uninitialised"}, {9}),
    ("transpose", "j < 32; j += 8)\\n        if (row + j < n && column < n) tile", "j < 24; j += 8)\\n        if (row + j < n && column < n) tile", {"uninitialised"}, {11}),
    # a wrong mask
    ("reduction", "0xffffffff, v", "0xffff, v", {"divergent_collective"}, {3}),
    ("reduction", "if (warp == 0) {", "if (warp == 0 && lane < 4) {", {"divergent_collective"}, {3}),
    # a __syncwarp left out
    ("tree", "__syncwarp();                                                 // 14", "", {"race"}, {13, 15}),
    ("tree", "__syncwarp();                                                 // 16", "", {"race"}, {13, 15, 18}),
    # a plain addition for an atomic one
    ("reduction", "atomicAdd(out, v)", "*out += v", {"race"}, {17}),
    ("tree", "atomicAdd(out, s[0])", "*out += s[0]", {"race"}, {18}),
    ("histogram", "atomicAdd(&local[(int)x[i] & 63], 1)", "local[(int)x[i] & 63] += 1", {"race"}, {7}),
    ("histogram", "atomicAdd(&bins[b], local[b])", "bins[b] += local[b]", {"race"}, {9}),
]  # fmt: skip


@pytest.mark.parametrize(("style", "right", "wrong", "kinds", "lines"), SEEDED)
def test_a_seeded_fault_is_found_on_its_line(style, right, wrong, kinds, lines):
    right, wrong = right.replace("\\n", "\n"), wrong.replace("\\n", "\n")
    report, _, _ = run(style, right, wrong)
    if kinds is None:
        assert report.findings == []
        return
    # What follows from a fault is found too.
    assert any(f.kind in kinds and f.line in lines for f in report.findings), str(report)
    with pytest.raises(EmulationFault) as caught:
        run(style, right, wrong, check=True)
    assert caught.value.finding.kind in kinds and caught.value.finding.line in lines


def test_seeded_conflicts_and_strides_are_counted():
    report, _, _ = run("transpose", trace=True, check=False)
    counts = report.counts["kernel"]
    assert counts.bank_conflicts == 0 and counts.line(6).sectors_per_request <= 5
    wrong, _, _ = run("transpose", "[33]", "[32]", trace=True, check=False)
    assert wrong.counts["kernel"].line(11).bank_conflicts > 500
    wrong, _, _ = run(
        "transpose", "x[(row + j) * n + column]", "x[column * n + row + j]", trace=True, check=False
    )
    assert wrong.counts["kernel"].line(6).sectors_per_request > 8


# ---- the package's own kernels ------------------------------------------------------------------


def adder(kernel):
    return lambda: mf.adder_conv(*_problem(), padding=1, kernel=kernel)


def winograd(kernel):
    x, w = _problem()
    weights = mf.WinogradWeights.from_spatial(w)
    return lambda: mf.winograd_conv(x, weights, padding=1, kernel=kernel)


def _problem():
    x = rng.standard_normal((2, 19, 9, 9)).astype(F32)
    return x, rng.standard_normal((37, 19, 3, 3)).astype(F32)


def shift():
    mf.shift(np.ones((2, 18, 9, 9), F32), mf.modulo_shifts(18), kernel="1_tiled_modulo")


def normalised():
    x = rng.standard_normal((9, 2, 48, 48)).astype(F32)
    batch_norm(x, np.ones(2, F32), np.zeros(2, F32))


# And how many of its barriers, from the first, a launch of this size needs.
OWN = {
    "adder/2_shared_tile.cu": (adder("2_shared_tile"), 2),
    "adder/3_register_tile.cu": (adder("3_register_tile"), 2),
    "adder/4_vectorised_loads.cu": (adder("4_vectorised_loads"), 2),
    "winograd/fused.cuh": (winograd("3_fused"), 2),
    "shift/1_tiled_modulo.cu": (shift, 1),  # a block has one tile
    "batch_norm/channel.cuh": (normalised, 2),
}


@pytest.mark.parametrize("path", OWN)
def test_every_barrier_of_a_tiled_kernel_is_needed(path, monkeypatch):
    file = source.cuda_directory() / path
    text = file.read_text()
    barriers = [m.span() for m in re.finditer(r"__syncthreads\(\);", text)]
    operation, needed = OWN[path]
    with emulated_cuda() as report:
        operation()
    assert report.findings == []
    read = source.read
    for start, end in barriers[:needed]:
        around = text[start - 30 : end + 30]
        without = text[start - 30 : start] + text[end : end + 30]
        with monkeypatch.context() as patch:
            patch.setattr(source, "read", lambda *a, r=around, w=without: read(*a).replace(r, w))
            with emulated_cuda(), pytest.raises(EmulationFault) as caught:
                operation()
        assert caught.value.finding.kind in ("race", "uninitialised")
        assert caught.value.finding.file.startswith(f"cuda/{path.partition('/')[0]}/")
