"""Kernels in the classic styles of CUDA code, as others write them, held to NumPy."""
# The CUDA texts keep their long lines.
# ruff: noqa: E501

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import CompilationError, RawKernel

F32, I32, U32 = np.float32, np.int32, np.uint32
rng = np.random.default_rng(1)


def test_reduction_by_warp_shuffles():
    code = """
__inline__ __device__ float warpReduceSum(float val) {
  for (int offset = warpSize / 2; offset > 0; offset /= 2) val += __shfl_down_sync(0xffffffff, val, offset);
  return val;
}
__inline__ __device__ float blockReduceSum(float val) {
  static __shared__ float shared[32];
  int lane = threadIdx.x % warpSize, wid = threadIdx.x / warpSize;
  val = warpReduceSum(val);
  if (lane == 0) shared[wid] = val;
  __syncthreads();
  val = (threadIdx.x < blockDim.x / warpSize) ? shared[lane] : 0;
  if (wid == 0) val = warpReduceSum(val);
  return val;
}
__global__ void deviceReduce(const float* __restrict__ in, float* out, int N) {
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < N; i += blockDim.x * gridDim.x) sum += __ldg(&in[i]);
  sum = blockReduceSum(sum);
  if (threadIdx.x == 0) atomicAdd(out, sum);
}"""
    x, out = rng.integers(-9, 9, 1000).astype(F32), np.zeros(1, F32)
    RawKernel(code, "deviceReduce")((3,), (128,), (x, out, I32(1000)))
    assert out[0] == x.sum()


def test_reduction_whose_last_block_finishes():
    # Blocks speak to one another through an atomic counter after a fence: ordered, and no race.
    code = """
extern "C" __global__ void sum(const float* x, float* parts, unsigned int* count, float* out, int n) {
    extern __shared__ float s[];
    __shared__ bool last;
    unsigned int t = threadIdx.x;
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) v += x[i];
    s[t] = v;
    __syncthreads();
    for (int k = blockDim.x / 2; k > 0; k >>= 1) {
        if (t < k) s[t] += s[t + k];
        __syncthreads();
    }
    if (t == 0) {
        parts[blockIdx.x] = s[0];
        FENCE;
        last = atomicInc(count, gridDim.x) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && t == 0) {
        float r = 0;
        for (int i = 0; i < gridDim.x; ++i) r += parts[i];
        *out = r;
    }
}"""
    x = rng.integers(-9, 9, 1000).astype(F32)

    def run(fence):
        out = np.zeros(1, F32)
        kernel = RawKernel(code, "sum", (f"-DFENCE={fence}",))
        kernel((8,), (64,), (x, np.zeros(8, F32), np.zeros(1, U32), out, I32(1000)), shared_mem=256)
        return out[0]

    assert run("__threadfence()") == x.sum()
    with pytest.raises(RuntimeError, match=r"data race: reads 4 bytes .* argument 1 \(parts\)"):
        run("")


def test_histogram_by_atomics():
    code = """
#include <cuda_runtime.h>
#define BINS 256
extern "C" __global__ void __launch_bounds__(128) histogram(const unsigned char* data, unsigned int* bins, size_t n) {
    __shared__ unsigned int local[BINS];
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) local[i] = 0;
    __syncthreads();
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        atomicAdd(&local[data[i]], 1);
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) atomicAdd(bins + i, local[i]);
}"""
    data, bins = rng.integers(0, 256, 5000).astype(np.uint8), np.zeros(256, U32)
    RawKernel(code, "histogram", ("--use_fast_math", "-arch=sm_90"))(
        (4,), (128,), (data, bins, 5000)
    )
    np.testing.assert_array_equal(bins, np.bincount(data, minlength=256))


