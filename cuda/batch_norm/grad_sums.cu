// grad_sums: the sums of the backward pass, for parts of the channels
//
// Fixes: nothing; grad_x has to wait for sums over the whole channel
// Cost: one load each of grad and x, and with a ReLU of y, 16 bytes each for 4 elements
//
// sum(flow) and sum(flow * (x - mean)), flow = grad where y > 0 or NaN, or grad itself without a ReLU.
//
// parts_sums[c * parts + p]: the sums of flow and of flow * (x - mean), see backward.cuh, over the
// elements of part p of channel c, `length` each and fewer in the last. means: one of each channel.
// grad, x and y: (images, channels, pixels). count: images * pixels.
#include "channel.cuh"

#include "backward.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    batch_norm_grad_sums(const T* __restrict__ grad, const T* __restrict__ x,
                         const T* __restrict__ y, const T* means, Sums* parts_sums, int channels,
                         int pixels, int count, int parts, int length) {
  const int c = blockIdx.x / parts, first = (int)(blockIdx.x % parts) * length;
  const T mean = means[c];
  length = min(length, count - first);

  T sums[2] = {};
  Walk walk(first + (int)threadIdx.x * VECTOR, c, channels, pixels);
#pragma unroll 4
  for (int i = threadIdx.x * VECTOR; i < length; i += STEP, walk.next()) {
    const Elements g = load(grad, walk);
    add(sums, RELU ? flow_of(g, load(y, walk)) : g, load(x, walk), mean);
  }
  sum_over_block(sums);
  if (threadIdx.x == 0) parts_sums[blockIdx.x] = {double(sums[0]), double(sums[1])};
}
