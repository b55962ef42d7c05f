// add_parts: reduces partial sums, always in the same order
//
// Fixes: atomic additions are unordered, so their rounding varies from run to run
// Cost: parts loads and parts - 1 adds per output
//
// out[i] = sum over s of parts[s, i]. A block owns 32 contiguous outputs; its row r adds parts r, r
// + ROWS, and so on, followed by a tree reduction of the rows.
//
// T: float or double.
//
// parts: (count, size). out: (size).
#ifndef T
#define T float
#endif
#define ROWS 32

extern "C" __global__ void __launch_bounds__(32 * ROWS)
    add_parts(const T* parts, T* out, int count, int size) {
  __shared__ T sums[ROWS][32];
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32;
  const int i = blockIdx.x * 32 + lane;
  T sum = 0;
  if (i < size)
    for (int s = row; s < count; s += ROWS) sum += parts[(long long)s * size + i];
  sums[row][lane] = sum;
  for (int half = ROWS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) sums[row][lane] += sums[row + half][lane];
  }
  if (row == 0 && i < size) out[i] = sums[0][lane];
}
