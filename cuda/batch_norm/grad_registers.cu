// grad_registers: the backward pass of a channel that fits the registers of a block
//
// Fixes: grad_sums and grad_x both read grad, x and y, one after the other
// Cost: one load each of grad and x, and with a ReLU of y; a store, and one more for the residual's
// gradient; 16 bytes each for 4 elements; one block per channel of at most THREADS * EACH elements
//
// The sums and the gradient are those of backward.cuh, grad, x and y of shape (images, channels,
// pixels). weight: one of each channel. mean, variance: the statistics of x; given: they do not
// depend on it. eps: is added to the variance. grad_weight, grad_bias: one of each channel.
// grad_residual: the flow; with RESIDUAL 0 it is not written. count: images * pixels.
#include "part.cuh"

#include "backward.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_grad_registers(const T* __restrict__ grad, const T* __restrict__ x,
                              const T* __restrict__ y, const T* weight, const T* mean,
                              const T* variance, T* __restrict__ grad_x, T* grad_weight,
                              T* grad_bias, T* __restrict__ grad_residual, T eps, int channels,
                              int pixels, int count, bool given) {
  const int c = blockIdx.x;
  Walk walk((int)threadIdx.x * VECTOR, c, channels, pixels);
  Part flow(grad, walk, count);
  const T centre = mean[c];
  T sums[2] = {};
#pragma unroll
  for (int e = EACH / VECTOR - 1; e >= 0; --e) {
    walk.back();
    if (!flow.inside(e)) continue;
    if (RELU) flow.own[e] = flow_of(flow.own[e], load(y, walk));
    add(sums, flow.own[e], load(x, walk), centre);
  }
  sum_over_block(sums);
  const Sums all = {double(sums[0]), double(sums[1])};
  const Gradient gradient(all, centre, variance[c], weight[c], eps, count, given);
  if (threadIdx.x == 0) gradient.publish(all, grad_weight + c, grad_bias + c);

#pragma unroll
  for (int e = 0; e < EACH / VECTOR; ++e, walk.next())
    if (flow.inside(e)) {
      store(grad_x, walk, gradient(flow.own[e], load(x, walk)));
      if (RESIDUAL) store(grad_residual, walk, flow.own[e]);
    }
}
