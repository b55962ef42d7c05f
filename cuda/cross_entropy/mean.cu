// mean: the mean of the rows' losses, and the number of correct predictions
//
// Fixes: nothing; a second launch, because it needs all rows of the first
// Cost: two loads per row, by one block; summed in double, in a fixed order
//
// losses, right: one of each row, as from `rows`. loss: their mean. total: the sum of right.
#ifndef T
#define T float
#endif

#define THREADS 256

#include "../block_sum.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_mean(const T* losses, const int* right, T* loss, long long* total, int rows) {
  double sum = 0;
  int hits = 0;
  for (int row = threadIdx.x; row < rows; row += THREADS) {
    sum += losses[row];
    hits += right[row];
  }
  sum = block_sum(sum);
  hits = block_sum(hits);
  if (threadIdx.x == 0) {
    *loss = T(sum / rows);
    *total = hits;
  }
}
