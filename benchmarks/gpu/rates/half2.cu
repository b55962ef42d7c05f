// Rate of packed half additions, two of which make two L1 terms, from registers alone.
//
// As vabsdiff4.cu: every thread keeps CHAINS independent sums and lengthens each STEPS times a
// round. With T threads in all, a launch of
//
//   hadd2_pair(__half* out, __half seed, int rounds)
//
// does T * rounds * STEPS * CHAINS pairs of HADD2, two terms each: a difference, and a sum with its
// absolute value; and writes one value a thread to out[T]. hfma2_hadd2 takes the difference as a
// fused multiply-add with a one that the compiler cannot see, on the other pipe.
#include <cuda_fp16.h>

#define CHAINS 16
#define STEPS 16

template <bool fused>
__device__ __forceinline__ void terms(__half* out, __half seed, int rounds, __half2 one) {
  const __half2 start = __half2half2(seed), w = __hadd2(start, __float2half2_rn(threadIdx.x));
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
  terms<false>(out, seed, rounds, __float2half2_rn(1));
}

extern "C" __global__ void __launch_bounds__(256) hfma2_hadd2(__half* out, __half seed, int rounds) {
  terms<true>(out, seed, rounds, __float2half2_rn(gridDim.y));
}
