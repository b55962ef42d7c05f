// given: y from given statistics, as in evaluation
//
// Fixes: nothing; the statistics need no pass
// Cost: one load of x, one of the residual and a store, 16 bytes each for 4 elements
//
// y = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual), x of shape (images,
// channels, pixels). mean, variance: one of each channel. weight, bias: one of each channel.
// residual: like x; with RESIDUAL 0 it is not read. count: images * pixels. least: 0 for a ReLU,
// -infinity for none. parts: blocks of a channel, each with `length` of its elements, the last with
// fewer.
#include "channel.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_given(const T* __restrict__ x, const T* mean, const T* variance, const T* weight,
                     const T* bias, const T* __restrict__ residual, T* __restrict__ y, T eps,
                     int channels, int pixels, int count, int parts, int length, T least) {
  const int c = blockIdx.x / parts, first = (int)(blockIdx.x % parts) * length;
  const Formula formula(mean[c], variance[c], weight[c], bias[c], eps, least);
  normalise(formula, x, residual, y, first, min(length, count - first), c, channels, pixels);
}
