// A part of a channel, EACH elements per thread, in the registers of a block. It is read forwards,
// and the next pass runs backwards: recomputed addresses need no registers in between.
#ifndef EACH
#define EACH 16
#endif
#include "channel.cuh"

struct Part {
  Elements own[EACH / VECTOR];
  int length;  // elements, at most THREADS * EACH

  __device__ Part(const T* x, Walk& walk, int length) : length(length) {
#pragma unroll
    for (int e = 0; e < EACH / VECTOR; ++e, walk.next())
      own[e] = inside(e) ? load(x, walk) : Elements{};
  }

  __device__ bool inside(int e) const { return (e * THREADS + (int)threadIdx.x) * VECTOR < length; }

  // The mean, then the distances from it, so that a large mean does not cancel. The sum of the
  // distances from the rounded mean corrects both.
  __device__ Moments moments() const {
    T sum[1] = {};
#pragma unroll
    for (int e = 0; e < EACH / VECTOR; ++e)
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) sum[0] += own[e].at[v];
    sum_over_block(sum);
    const T mean = sum[0] / length;

    T rest[2] = {};  // the sum of the distances, and of their squares
#pragma unroll
    for (int e = 0; e < EACH / VECTOR; ++e)
#pragma unroll
      for (int v = 0; v < VECTOR; ++v) {
        const T d = inside(e) ? own[e].at[v] - mean : T(0);
        rest[0] += d, rest[1] += d * d;
      }
    sum_over_block(rest);
    const double off = isfinite(mean) ? double(rest[0]) / length : 0;
    return {mean + off, rest[1] - off * rest[0]};
  }
};
