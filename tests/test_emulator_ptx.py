"""Inline PTX: the instructions that texts use are run and checked as C++, the others refused."""

import re

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel, emulated_cuda

F32, I32, U32 = np.float32, np.int32, np.uint32


@pytest.mark.parametrize("check", [True, False])
def test_special_registers(check):
    code = r"""
__device__ __forceinline__ unsigned lane() {
    unsigned id;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(id));
    return id;
}
#define READ(x, name) asm("mov.u32 %0, %" "%" #name ";" : "=r"(x))
extern "C" __global__ void registers(unsigned* out) {
    unsigned r[12];
    r[0] = lane();
    READ(r[1], warpid); READ(r[2], tid.x); READ(r[3], ntid.y); READ(r[4], ctaid.z); READ(r[5], nctaid.x);
    READ(r[6], lanemask_lt); READ(r[7], lanemask_le); READ(r[8], lanemask_eq); READ(r[9], lanemask_gt);
    READ(r[10], lanemask_ge); READ(r[11], dynamic_smem_size);
    int t = threadIdx.y * blockDim.x + threadIdx.x;
    for (int i = 0; i < 12; ++i) out[((blockIdx.z * gridDim.x + blockIdx.x) * 80 + t) * 12 + i] = r[i];
}"""  # noqa: E501
    out = np.zeros((2, 3, 80, 12), U32)
    with emulated_cuda(check=check):
        RawKernel(code, "registers")((3, 1, 2), (40, 2), (out,), shared_mem=48)
    t = np.arange(80)
    bit = np.uint64(1) << (t % 32).astype(np.uint64)
    full = np.uint64(2**32 - 1)
    expected = [t % 32, t // 32, t % 40, t * 0 + 2, None, t * 0 + 3, bit - 1, 2 * bit - 1, bit]
    expected += [full & ~(2 * bit - 1), full & ~(bit - 1), t * 0 + 48]
    for i, column in enumerate(expected):
        for z in range(2):
            right = np.full(80, z) if column is None else column
            np.testing.assert_array_equal(out[z, :, :, i], np.tile(right, (3, 1)), err_msg=str(i))


COPY = r"""
extern "C" __global__ void copy(const float4* x, float4* y, int n) {
    __shared__ float4 s[64];
    int t = threadIdx.x;
    unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(&s[t]));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], %2;\n" ::
        "r"(to), "l"(x + t), "n"(16)); asm volatile("cp.async.commit_group;\n" ::);
    asm volatile("cp.async.wait_group %0;\n" :: "n"(0) : "memory");
    SYNC;
    y[t] = s[63 - t];
    asm volatile("bar.sync 0;" ::: "memory");
    unsigned again;
    asm volatile("{ .reg .u64 u64addr;\n"
                 "  cvta.to.shared.u64 u64addr, %1;   // as a library writes it\n"
                 "  cvt.u32.u64 %0, u64addr; }\n" : "=r"(again) : "l"((void*)&s[t]));
    int valid = t < n ? 12 : 0;
    asm volatile(
        "{\n"
        "  .reg .pred p;\n"
        "  setp.ne.b32 p, %0, 0;\n"
        "  @p cp.async.ca.shared.global [%1], [%2], 16, %3;\n"
        "  @!p cp.async.ca.shared.global [%1 + 4], [%2], 4;\n"
        "}\n" :: "r"((int)(t < 48)), "r"(again), "l"(x + t), "r"(valid));
    asm volatile("cp.async.wait_all;");
    y[64 + t] = s[t];
}"""


@pytest.mark.parametrize("check", [True, False])
def test_asynchronous_copies(check):
    x, y = np.arange(256, dtype=F32).reshape(64, 4), np.zeros((128, 4), F32)
    with emulated_cuda(check=check):
        kernel = RawKernel(COPY, "copy", ('-DSYNC=asm("barrier.sync 0;")',))
        kernel((1,), (64,), (x, y, I32(40)))
    np.testing.assert_array_equal(y[:64], x[::-1])
    expected = x.copy()
    expected[:40, 3] = 0
    expected[40:48] = 0
    expected[48:, 1] = x[48:, 0]
    np.testing.assert_array_equal(y[64:], expected)


def test_copies_are_checked_on_their_line():
    x, y = np.zeros((64, 4), F32), np.zeros((128, 4), F32)
    with pytest.raises(EmulationFault, match=r"copy:6: .*data race.*at copy:10") as fault:
        RawKernel(COPY, "copy", ("-DSYNC=",))((1,), (64,), (x, y, I32(0)))
    assert fault.value.finding.kind == "race"
    with pytest.raises(EmulationFault, match=r"copy:6: .*argument 0 \(x\)") as fault:
        RawKernel(COPY, "copy", ("-DSYNC=",))((1,), (64,), (x[:63], y, I32(0)))
    assert fault.value.finding.kind == "out_of_bounds"


def test_fences_order_and_functions_compute():
    code = r"""
extern "C" __global__ void f(int* flag, int* data, float* out, const float* in) {
    if (blockIdx.x == 0) {
        data[0] = 42;
        asm volatile("FENCE;" ::: "memory");
        atomicExch(flag, 1);
    } else if (atomicAdd(flag, 0) == 1) {
        out[0] = data[0];
    }
    float x = in[0];
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
    asm("rcp.approx.f32 %0, %0;" : "+f"(x));
    unsigned bits;
    asm("mov.b32 %0, %1;" : "=r"(bits) : "f"(x));
    if (blockIdx.x == 0) out[1] = __uint_as_float(bits);
    asm volatile("bar.warp.sync 0xffffffff;");
}"""
    for fence in ("membar.gl", "fence.acq_rel.gpu", "membar.sys"):
        flag, data, out = np.zeros(1, I32), np.zeros(1, I32), np.zeros(2, F32)
        kernel = RawKernel(code.replace("FENCE", fence), "f")
        kernel((2,), (1,), (flag, data, out, np.array([3], F32)))
        assert out.tolist() == [42, 0.125]
    with pytest.raises(EmulationFault, match="data race"):
        RawKernel(code.replace("FENCE", "membar.cta"), "f")((2,), (1,), (flag, data, out, out))


@pytest.mark.parametrize(
    ("ptx", "named"),
    [
        ("add.s32 %0, %0, 1;", "add.s32"),
        ("mov.u32 %0, %%envreg3;", "mov.u32"),
        ("mov.u32 %0, x;", "mov.u32"),
        ("bar.sync 1;", "bar.sync"),
        ("nonsense", "nonsense"),
        ("{ .reg .b128 q; }", ".reg .b128"),
        ("mov.b64 %0, {%0, %0};", "mov.b64"),
        ("mov.u32 %0, %%laneid; add.s32 %0, %0, 1;", "add.s32"),
        ("@x add.s32 %0, %0, 1;", "add.s32"),
    ],
)
def test_what_is_not_known_is_refused_by_name(ptx, named):
    code = f'extern "C" __global__ void f(int* x) {{\n    asm("{ptx}" : "+r"(x[0]));\n}}'
    with pytest.raises(
        NotImplementedError,
        match=f"f:2: inline PTX with {re.escape(named)}: not available in the emulator",
    ):
        RawKernel(code, "f")((1,), (1,), (np.zeros(1, I32),))
