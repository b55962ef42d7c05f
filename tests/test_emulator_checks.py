"""Seeded bugs: each is found, on its line, by its kind; the correct kernel is not blamed."""

import re
import sys

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda

L1 = """
#define T 16
extern "C" __global__ void l1(const float* a, const float* b, float* out, int m, int n, int k) {
    __shared__ float as[T][T], bs[T][T];
    int ty = threadIdx.y, tx = threadIdx.x;
    int row = blockIdx.y * T + ty, col = blockIdx.x * T + tx;
    float sum = 0;
    for (int k0 = 0; k0 < k; k0 += T) {
        as[ty][tx] = row < m && k0 + tx < k ? a[row * k + k0 + tx] : 0.0f;
        bs[ty][tx] = col < n && k0 + ty < k ? b[(k0 + ty) * n + col] : 0.0f;
        __syncthreads();  // line 11
        for (int i = 0; i < T; ++i) sum -= fabsf(as[ty][i] - bs[i][tx]);
        __syncthreads();  // line 13
    }
    if (row < m && col < n) out[row * n + col] = sum;
}
"""
M, N, K = 20, 24, 40


def run_l1(code, check=True):
    rng = np.random.default_rng(0)
    a = rng.integers(-9, 9, (M, K)).astype(np.float32)
    b = rng.integers(-9, 9, (K, N)).astype(np.float32)
    out = np.zeros((M, N), np.float32)
    with emulated_cuda(check=check) as report:
        sizes = np.int32(M), np.int32(N), np.int32(K)
        RawKernel(code, "l1")((2, 2), (16, 16), (a, b, out, *sizes))
    return report, out, -np.abs(a[:, :, None] - b[None]).sum(axis=1)


def test_the_correct_kernel_is_right_and_not_blamed():
    report, out, expected = run_l1(L1, check="collect")
    assert report.findings == []
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("right", "wrong", "kind", "lines", "array"),
    [
        ("__syncthreads();  // line 11", "", "race", {9, 10, 12}, "__shared__"),
        ("__syncthreads();  // line 13", "", "race", {9, 10, 12}, "__shared__"),
        (
            "__syncthreads();  // line 13",
            "if (tx < 8) __syncthreads();",
            "divergent_barrier",
            {11, 13},
            None,
        ),
        (
            "if (row < m && col < n) out",
            "if (col < n) out",
            "out_of_bounds",
            {15},
            "argument 2 (out)",
        ),
        ("if (row < m && col < n) out", "if (row < m) out", "race", {15}, "argument 2 (out)"),
        ("row < m && k0 + tx < k ? a[", "k0 + tx < k ? a[", "out_of_bounds", {9}, "argument 0 (a)"),
        (
            "a[row * k + k0 + tx]",
            "a[row * k + k0 + tx - 1]",
            "out_of_bounds",
            {9},
            "argument 0 (a)",
        ),
        ("i < T", "i <= T", "out_of_row", {12}, None),
        (
            "bs[ty][tx] = col",
            "if (ty < 8) bs[ty][tx] = col",
            "uninitialised",
            {12},
            "__shared__ bs",
        ),
    ],
)
def test_seeded_bug(right, wrong, kind, lines, array):
    assert right in L1
    with pytest.raises(EmulationFault) as caught:
        run_l1(L1.replace(right, wrong))
    finding = caught.value.finding
    assert finding.kind == kind
    assert (finding.kernel, finding.file) == ("l1", "l1")
    assert finding.line in lines
    assert array is None or array in finding.array
    assert f"l1:{finding.line}: kernel l1, block" in str(caught.value)


def test_collect_gathers_and_goes_on():
    wrong = L1.replace("if (row < m && col < n) out", "if (col < n) out")
    report, out, expected = run_l1(wrong, check="collect")
    (finding,) = report.findings
    assert (finding.kind, finding.line, finding.block) == ("out_of_bounds", 15, (0, 1, 0))
    assert (finding.thread, finding.offset) == ((0, 4, 0), out.nbytes)
    assert finding.count == 12 * N
    np.testing.assert_array_equal(out, expected)


