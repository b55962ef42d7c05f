// grad_x: each block combines the sums of its channel and writes a part of the gradients
//
// Fixes: nothing; it is the second half of grad_sums
// Cost: one load each of grad and x, and with a ReLU of y; a store, and one more for the residual's
// gradient; 16 bytes each for 4 elements
//
// The residual's gradient is the flow; without a ReLU that is grad itself, and need not be stored.
//
// The gradient is that of backward.cuh, grad, x and y of shape (images, channels, pixels).
// parts_sums: grad_sums'. weight: one of each channel. mean, variance: the statistics of x; given:
// they do not depend on it. eps: is added to the variance. grad_weight, grad_bias: one of each
// channel. grad_residual: the flow; with RESIDUAL 0 it is not written. count: images * pixels.
// parts: blocks of a channel, each with `length` of its elements, the last with fewer.
#include "channel.cuh"

#include "backward.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    batch_norm_grad_x(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ y,
                      const Sums* __restrict__ parts_sums, const T* weight, const T* mean,
                      const T* variance, T* __restrict__ grad_x, T* grad_weight, T* grad_bias,
                      T* __restrict__ grad_residual, T eps, int channels, int pixels, int count,
                      int parts, int length, bool given) {
  const int c = blockIdx.x / parts, first = (int)(blockIdx.x % parts) * length;
  double sums[2] = {};
#pragma unroll 1  // there are seldom more parts than threads
  for (int p = threadIdx.x; p < parts; p += THREADS) {
    const Sums part = parts_sums[(long long)c * parts + p];
    sums[0] += part.flow, sums[1] += part.along;
  }
  sum_over_block(sums);
  const Sums all = {sums[0], sums[1]};
  const Gradient gradient(all, mean[c], variance[c], weight[c], eps, count, given);
  if (first == 0 && threadIdx.x == 0) gradient.publish(all, grad_weight + c, grad_bias + c);

  length = min(length, count - first);
  Walk walk(first + (int)threadIdx.x * VECTOR, c, channels, pixels);
#pragma unroll 2
  for (int i = threadIdx.x * VECTOR; i < length; i += STEP, walk.next()) {
    const Elements g = load(grad, walk), flow = RELU ? flow_of(g, load(y, walk)) : g;
    store(grad_x, walk, gradient(flow, load(x, walk)));
    if (RESIDUAL) store(grad_residual, walk, flow);
  }
}
