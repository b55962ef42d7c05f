// rows: the loss of each image, its correctness, and the gradient of the mean loss
//
// Fixes: nothing; array expressions take nine launches, and two synchronisations for the labels
// Cost: three loads of each logit, all but the first mostly from the L1 cache, and one store
//
// One warp per row of logits. With m their maximum and s = sum_k exp(logits[n,k] - m): losses[n] =
// log(s) + m - logits[n,label], right[n] is whether the first maximum is at the label, and
// gradient[n,k] = (exp(logits[n,k] - m) / s - (k == label)) / rows. A label that is not a class
// makes loss and gradient NaN. In a row with NaN the first one is the maximum.
//
// logits and gradient: (rows, classes).
#ifndef T
#define T float
#endif

#define THREADS 256
#define EVERY_LANE 0xffffffffu

struct Best {
  T value;
  int at;
};

__device__ inline Best better(Best a, Best b) {
  const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
  const bool larger = b.value > a.value || (b_is_nan && !a_is_nan);
  const bool equal = b.value == a.value || (b_is_nan && a_is_nan);
  return larger || (equal && b.at < a.at) ? b : a;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_rows(const T* logits, const int* labels, T* losses, int* right, T* gradient,
                       int rows, int classes) {
  const int row = (int)(blockIdx.x * (THREADS / 32) + threadIdx.x / 32), lane = threadIdx.x % 32;
  if (row >= rows) return;
  logits += (long long)row * classes;
  gradient += (long long)row * classes;

  const int first = lane < classes ? lane : 0;
  Best best = {logits[first], first};
  for (int k = lane + 32; k < classes; k += 32) best = better(best, {logits[k], k});
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    const T value = __shfl_xor_sync(EVERY_LANE, best.value, apart);
    best = better(best, {value, __shfl_xor_sync(EVERY_LANE, best.at, apart)});
  }

  T sum = 0;
#pragma unroll 1
  for (int k = lane; k < classes; k += 32) sum += exp(logits[k] - best.value);
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, apart);

  const int label = labels[row];
  const bool known = label >= 0 && label < classes;
  const T share = known ? T(1) / rows : T(nan(""));
#pragma unroll 1
  for (int k = lane; k < classes; k += 32)
    gradient[k] = (exp(logits[k] - best.value) / sum - T(k == label)) * share;
  if (lane == 0) {
    losses[row] = known ? log(sum) - (logits[label] - best.value) : share;
    right[row] = best.at == label;
  }
}