BUGS = """
__device__ void misaligned(float* x, int n) {
    float4 v = *(float4*)(x + n);          // 3
    *(float4*)(x) = v;
}
__device__ void between_blocks(float* x, int n) {
    x[threadIdx.x] += 1;                   // 7
}
__device__ void wild(float* x, int n) {
    x[(long long)(threadIdx.x + 1) << 40] = 1;  // 10
}
__device__ void one_before(float* x, int n) {
    x[-1] = 1;                             // 13
}
__device__ void across_the_end(float* x, int n) {
    ((double*)x)[16] = 1;                  // 16: the array has 33 floats
}
__device__ void through_null(float* x, int n) {
    float* nothing = n ? nullptr : x;
    nothing[threadIdx.x] = 1;              // 20
}
__device__ void local_array(float* x, int n) {
    float s[4] = {};
    for (int i = 0; i < 8 * n; ++i) s[i] += i;  // 24
    x[threadIdx.x] = s[threadIdx.x & 3];
}
__device__ void never_written(float* x, int n) {
    __shared__ float s[32];
    x[threadIdx.x] = s[threadIdx.x];       // 29
}
__device__ void beyond_dynamic(float* x, int n) {
    extern __shared__ float s[];
    s[threadIdx.x + 8] = 1;                // 33
}
__device__ void returned(float* x, int n) {
    if (threadIdx.x >= 9) return;
    __syncthreads();                       // 37
}
__device__ void other_barrier(float* x, int n) {
    if (threadIdx.x < 4)
        __syncthreads();                   // 41
    else
        __syncthreads();
}
__device__ void lanes_missing(float* x, int n) {
    if (threadIdx.x < 8)
        x[threadIdx.x] = __shfl_sync(0xffffffff, 1.0f, 0);  // 47
    __syncthreads();
}
__device__ void not_in_mask(float* x, int n) {
    __syncwarp(0xff);                      // 51
}
__device__ void passed_by(float* x, int n) {
    float v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_down_sync(0xffffffff, v, 1);  // 55
    x[threadIdx.x] = v;
}
__device__ void passed_by_a_ballot(float* x, int n) {
    unsigned v = 0;
    if (threadIdx.x < 16) v = __ballot_sync(0xffffffff, n);  // 60
    else __syncwarp(0xffff0000);
    if (threadIdx.x == 0) x[0] = v;
}
__device__ void outside_of_the_mask(float* x, int n) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0xffff, 1.0f, 20 * n);  // 65
}
__device__ void across_the_mask(float* x, int n) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0xffff, 1.0f, 16);  // 68
}
__device__ void no_syncwarp(float* x, int n) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;          // 72
    x[threadIdx.x] = s[31 - threadIdx.x];
}
__device__ void mixed_atomic(float* x, int n) {
    if (threadIdx.x == 0) x[0] = 1;
    else atomicAdd(x, 1.0f);               // 77
}
__device__ void asserted(float* x, int n) {
    assert(threadIdx.x < 7);               // 80
}
__device__ void divides(float* x, int n) {
    ((int*)x)[threadIdx.x] /= n - 1;       // 83
}
__device__ void copies(float* x, int n) {
    memcpy(x + 30 * n, x, 16 * n);         // 86
}
__device__ __noinline__ int deep(int n) {
    volatile int a[1000];
    a[n % 1000] = n;
    return n ? deep(n - 1) + a[3] : 0;
}
__device__ void recurses(float* x, int n) {
    x[threadIdx.x] = deep(1000000 * n);
}
"""
NAMES = re.findall(r"__device__ void (\w+)", BUGS)
CASES = "\n".join(f"case {i}: {name}(x, n); break;" for i, name in enumerate(NAMES))
# One kernel with all of them compiles once.
SMALL = RawKernel(
    BUGS + 'extern "C" __global__ void small(int which, float* x, int n) {'
    f"switch (which) {{ {CASES} }} }}",
    "small",
)


def run_small(name, x, block, grid=(1,)):
    SMALL(grid, block, (np.int32(NAMES.index(name)), x, np.int32(1)), shared_mem=128)


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("misaligned", "misaligned", 3),
        ("between_blocks", "race", 7),
        ("wild", "out_of_bounds", 10),
        ("one_before", "out_of_bounds", 13),
        ("across_the_end", "out_of_bounds", 16),
        ("through_null", "out_of_bounds", 20),
        ("local_array", "out_of_row", 24),
        ("never_written", "uninitialised", 29),
        ("beyond_dynamic", "out_of_bounds", 33),
        ("returned", "divergent_barrier", 37),
        ("other_barrier", "divergent_barrier", 41),
        ("lanes_missing", "divergent_collective", 47),
        ("not_in_mask", "divergent_collective", 51),
        ("passed_by", "divergent_collective", 55),
        ("passed_by_a_ballot", "divergent_collective", 60),
        ("outside_of_the_mask", "divergent_collective", 65),
        ("across_the_mask", "divergent_collective", 68),
        ("no_syncwarp", "race", 72),
        ("mixed_atomic", "race", 77),
        ("asserted", "trap", 80),
        ("divides", "crash", 83),
        ("copies", "out_of_bounds", 86),
        ("recurses", "crash", None),
    ],
)
def test_small_kernels(name, kind, line):
    x = np.zeros(33, np.float32)
    with pytest.raises(EmulationFault) as caught:
        run_small(name, x, (4,) if name == "between_blocks" else (32,), (2,))
    finding = caught.value.finding
    assert finding.kind == kind
    assert line is None or finding.line == line, str(finding)


