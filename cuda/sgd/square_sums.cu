// square_sums: the sums of squares of the gradients of adder filters, for their adaptive rate
//
// Fixes: nothing; array expressions take a dozen launches per norm
// Cost: one load and one multiplication per element, one store per 1024; one launch for all tensors
//
// A block sums 1024 elements of one tensor: sums[block] = sum(gradient^2), in double, which neither
// overflows nor underflows for any float. No atomics: the next kernel reduces a tensor's blocks.
//
// table: the tensors, see table.cuh; a block finds its own by its number.
#include "table.cuh"

#include "../block_sum.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) square_sums(const Table table, double* sums) {
  const int tensor = tensor_of(table, blockIdx.x), size = table.sizes[tensor];
  const T* const gradient = table.gradients[tensor];
  const int start = (int)(blockIdx.x - table.firsts[tensor]) * PART + threadIdx.x;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int at = start + i * THREADS;
    const double g = at < size ? gradient[at] : T(0);
    sum += g * g;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
