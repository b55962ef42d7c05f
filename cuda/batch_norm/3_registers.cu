// 3_registers: reads a channel once, if it fits the registers of a block
//
// Fixes: 2_moments and 2_normalise both read x, one after the other
// Cost: one load of x, one of the residual and a store, 16 bytes each for 4 elements; one block per
// channel of at most THREADS * EACH elements
//
// y = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual), as in 1_three_passes, x
// of shape (images, channels, pixels). weight, bias: one of each channel. residual: like x; with
// RESIDUAL 0 it is not read. count: images * pixels. least: 0 for a ReLU, -infinity for none. mean,
// variance: the batch's, written by one thread for each channel; with_running: running_mean and
// running_variance are updated too, by momentum (publish in channel.cuh).
#include "part.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm(const T* __restrict__ x, const T* weight, const T* bias,
               const T* __restrict__ residual, T* __restrict__ y, T* mean, T* variance,
               RUNNING* running_mean, RUNNING* running_variance, T eps, double momentum,
               int channels, int pixels, int count, T least, bool with_running) {
  const int c = blockIdx.x;
  Walk walk((int)threadIdx.x * VECTOR, c, channels, pixels);
  const Part part(x, walk, count);
  const Moments moments = part.moments();
  if (threadIdx.x == 0)
    publish(moments, count, mean + c, variance + c, running_mean + c, running_variance + c,
            momentum, with_running);
  const Formula formula(moments, count, weight[c], bias[c], eps, least);
#pragma unroll
  for (int e = EACH / VECTOR - 1; e >= 0; --e) {
    walk.back();
    if (part.inside(e))
      store(y, walk, formula(part.own[e], RESIDUAL ? load(residual, walk) : Elements{}));
  }
}