def test_a_fault_leaves_the_emulator_usable():
    for _ in range(20):
        with pytest.raises(EmulationFault):
            run_small("wild", np.zeros(4, np.float32), (256,), (4,))
    x = np.zeros(33, np.float32)
    run_small("between_blocks", x, (33,))
    np.testing.assert_array_equal(x, 1)


def test_an_unchecked_crash_is_a_fault_too():
    with emulated_cuda(check=False), pytest.raises(EmulationFault, match="outside of all memory"):
        run_small("wild", np.zeros(4, np.float32), (1,))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("statement", ["table[n](x);", "memset((void*)16, 0, n * 100);"])
def test_a_crash_outside_of_the_text_is_where_it_was_called(statement, check):
    code = f"""
__device__ void (*table[2])(float*);
extern "C" __global__ void f(float* x, int n) {{
    if (n)
        {statement}
    x[n] = 1;
}}"""
    x = np.zeros(2, np.float32)
    with emulated_cuda(check=check), pytest.raises(EmulationFault) as caught:
        RawKernel(code, "f")((1,), (1,), (x, np.int32(1)))
    assert (caught.value.finding.line, x[1]) == (5, 0), str(caught.value.finding)


def test_views_of_one_array_are_one_memory():
    x = np.zeros(64, np.float32)
    code = """extern "C" __global__ void shift(float* to, const float* from) {
        to[threadIdx.x] = from[threadIdx.x]; }"""
    kernel = RawKernel(code, "shift")
    kernel((1,), (32,), (x[:32], x[32:]))
    with pytest.raises(EmulationFault, match="data race"):
        kernel((1,), (32,), (x[1:33], x[:32]))


def test_an_overrun_into_another_argument_is_out_of_bounds():
    x = np.zeros(64, np.float32)
    code = """extern "C" __global__ void ones(float* to, const float* neighbour) {
        to[threadIdx.x] = 1; }"""
    with pytest.raises(EmulationFault) as caught:
        RawKernel(code, "ones")((1,), (33,), (x[:32], x[32:]))
    assert caught.value.finding.kind == "out_of_bounds"
    np.testing.assert_array_equal(x, [1] * 32 + [0] * 32)


def test_lanes_that_do_not_come_and_need_not():
    code = """
#define ALL 0xffffffff
__device__ float sum(unsigned mask, float v, int n) {
    for (int i = n / 2; i > 0; i /= 2) v += __shfl_down_sync(mask, v, i);
    return v;
}
extern "C" __global__ void quiet(int which, float* x, int n) {
    int t = threadIdx.x;
    float v = 1;
    if (which == 0) {          // a warp that is not full
        v = sum(ALL, v, 32);
    } else if (which == 1) {   // lanes that end before
        if (t >= n) return;
        v = __shfl_down_sync(ALL, v, 1);
    } else if (which == 2) {   // and after they wrote what the others wrote
        x[t] = 2;
        if (t < n) return;
        v = __shfl_up_sync(ALL, v, 1);
    } else if (which == 3) {   // the edge of a part of the warp
        if (t < 16) v = sum(0xffff, v, 16);
    } else if (which == 4) {   // a last round with fewer lanes
        for (int i = t; i < n + 32; i += 32) x[t] = __shfl_xor_sync(ALL, v, 1);
        return;
    } else {                   // parts of the warp, each by itself, then one of them no more
        unsigned part = t < 16 ? 0xffff : 0xffff0000;
        for (int i = 0; i < 3; ++i) v = __shfl_xor_sync(part, v, 1);
        if (t >= 16) return;
        v = __shfl_sync(ALL, v, 0);
    }
    x[t] = v;
}"""
    quiet, x = RawKernel(code, "quiet"), np.zeros(32, np.float32)
    for which, threads in ((0, 20), (1, 32), (2, 32), (3, 32), (4, 32), (5, 32)):
        quiet((1,), (threads,), (np.int32(which), x, np.int32(20)))


