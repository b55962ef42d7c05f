// update: a step of gradient descent on all tensors, in place
//
// Fixes: nothing; array expressions take six launches per tensor, each a pass over memory
// Cost: three loads and two stores per element (two and one without momentum); one launch for all
//
// v = momentum * v + (scale * gradient + decay * w), and w -= rate * v, or, with NESTEROV,
// w -= rate * (scale * gradient + decay * w + momentum * v). The rate is read from memory, so that a
// captured graph follows its schedule. The tensors whose blocks come before `adder_blocks` are
// adder filters, and their scale is factor; with ADAPTIVE it is factor * sqrt(size /
// sum(gradient^2)), AdderNet's rate, for which every block reduces its tensor's sums in the same
// order.
//
// table: the tensors, see table.cuh; a block finds its own by its number. sums: square_sums'.
#include "table.cuh"

#include "../block_sum.cuh"

#ifndef ADAPTIVE
#define ADAPTIVE 1
#endif
#ifndef NESTEROV
#define NESTEROV 0
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    update(const Table table, const double* sums, const double* rate, int adder_blocks, double factor,
           double momentum, double decay) {
  const int tensor = tensor_of(table, blockIdx.x), size = table.sizes[tensor];
  const int first = table.firsts[tensor];
  const int start = (int)(blockIdx.x - first) * PART + threadIdx.x;
  const T* const gradient = table.gradients[tensor];
  T* const parameter = table.parameters[tensor];
  T* const velocity = table.velocities[tensor];
  T w[EACH], g[EACH], v[EACH];  // all loads are in flight during the reduction
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int at = start + i * THREADS;
    w[i] = at < size ? parameter[at] : T(0);
    g[i] = at < size ? gradient[at] : T(0);
    v[i] = at < size && velocity ? velocity[at] : T(0);
  }

  T scale = 1;
  if ((int)blockIdx.x < adder_blocks) {
#if ADAPTIVE
    double sum = 0;
    for (int i = threadIdx.x; i < (size + PART - 1) / PART; i += THREADS) sum += sums[first + i];
    sum = block_sum(sum);
    // Zeros stay zeros; infinity times 0 makes all NaN, as an infinite gradient should.
    scale = T(sum == 0 ? 0 : factor * sqrt(size / sum) + 0 * sum);
#else
    scale = T(factor);
#endif
  }

  const T step = T(*rate), share = T(momentum), shrink = T(decay);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int at = start + i * THREADS;
    if (at >= size) return;
    const T change = scale * g[i] + shrink * w[i];
    const T moved = share * v[i] + change;
    if (velocity) velocity[at] = moved;
    parameter[at] = w[i] - step * (NESTEROV ? change + share * moved : moved);
  }
}
