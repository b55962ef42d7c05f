// 2_normalise: each block combines the moments of its channel's parts and writes a part of y
//
// Fixes: 1_three_passes writes y with one block per channel, 4 bytes at a time
// Cost: one load of x, one of the residual and a store, 16 bytes each for 4 elements; every block
// reads all moments of its channel once or twice
//
// Chan's formula for any number of parts: the mean is the mean of the parts' means, weighted by
// length; the sum of squares about it is that about each part's mean plus, for every element, the
// squared distance between the two means.
//
// PART: elements per part in 2_moments.
//
// y = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual), as in 1_three_passes, x
// of shape (images, channels, pixels). parts_moments: 2_moments'. parts: blocks of a channel, each
// with `length` of its elements, the last with fewer. weight, bias: one of each channel. residual:
// like x; with RESIDUAL 0 it is not read. count: images * pixels. least: 0 for a ReLU, -infinity
// for none. mean, variance: the batch's, written by one thread for each channel; with_running:
// running_mean and running_variance are updated too, by momentum (publish in channel.cuh).
#ifndef PART
#define PART 4096
#endif
#include "channel.cuh"

__device__ Moments together(const Moments* part, int count) {
  const int parts = (count - 1) / PART + 1;
  const auto length = [=](int p) { return (double)min(PART, count - p * PART); };
  double sum[1] = {}, squares[1] = {};
#pragma unroll 1  // there are seldom more parts than threads
  for (int p = threadIdx.x; p < parts; p += THREADS) sum[0] += length(p) * part[p].mean;
  sum_over_block(sum);
  const double mean = sum[0] / count;
#pragma unroll 1  // there are seldom more parts than threads
  for (int p = threadIdx.x; p < parts; p += THREADS) {
    const double d = part[p].mean - mean;
    squares[0] += part[p].squares + length(p) * d * d;
  }
  sum_over_block(squares);
  return {mean, squares[0]};
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    batch_norm(const T* __restrict__ x, const Moments* __restrict__ parts_moments, const T* weight,
               const T* bias, const T* __restrict__ residual, T* __restrict__ y, T* mean,
               T* variance, RUNNING* running_mean, RUNNING* running_variance, T eps,
               double momentum, int channels, int pixels, int count,
               int parts, int length,  // of y: their number, and elements per part
               T least, bool with_running) {
  const int c = blockIdx.x / parts, first = (int)(blockIdx.x % parts) * length;
  const Moments moments =
      together(parts_moments + (long long)c * ((count - 1) / PART + 1), count);
  if (first == 0 && threadIdx.x == 0)
    publish(moments, count, mean + c, variance + c, running_mean + c, running_variance + c,
            momentum, with_running);

  const Formula formula(moments, count, weight[c], bias[c], eps, least);
  normalise(formula, x, residual, y, first, min(length, count - first), c, channels, pixels);
}
