// Throughput of packed half additions, two of which make two L1 terms, on registers only.
//
// As vabsdiff4.cu: every thread keeps CHAINS independent sums and lengthens each STEPS times a
// round. With T threads in all, a launch of
//
//   hadd2_pair(__half* out, __half seed, int rounds)
//
// does T * rounds * STEPS * CHAINS pairs of instructions, two terms each: a difference, and a sum
// with its absolute value; and writes one value a thread to out[T]. An addition is HADD2, or
// HFMA2.MMA, the first operand times 1, on another pipe: the compiler balances them. But a half
// broadcast to both lanes is read as .H0_H0, which HFMA2.MMA cannot do. So the sums of hadd2_pair,
// which start at the seed, and half of its differences are all HADD2; hfma2_hadd2 computes the
// difference as HFMA2 with a one hidden from the compiler, all on HADD2's pipe; both_pipes starts
// at two different halves, and each pipe has half of the differences and of the sums.
#include <cuda_fp16.h>

#define CHAINS 16
#define STEPS 16

template <bool fused>
__device__ __forceinline__ void terms(__half* out, __half2 start, int rounds, __half2 one) {
  const __half2 w = __hadd2(start, __float2half2_rn(threadIdx.x));
  __half2 sum[CHAINS];
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) sum[i] = __hadd2(start, __float2half2_rn(i));
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
      for (int i = 0; i < CHAINS; ++i) {
        const __half2 difference = fused ? __hfma2(sum[i], one, w) : __hsub2(sum[i], w);
        sum[i] = __hadd2(start, __habs2(difference));
      }
  }
  __half2 total = start;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) total = __hadd2(total, sum[i]);
  out[blockIdx.x * blockDim.x + threadIdx.x] = __hadd(__low2half(total), __high2half(total));
}

extern "C" __global__ void __launch_bounds__(256) hadd2_pair(__half* out, __half seed, int rounds) {
  terms<false>(out, __half2half2(seed), rounds, __float2half2_rn(1));
}

extern "C" __global__ void __launch_bounds__(256) hfma2_hadd2(__half* out, __half seed, int rounds) {
  terms<true>(out, __half2half2(seed), rounds, __float2half2_rn(gridDim.y));
}

extern "C" __global__ void __launch_bounds__(256) both_pipes(__half* out, __half seed, int rounds) {
  const __half other = __hadd(seed, __float2half(1));
  terms<false>(out, __halves2half2(seed, other), rounds, __float2half2_rn(1));
}