@pytest.mark.parametrize("T", [np.float32, np.float64])
def test_template_by_name_expression(T):
    code = """
template <typename T, int N> struct Twice { static __device__ __forceinline__ T of(T x) { return N * x; } };
namespace ours {
template <typename T, int N = 2>
__global__ void scale(T* __restrict__ y, const T* __restrict__ x, const unsigned int n) {
    __shared__ T tile[N][64 + 1], *row;
    const unsigned int i = blockDim.x * blockIdx.x + threadIdx.x;
    if (threadIdx.x == 0) row = tile[1];
    __syncthreads();
    if (i < n) row[threadIdx.x] = Twice<T, N>::of(x[i]);
    __syncthreads();
    if (i < n) y[i] = row[threadIdx.x];
}
}"""
    x = rng.standard_normal(100).astype(T)
    y = np.zeros_like(x)
    name = f"ours::scale<{'float' if T is np.float32 else 'double, 3'}>"
    RawKernel(code, name)((2,), (64,), (y, x, U32(100)))
    np.testing.assert_array_equal(y, x * T(2 if T is np.float32 else 3))


def test_scan_in_dynamic_shared_memory():
    code = """
extern __shared__ __align__(16) unsigned char smem[];
extern "C" __global__ void scan(float *g_odata, float *g_idata, int n) {
    float *temp = reinterpret_cast<float*>(smem);
    int thid = threadIdx.x, pout = 0, pin = 1;
    temp[pout * n + thid] = (thid > 0) ? g_idata[thid - 1] : 0;
    __syncthreads();
    for (int offset = 1; offset < n; offset *= 2) {
        pout = 1 - pout;
        pin = 1 - pout;
        if (thid >= offset) temp[pout * n + thid] = temp[pin * n + thid] + temp[pin * n + thid - offset];
        else temp[pout * n + thid] = temp[pin * n + thid];
        __syncthreads();
    }
    g_odata[thid] = temp[pout * n + thid];
}"""
    x, out = rng.integers(0, 9, 200).astype(F32), np.zeros(200, F32)
    RawKernel(code, "scan")((1,), (200,), (out, x, I32(200)), shared_mem=1600)
    np.testing.assert_array_equal(out, np.cumsum(x) - x)


def test_three_dimensional_stencil():
    code = """
__constant__ float weight[2] = {-6.0f, 1.0f};
__shared__ float s[6][6][10];
__global__ void laplace(const float* u, float* v, dim3 n) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y,
        z = blockIdx.z * blockDim.z + threadIdx.z;
    auto at = [=](int x, int y, int z) {
        return x < 0 || y < 0 || z < 0 || x >= n.x || y >= n.y || z >= n.z ? 0.0f : u[(z * n.y + y) * n.x + x];
    };
    for (int k = threadIdx.z; k < 6; k += blockDim.z)
        for (int j = threadIdx.y; j < 6; j += blockDim.y)
            for (int i = threadIdx.x; i < 10; i += blockDim.x)
                s[k][j][i] = at(blockIdx.x * 8 + i - 1, blockIdx.y * 4 + j - 1, blockIdx.z * 4 + k - 1);
    __syncthreads();
    int i = threadIdx.x + 1, j = threadIdx.y + 1, k = threadIdx.z + 1;
    if (x < n.x && y < n.y && z < n.z)
        v[(z * n.y + y) * n.x + x] = weight[0] * s[k][j][i] + weight[1] * (s[k - 1][j][i] + s[k + 1][j][i] +
            s[k][j - 1][i] + s[k][j + 1][i] + s[k][j][i - 1] + s[k][j][i + 1]);
}"""
    u = rng.integers(-9, 9, (7, 9, 13)).astype(F32)
    v = np.zeros_like(u)
    size = np.array((13, 9, 7), np.dtype([("x", U32), ("y", U32), ("z", U32)]))
    RawKernel(code, "laplace")((2, 3, 2), (8, 4, 4), (u, v, size))
    p = np.pad(u, 1)
    c = slice(1, -1)
    expected = (
        -6 * u
        + p[:-2, c, c]
        + p[2:, c, c]
        + p[c, :-2, c]
        + p[c, 2:, c]
        + p[c, c, :-2]
        + p[c, c, 2:]
    )
    np.testing.assert_array_equal(v, expected)


