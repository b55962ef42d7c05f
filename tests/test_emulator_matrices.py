"""mma.h, mma.sync and ldmatrix by their host twins, held to NumPy's products."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda

F16, F32, I32, U32 = np.float16, np.float32, np.int32, np.uint32
rng = np.random.default_rng(8)

MMA = r"""
// Lane 4 g + t: of A rows g and g + 8, of B column g, of C columns 2 t and 2 t + 1; R registers of A.
#include <cuda_fp16.h>
extern "C" __global__ void mma(const unsigned* a, const unsigned* b, const C* c, C* d, int words) {
    int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    unsigned ra[4] = {a[g * words + t], a[(g + 8) * words + t], 0, 0}, rb[2] = {b[g * words + t], 0};
    C rc[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]};
    if (words == 8) {
        ra[2] = a[g * 8 + t + 4]; ra[3] = a[(g + 8) * 8 + t + 4]; rb[1] = b[g * 8 + t + 4];
        asm volatile("mma.sync.aligned.m16n8" WHOLE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"
            : "=" R (rc[0]), "=" R (rc[1]), "=" R (rc[2]), "=" R (rc[3])
            : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]),
              R (rc[0]), R (rc[1]), R (rc[2]), R (rc[3]));
    } else {
        asm volatile("mma.sync.aligned.m16n8" PART " {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
            : "+" R (rc[0]), "+" R (rc[1]), "+" R (rc[2]), "+" R (rc[3]) : "r"(ra[0]), "r"(ra[1]), "r"(rb[0]));
    }
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = rc[i];
}"""  # noqa: E501


def words(x):
    return np.ascontiguousarray(x).view(U32)


def bfloat(x):
    return (words(x.astype(F32)) >> U32(16)).astype(np.uint16)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("types", "per_word", "packed"),
    [
        ("f32.f16.f16.f32", 2, lambda x: words(x.astype(F16))),
        ("f32.bf16.bf16.f32", 2, lambda x: words(bfloat(x))),
        ("s32.s8.s8.s32", 4, lambda x: words(x.astype(np.int8))),
        ("s32.u8.u8.s32", 4, lambda x: words(x.astype(np.uint8))),
    ],
)
def test_mma(types, per_word, packed, check):
    kind = F32 if types.startswith("f") else I32
    low = 0 if "u8" in types else -9
    letter = '"f"' if kind is F32 else '"r"'
    shapes = [f"k{per_word * n}.row.col.{types}" for n in (8, 4)]
    options = [f'-DWHOLE="{shapes[0]}"', f'-DPART="{shapes[1]}"', f"-DR={letter}"]
    options.append(f"-DC={'float' if kind is F32 else 'int'}")
    for n in (8, 4):
        a, b = rng.integers(low, 9, (16, per_word * n)), rng.integers(low, 9, (8, per_word * n))
        c, d = rng.integers(-9, 9, (16, 8)).astype(kind), np.zeros((16, 8), kind)
        with emulated_cuda(check=check):
            kernel = RawKernel(MMA, "mma", tuple(options))
            kernel((1,), (32,), (packed(a), packed(b), c, d, I32(n)))
        np.testing.assert_array_equal(d, a @ b.T + c)


@pytest.mark.parametrize(
    ("operation", "function"), [("and", np.bitwise_and), ("xor", np.bitwise_xor)]
)
def test_mma_of_bits(operation, function):
    shapes = [f"k{k}.row.col.s32.b1.b1.s32.{operation}.popc" for k in (256, 128)]
    options = (f'-DWHOLE="{shapes[0]}"', f'-DPART="{shapes[1]}"', '-DR="r"', "-DC=int")
    a, b = rng.integers(0, 2**32, (16, 8), dtype=U32), rng.integers(0, 2**32, (8, 8), dtype=U32)
    d = np.zeros((16, 8), I32)
    RawKernel(MMA, "mma", options)((1,), (32,), (a, b, np.ones((16, 8), I32), d, I32(8)))
    bits = np.unpackbits(function(a[:, None], b[None]).view(np.uint8), axis=-1)
    np.testing.assert_array_equal(d, bits.sum(-1, dtype=int) + 1)


LOADED = r"""
#include <cuda_fp16.h>
// 16 x 8 of C, in halves; A by rows and B by rows of k, through shared memory and ldmatrix.
extern "C" __global__ void loaded(const half* a, const half* b, half* c) {
    __shared__ half sa[16][16 + 8], sb[16][8];
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
    for (int i = lane; i < 128; i += 32) sb[i / 8][i % 8] = b[i];
    SYNC;
    unsigned ra[4], rb[2], rc[2] = {0x3c003c00, 0x3c003c00};
    unsigned pa = __cvta_generic_to_shared(&sa[lane % 16][lane / 16 * 8]);
    unsigned pb = __cvta_generic_to_shared(&sb[lane % 16][0]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"  // 13
        : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3]) : "r"(pa));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
        : "=r"(rb[0]), "=r"(rb[1]) : "r"(pb));
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %9};\n"
        : "=r"(rc[0]), "=r"(rc[1]) : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]),
          "r"(rc[0]), "r"(rc[1]));
    ((half2*)c)[lane] = *(half2*)&rc[0];
    ((half2*)c)[32 + lane] = *(half2*)&rc[1];
}"""  # noqa: E501


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("count_first", [False, True])
def test_ldmatrix(count_first, check):
    code = LOADED
    if count_first:
        code = code.replace("m8n8.x4.", "x4.m8n8.").replace("m8n8.x2.trans.", "x2.trans.m8n8.")
    a, b = rng.integers(-9, 9, (16, 16)).astype(F16), rng.integers(-9, 9, (16, 8)).astype(F16)
    c = np.zeros((16, 8), F16)
    with emulated_cuda(check=check):
        RawKernel(code, "loaded", ("-DSYNC=__syncthreads()",))((1,), (32,), (a, b, c))
    np.testing.assert_array_equal(c, (a.astype(F32) @ b.astype(F32) + 1).astype(F16))


def test_ldmatrix_is_checked():
    a, b, c = np.zeros((16, 16), F16), np.zeros((16, 8), F16), np.zeros((16, 8), F16)
    with pytest.raises(EmulationFault, match="data race") as fault:
        RawKernel(LOADED, "loaded", ("-DSYNC=",))((1,), (32,), (a, b, c))
    assert fault.value.finding.line == 13
    with pytest.raises(EmulationFault, match="needs all 32 lanes"):
        RawKernel(LOADED, "loaded", ("-DSYNC=__syncthreads()",))((1,), (16,), (a, b, c))


WMMA = """
#include <mma.h>
#include <cuda_bf16.h>
using namespace nvcuda;
template <class T, class C, class LayoutA, class LayoutB, int M, int N, int K>
__global__ void product(const T* a, const T* b, C* c, int m, int n, int k) {
    int row = blockIdx.y * M, column = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * N;
    wmma::fragment<wmma::matrix_a, M, N, K, T, LayoutA> fa;
    wmma::fragment<wmma::matrix_b, M, N, K, T, LayoutB> fb;
    wmma::fragment<wmma::accumulator, M, N, K, C> fc, old;
    wmma::fill_fragment(fc, C(0));
    constexpr bool rows_a = std::is_same_v<LayoutA, wmma::row_major>, rows_b = std::is_same_v<LayoutB, wmma::row_major>;
    for (int i = 0; i < k; i += K) {
        wmma::load_matrix_sync(fa, rows_a ? a + row * k + i : a + i * m + row, rows_a ? k : m);   // 14
        wmma::load_matrix_sync(fb, rows_b ? b + i * n + column : b + column * k + i, rows_b ? n : k);
        wmma::mma_sync(fc, fa, fb, fc);
    }
    wmma::load_matrix_sync(old, c + row * n + column, n, wmma::mem_row_major);
    for (int i = 0; i < fc.num_elements; ++i) fc.x[i] = C(2) * fc.x[i] + old.x[i];
    wmma::store_matrix_sync(c + row * n + column, fc, n, wmma::mem_row_major);
}
extern "C" __global__ void tf32(const float* a, const float* b, float* c) {
    wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 8, float> fc;
    wmma::fill_fragment(fc, 0.0f);
    wmma::load_matrix_sync(fa, a, 8);
    wmma::load_matrix_sync(fb, b, 8);
    for (auto& x : fa.x) x = wmma::__float_to_tf32(x);
    wmma::mma_sync(fc, fa, fb, fc);
    wmma::store_matrix_sync(c, fc, 16, wmma::mem_col_major);
}"""  # noqa: E501


@pytest.mark.parametrize(
    ("T", "C", "layouts", "tile"),
    [
        ("half", "float", ("row", "col"), (16, 16, 16)),
        ("half", "float", ("col", "row"), (32, 8, 16)),
        ("half", "half", ("row", "row"), (8, 32, 16)),
        ("__nv_bfloat16", "float", ("row", "col"), (16, 16, 16)),
        ("signed char", "int", ("col", "col"), (16, 16, 16)),
        ("double", "double", ("row", "col"), (8, 8, 4)),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_wmma(T, C, layouts, tile, check):
    m, n, k = 2 * tile[0], 2 * tile[1], 3 * tile[2]
    types = {"half": F16, "float": F32, "int": I32, "signed char": np.int8, "double": np.float64}
    a, b = rng.integers(-4, 4, (m, k)), rng.integers(-4, 4, (k, n))
    c = rng.integers(-9, 9, (m, n)).astype(types[C])
    expected = 2 * (a @ b) + c
    given = [v if layout == "row" else v.T for v, layout in zip((a, b), layouts, strict=True)]
    narrow = bfloat if T == "__nv_bfloat16" else lambda v: v.astype(types[T])
    given = [np.ascontiguousarray(narrow(v)) for v in given]
    majors = ", ".join(f"wmma::{layout}_major" for layout in layouts)
    name = f"product<{T}, {C}, {majors}, {', '.join(map(str, tile))}>"
    with emulated_cuda(check=check):
        RawKernel(WMMA, name)((1, 2), (64,), (*given, c, I32(m), I32(n), I32(k)))
    np.testing.assert_array_equal(c, expected)


def test_wmma_of_tf32():
    a, b = rng.standard_normal((16, 8)).astype(F32), rng.integers(-4, 4, (16, 8)).astype(F32)
    c = np.zeros((16, 16), F32)
    RawKernel(WMMA, "tf32")((1,), (32,), (a, b, c))
    rounded = ((a.view(U32) + U32(0x1000)) & U32(0xFFFFE000)).view(F32)
    exact = rounded.astype(float) @ b.T.astype(float)
    np.testing.assert_array_equal(c.T, exact.astype(F32))
    np.testing.assert_allclose(c.T, a @ b.T, rtol=1e-2, atol=1e-2)


def test_fragments_are_checked():
    name = "product<half, float, wmma::row_major, wmma::row_major, 16, 16, 16>"
    a, b, c = np.zeros((16, 16), F16), np.zeros((16, 16), F16), np.zeros((16, 16), F32)
    sizes = I32(16), I32(16), I32(16)
    RawKernel(WMMA, name)((1,), (32,), (a, b, c, *sizes))
    with pytest.raises(EmulationFault) as fault:
        RawKernel(WMMA, name)((1,), (32,), (a[:15], b, c, *sizes))
    assert (fault.value.finding.kind, fault.value.finding.line) == ("out_of_bounds", 14)
    with pytest.raises(EmulationFault, match="needs all 32 lanes"):
        RawKernel(WMMA, name)((1,), (16,), (a, b, c, *sizes))