def test_copies_of_constant_size_are_accesses_of_every_byte():
    code = """extern "C" __global__ void copy(int which, int* x, int* y) {
        __shared__ int s[16], t[16];
        if (threadIdx.x == 0) {
            if (which != 2) memset(s, 0, sizeof s);
            if (which == 1) memset(y, 0, 17 * 4);              // 5
            memcpy(t, x, 64);
            memmove(y, s, 64);                                 // 7
            if (which == 3) memcpy(y, x, 100);                 // 8
        }
        __syncthreads();
        y[threadIdx.x] += s[threadIdx.x] + t[threadIdx.x];
    }"""
    copy, x, y = RawKernel(code, "copy"), np.arange(16, dtype=np.int32), np.ones(16, np.int32)
    copy((1,), (16,), (np.int32(0), x, y))
    np.testing.assert_array_equal(y, x)
    for which, kind, line in (
        (1, "out_of_bounds", 5),
        (2, "uninitialised", 7),
        (3, "out_of_bounds", 8),
    ):
        with pytest.raises(EmulationFault) as caught:
            copy((1,), (16,), (np.int32(which), x, y))
        assert (caught.value.finding.kind, caught.value.finding.line) == (kind, line)


def test_a_read_only_array_is_written():
    code = """extern "C" __global__ void overwrite(const int* x, int* y, int n) {
        y[threadIdx.x] = ((const volatile int*)x)[threadIdx.x];
        if (n == 1) const_cast<int*>(x)[threadIdx.x] = 7;
        if (n == 2) atomicAdd((int*)x, 1);
        y[threadIdx.x] += x[threadIdx.x];
    }"""
    overwrite, y = RawKernel(code, "overwrite"), np.zeros(4, np.int32)
    x = np.arange(4, dtype=np.int32)
    frozen = x.view()
    frozen.flags.writeable = False
    overwrite((1,), (4,), (frozen, y, np.int32(0)))
    np.testing.assert_array_equal(y, 2 * x)
    for n, line in ((1, 3), (2, 4)):
        with pytest.raises(EmulationFault, match=r"argument 0.*which is read-only") as caught:
            overwrite((1,), (4,), (frozen, y, np.int32(n)))
        assert (caught.value.finding.kind, caught.value.finding.line) == ("read_only", line)
        with emulated_cuda(check=False):
            overwrite((1,), (4,), (frozen, y, np.int32(n)))
        np.testing.assert_array_equal(x, range(4))
    with emulated_cuda(check=False):
        overwrite((1,), (4,), (frozen, y, np.int32(1)))
    np.testing.assert_array_equal(y, np.arange(4) + 7)


@pytest.mark.parametrize("check", [True, False])
def test_a_writable_view_of_a_read_only_array(check):
    x = np.arange(8, dtype=np.int32)
    frozen = x.view()
    frozen.flags.writeable = False
    code = """extern "C" __global__ void forward(const int* x, int* y) {
        y[threadIdx.x] = 5;
        y[threadIdx.x] += x[threadIdx.x + 2];
    }"""
    with emulated_cuda(check=check):
        RawKernel(code, "forward")((1,), (4,), (frozen, x[2:6]))
    np.testing.assert_array_equal(x, [0, 1, 10, 10, 10, 10, 6, 7])


LOOPS = """
__global__ void volatile_read(volatile int* x) { while (*x == 0) {} }
__global__ void arithmetic(volatile int* x) {
    for (unsigned i = 0;; ++i)
        if (i * i == 3) *x = 1;  // no square ends so
}
__global__ void barriers(volatile int* x) { for (;;) __syncthreads(); }
__global__ void plain_read(int* x) { while (*x == 0) {} }  // without effect, but not to be left out
"""
TIMED = pytest.mark.skipif(sys.platform != "linux", reason="takes Linux's timers")


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "kernel",
    [
        "volatile_read",
        pytest.param("arithmetic", marks=TIMED),
        pytest.param("plain_read", marks=TIMED),
        "barriers",
    ],
)
def test_a_launch_that_never_ends_runs_out_of_time(monkeypatch, kernel, check):
    endless, x = RawKernel(LOOPS, kernel), np.zeros(1, np.int32)
    for seconds in ("0.2", "0", "0.01"):
        monkeypatch.setenv("MULFREE_EMULATOR_SECONDS", seconds)
        with emulated_cuda(check=check), pytest.raises(EmulationFault) as caught:
            endless((1,), (40,), (x,))
        assert caught.value.finding.kind == "timeout"
    monkeypatch.delenv("MULFREE_EMULATOR_SECONDS")
    run_small("between_blocks", np.zeros(40, np.float32), (40,))