def test_words_of_bytes_and_bits():
    code = """
extern "C" __global__ void words(const unsigned* a, const unsigned* b, int* dot, unsigned* out) {
    int i = threadIdx.x;
    unsigned x = a[i], y = b[i];
    dot[i] = __dp4a((int)x, (int)y, 7);
    unsigned r[] = {__vsadu4(x, y), __vabsdiffu4(x, y), __vmaxu4(x, y), __vadd4(x, y), __vsubss4(x, y),
                    (unsigned)__popc(x), (unsigned)__clz(x), (unsigned)__ffs(x), __brev(x),
                    __byte_perm(x, y, 0x0176), __funnelshift_l(x, y, 5), __umulhi(x, y), __vcmpgtu4(x, y),
                    __vavgu4(x, y)};
    for (int k = 0; k < 14; ++k) out[14 * i + k] = r[k];
}"""
    a, b = rng.integers(0, 2**32, (2, 64), dtype=U32)
    dot, out = np.zeros(64, I32), np.zeros((64, 14), U32)
    RawKernel(code, "words")((1,), (64,), (a, b, dot, out))
    ub, vb = (w.view(np.uint8).reshape(64, 4).astype(int) for w in (a, b))
    sb, tb = (w.view(np.int8).reshape(64, 4).astype(int) for w in (a, b))

    def word(lanes):
        return lanes.astype(np.uint8).reshape(-1).view(U32)

    np.testing.assert_array_equal(dot, (sb * tb).sum(1) + 7)
    texts = [f"{v:032b}" for v in a]
    expected = [
        abs(ub - vb).sum(1), word(abs(ub - vb)), word(np.maximum(ub, vb)), word(ub + vb),
        word(np.clip(sb - tb, -128, 127)), [t.count("1") for t in texts], [(t + "1").index("1") for t in texts],
        [t[::-1].find("1") + 1 for t in texts], [int(t[::-1], 2) for t in texts],
        word(np.stack([vb[:, 2], vb[:, 3], ub[:, 1], ub[:, 0]], 1)),
        ((b.astype(np.uint64) << np.uint64(5)) | (a >> U32(27))) & np.uint64(0xFFFFFFFF),
        a.astype(np.uint64) * b >> np.uint64(32), word(255 * (ub > vb)), word((ub + vb + 1) // 2),
    ]  # fmt: skip
    for k, column in enumerate(expected):
        np.testing.assert_array_equal(out[:, k], np.asarray(column).astype(U32), err_msg=str(k))


def test_warp_functions():
    code = """
extern "C" __global__ void warp(const int* x, int* out) {
    int t = threadIdx.x, lane = t & 31, v = x[t];
    int r[12] = {};
    r[0] = __shfl_sync(~0u, v, 3, 8);
    r[1] = __shfl_up_sync(~0u, v, 2);
    r[2] = __shfl_xor_sync(~0u, v, 5);
    r[3] = __ballot_sync(~0u, v > 4);
    r[4] = __any_sync(~0u, v > 8) * 2 + __all_sync(~0u, v >= 0);
    r[5] = __match_any_sync(~0u, v);
    r[6] = __reduce_add_sync(~0u, v);
    r[7] = __reduce_max_sync(~0u, (unsigned)v);
    if (lane % 3 == 0) {
        unsigned active = __activemask();
        r[8] = __popc(active);
        r[9] = __shfl_sync(active, v, 30);
    }
    r[10] = __syncthreads_count(v > 4);
    double d = __shfl_down_sync(~0u, v + 0.5, 1);
    r[11] = (int)(2 * d);
    for (int k = 0; k < 12; ++k) out[12 * t + k] = r[k];
}"""
    x, out = rng.integers(0, 10, 64).astype(I32), np.zeros((64, 12), I32)
    RawKernel(code, "warp")((1,), (64,), (x, out))
    for warp in (slice(0, 32), slice(32, 64)):
        v, r = x[warp], out[warp].T
        lane = np.arange(32)
        ballot = sum(1 << i for i in range(32) if v[i] > 4)
        np.testing.assert_array_equal(r[0], v[lane // 8 * 8 + 3])
        np.testing.assert_array_equal(r[1], np.where(lane < 2, v, v[lane - 2]))
        np.testing.assert_array_equal(r[2], v[lane ^ 5])
        np.testing.assert_array_equal(r[3].view(U32), ballot)
        np.testing.assert_array_equal(r[4], 2 * (v > 8).any() + (v >= 0).all())
        same = [sum(1 << i for i in range(32) if v[i] == value) for value in v]
        np.testing.assert_array_equal(r[5].view(U32), same)
        np.testing.assert_array_equal(r[6], v.sum())
        np.testing.assert_array_equal(r[7], v.max())
        np.testing.assert_array_equal(r[8], np.where(lane % 3 == 0, 11, 0))
        np.testing.assert_array_equal(r[9], np.where(lane % 3 == 0, v[30], 0))
        np.testing.assert_array_equal(r[10], (x > 4).sum())
        np.testing.assert_array_equal(r[11], 2 * v[np.minimum(lane + 1, 31)] + 1)


def test_cooperative_groups():
    code = """
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;
template <int N> __device__ int sum(cg::thread_block_tile<N> tile, int v) {
    for (int i = tile.size() / 2; i > 0; i /= 2) v += tile.shfl_down(v, i);
    return v;
}
extern "C" __global__ void groups(const int* x, int* out) {
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<16>(block);
    int v = x[block.thread_rank()], s = sum<16>(tile, v);
    if (tile.thread_rank() == 0) atomicAdd(out, s);
    block.sync();
    auto warp = cg::tiled_partition<32>(block);
    int m = cg::reduce(warp, v, cg::greater<int>());
    if (warp.thread_rank() == 0) atomicMax(out + 1, m);
    if (threadIdx.x % 3 == 0) {
        auto active = cg::coalesced_threads();
        if (active.thread_rank() == 0) atomicAdd(out + 2, active.size());
    }
}"""
    x, out = rng.integers(0, 99, 256).astype(I32), np.zeros(3, I32)
    RawKernel(code, "groups")((1,), (256,), (x, out))
    assert out.tolist() == [x.sum(), x.max(), 86]


def test_atomics_locks_and_asynchronous_copies():
    code = """
#include <cuda_pipeline.h>
extern "C" __global__ void atomics(const float4* x, float* out, double* wide, unsigned* bits, int* lock) {
    __shared__ float4 s[32];
    __pipeline_memcpy_async(&s[threadIdx.x], &x[threadIdx.x], sizeof(float4));
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    float4 v = s[31 - threadIdx.x];
    atomicAdd(out, v.x + v.y);
    atomicAdd(wide, (double)v.z);
    atomicOr(bits, 1u << threadIdx.x);
    atomicMin((int*)bits + 1, -(int)threadIdx.x);
    while (atomicCAS(lock, 0, 1) != 0) {}   // every thread of the block in turn
    atomicAdd(lock + 1, 1);
    __threadfence();
    atomicExch(lock, 0);
}"""
    x = rng.integers(0, 9, (32, 4)).astype(F32)
    out, wide, bits, lock = np.zeros(1, F32), np.zeros(1), np.zeros(2, U32), np.zeros(2, I32)
    RawKernel(code, "atomics")((1,), (32,), (x, out, wide, bits, lock))
    assert (out[0], wide[0]) == (x[:, :2].sum(), x[:, 2].sum())
    assert bits.tolist() == [2**32 - 1, 2**32 - 31] and lock.tolist() == [0, 32]


def test_floating_point_functions():
    code = """
#include <cuda/std/cstdint>
#include <cstdint>
extern "C" __global__ void math(const float* x, float* out, cuda::std::int32_t n) {
    int i = threadIdx.x;
    float v = x[i];
    float r[] = {fminf(v, 0.5f), max(v, 0.25f), __fmaf_rn(v, v, 1.0f), __saturatef(v), __int_as_float(__float_as_int(v) ^ 0x80000000),
                 (float)__float2int_rn(v * 10), (float)__float2int_rz(v * 10), rsqrtf(v * v), __fdividef(v, 2.0f), fabsf(v),
                 (float)min(3u, threadIdx.x), copysignf(1.0f, v)};
    for (int k = 0; k < n; ++k) out[n * i + k] = r[k];
}"""
    x, out = rng.standard_normal(32).astype(F32), np.zeros((32, 12), F32)
    RawKernel(code, "math")((1,), (32,), (x, out, I32(12)))
    expected = [np.minimum(x, F32(0.5)), np.maximum(x, F32(0.25)), (x.astype(float) ** 2 + 1).astype(F32), np.clip(x, 0, 1), -x,
                np.rint(x * 10), np.trunc(x * 10), 1 / np.sqrt((x * x).astype(float)), x / 2, abs(x),
                np.minimum(3, np.arange(32)), np.sign(x)]  # fmt: skip
    np.testing.assert_array_equal(out, np.stack([np.asarray(e).astype(F32) for e in expected], 1))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('asm volatile("bar.sync 1, 64;");', "inline PTX"),
        ("nvcuda::wmma::experimental::bmma_sync(x, x, x, x);", "tensor-core fragments of bits"),
        ("float v = tex2D<float>(t, 0, 0);", "textures"),
        ("__nv_fp8_e4m3 v(x[0]);", "floating point of 8 bits"),
        ("child<<<1, 1>>>();", "a kernel launch inside a kernel"),
    ],
)
def test_what_a_cpu_cannot_run_is_refused(line, named):
    code = f"""#include <mma.h>
#include <cuda_fp8.h>
extern "C" __global__ void f(float* x) {{
    // asm in a comment, "asm" in a string: neither counts
    const char* text = "asm volatile";
#ifdef MULFREE_EMULATOR
    x[0] = text[0] == 'a';
#else
    {line}
#endif
}}"""
    x = np.zeros(1, F32)
    RawKernel(code, "f")((1,), (1,), (x,))
    assert x[0] == 1
    with pytest.raises(NotImplementedError, match=f"f:9: {named}.*#ifdef MULFREE_EMULATOR"):
        RawKernel(code.replace("#ifdef", "#ifndef"), "f")((1,), (1,), (x,))


def test_compiler_errors_carry_the_kernels_line():
    code = 'extern "C" __global__ void f(float* x) {\n  x[0] = y;\n}'
    with pytest.raises(CompilationError, match=r"f:2:.*y"):
        RawKernel(code, "f")((1,), (1,), (np.zeros(1, F32),))
    with pytest.raises(CompilationError, match=r"folder/g\.cu:12:"):
        RawKernel('#line 11 "folder/g.cu"\n' + code, "f")((1,), (1,), (np.zeros(1, F32),))


def test_printf(capfd):
    code = """extern "C" __global__ void hello(int n) { if (threadIdx.x == 2) printf("thread %d of %d\\n", threadIdx.x, n); }"""
    RawKernel(code, "hello")((1,), (4,), (I32(4),))
    assert capfd.readouterr().out == "thread 2 of 4\n"


def test_shared_memory_declared_behind_a_pragma():
    code = """
extern "C" __global__ void f(float* x) {
#pragma nv_diag_suppress 20054

    __shared__ float s[8];
#pragma unroll
    for (int i = 0; i < 1; ++i) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = s[7 - threadIdx.x];
}"""
    x = np.arange(8, dtype=F32)
    RawKernel(code, "f")((1,), (8,), (x,))
    np.testing.assert_array_equal(x, np.arange(8)[::-1])


def test_objects_with_virtual_functions_that_the_kernel_makes():
    # A constructor writes where the table of virtual functions is: that memory has been written.
    code = """
#include <new>
struct Shape { __device__ virtual float area() const = 0; };
struct Square : Shape {
    float side;
    __device__ Square(float s) : side(s) {}
    __device__ float area() const override { return side * side; }
};
struct Disc : Shape {
    float radius;
    __device__ Disc(float r) : radius(r) {}
    __device__ float area() const override { return 3 * radius * radius; }
};
extern "C" __global__ void areas(const float* x, float* y) {
    __shared__ __align__(16) unsigned char room[8 * sizeof(Square)];
    __shared__ Shape* shapes[8];
    int t = threadIdx.x;
    if (t % 2) shapes[t] = new (room + t * sizeof(Square)) Square(x[t]);
    else shapes[t] = new (room + t * sizeof(Square)) Disc(x[t]);
    __syncthreads();
    y[t] = shapes[7 - t]->area();
}"""
    x, y = np.arange(8, dtype=F32), np.zeros(8, F32)
    RawKernel(code, "areas")((1,), (8,), (x, y))
    np.testing.assert_array_equal(y, (np.where(np.arange(8) % 2, x * x, 3 * x * x))[::-1])
