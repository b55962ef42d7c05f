"""cuda::barrier and cuda::pipeline: barriers in two halves, and copies that are waited for."""
# ruff: noqa: E501

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import EmulationFault, RawKernel

F32, I32 = np.float32, np.int32

BARRIER = """
#include <cuda/barrier>
using Barrier = cuda::barrier<cuda::thread_scope_block>;
extern "C" __global__ void turn(const float* x, float* y) {
    extern __shared__ float s[];
    __shared__ Barrier ready;
    int t = threadIdx.x, n = blockDim.x;
    if (t == 0) init(&ready, n);
    SYNC;
    s[t] = x[blockIdx.x * n + t];
    Barrier::arrival_token token = ready.arrive();
    float more = t;                              // what needs no waiting
    WAIT;
    y[blockIdx.x * n + t] = s[n - 1 - t] + more;
    ready.arrive_and_wait();
    s[t] = more;
    ready.arrive_and_wait();
    y[blockIdx.x * n + t] += s[(t + 40) % n];
}"""


def turn(sync="__syncthreads()", wait="ready.wait(std::move(token))"):
    x, y = np.arange(192, dtype=F32), np.zeros(192, F32)
    code = BARRIER.replace("SYNC", sync).replace("WAIT", wait)
    RawKernel(code, "turn")((2,), (96,), (x, y), shared_mem=4 * 96)
    t = np.arange(96)
    np.testing.assert_array_equal(y.reshape(2, 96), x.reshape(2, 96)[:, ::-1] + t + (t + 40) % 96)


def test_a_barrier_in_two_halves():
    turn()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"wait": "more += s[n - 1 - t]; ready.wait(std::move(token))"}, "race"),  # too early
        ({"wait": ""}, "divergent_barrier"),  # the fast ones arrive twice
        ({"sync": ""}, "uninitialised|race"),
        ({"wait": "if (t == 7) return; ready.wait(std::move(token))"}, "divergent_barrier"),
    ],
)
def test_what_a_barrier_in_two_halves_does_not_order(change, kind):
    with pytest.raises(EmulationFault) as raised:
        turn(**change)
    assert raised.value.finding.kind in kind.split("|")


PIPELINE = """
#include <cooperative_groups.h>
#include <cuda/pipeline>
namespace cg = cooperative_groups;
extern "C" __global__ void shift(const float* x, float* y, int steps) {
    __shared__ float s[2][32];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    auto block = cg::this_thread_block();
    bool brings = threadIdx.x >= 64;  // the third warp, for two that read
    int lane = threadIdx.x % 32;
    auto pipe = cuda::make_pipeline(block, &state,
                                    brings ? cuda::pipeline_role::producer : cuda::pipeline_role::consumer);
    for (int i = 0; i < steps; ++i) {
        if (brings) {
            ACQUIRE;
            cuda::memcpy_async(&s[i % 2][lane], x + 32 * i + lane, cuda::aligned_size_t<4>(sizeof(float)), pipe);
            pipe.producer_commit();
        } else {
            TAKE;
            y[64 * i + threadIdx.x] = s[i % 2][(lane + 1) % 32];
            pipe.consumer_release();
        }
    }
}"""


def shift(acquire="pipe.producer_acquire()", take="pipe.consumer_wait()"):
    x, y = np.arange(160, dtype=F32), np.zeros((5, 2, 32), F32)
    code = PIPELINE.replace("ACQUIRE", acquire).replace("TAKE", take)
    RawKernel(code, "shift")((1,), (96,), (x, y, I32(5)))
    expected = np.roll(x.reshape(5, 1, 32), -1, 2)
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


def test_a_pipeline_of_producers_and_consumers():
    shift()


@pytest.mark.parametrize("change", [{"acquire": ""}, {"take": ""}])
def test_stages_that_are_not_waited_for(change):
    with pytest.raises(EmulationFault) as raised:
        shift(**change)
    assert raised.value.finding.kind in ("race", "uninitialised")


def test_what_many_threads_read_is_written_again_after_the_barrier():
    code = """
#include <cuda/barrier>
extern "C" __global__ void sums(const float* x, float* y, int steps) {
    __shared__ float s[96];
    __shared__ cuda::barrier<cuda::thread_scope_block> full, empty;
    if (threadIdx.x == 0) { init(&full, blockDim.x); init(&empty, blockDim.x); }
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < steps; ++i) {
        s[threadIdx.x] = x[96 * i + threadIdx.x];
        full.arrive_and_wait();
        for (int k = 0; k < 96; ++k) sum += s[k];
        empty.arrive_and_wait();
    }
    y[threadIdx.x] = sum;
}"""
    x, y = np.arange(288, dtype=F32), np.zeros(96, F32)
    RawKernel(code, "sums")((1,), (96,), (x, y, I32(3)))
    np.testing.assert_array_equal(y, x.sum())


def test_a_pipeline_of_one_thread_and_a_copy_by_a_group():
    code = """
#include <cooperative_groups.h>
#include <cuda/pipeline>
#include <cuda/barrier>
namespace cg = cooperative_groups;
extern "C" __global__ void copy(const float4* x, float4* y, int n) {
    __shared__ float4 own[32], all[40];
    __shared__ cuda::barrier<cuda::thread_scope_block> arrived;
    auto block = cg::this_thread_block();
    if (block.thread_rank() == 0) init(&arrived, block.size());
    block.sync();
    cuda::pipeline<cuda::thread_scope_thread> pipe = cuda::make_pipeline();
    pipe.producer_acquire();
    cuda::memcpy_async(own + threadIdx.x, x + threadIdx.x, sizeof(float4), pipe);
    pipe.producer_commit();
    cuda::memcpy_async(block, all, x, sizeof(float4) * n, arrived);
    pipe.consumer_wait();
    y[threadIdx.x] = own[threadIdx.x];
    pipe.consumer_release();
    arrived.arrive_and_wait();
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[32 + i] = all[n - 1 - i];
}"""
    x, y = np.arange(160, dtype=F32).reshape(40, 4), np.zeros((72, 4), F32)
    RawKernel(code, "copy")((1,), (32,), (x, y, I32(40)))
    np.testing.assert_array_equal(y, np.concatenate([x[:32], x[::-1]]))
