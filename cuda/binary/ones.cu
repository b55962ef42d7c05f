// ones: summed-area table of the number of 1 bits of a filter
//
// Fixes: at the image border only some of a filter's taps count, and which ones differs from pixel
// to pixel
// Cost: once per tensor of weights; any rectangle of taps is then at most four numbers, and the
// whole window one
//
// sums[i, j, k] = ones of w[k, :, a, b] over a < i and b < j, for i <= kh and j <= kw, filters
// innermost. A thread computes one column j of one filter.
//
// T: unsigned, the words of w (filters, length, kh, kw).
//
// length: words of a tap. height, width: kh and kw.
#ifndef T
#define T unsigned long long
#endif

#include "answer.cuh"

extern "C" __global__ void ones(const T* w, int* sums, int filters, int length, int height,
                                int width) {
  const long long t = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  const int k = (int)(t % filters), j = (int)(t / filters);
  if (j > width) return;
  w += (long long)k * length * height * width;
  int sum = 0;
  for (int i = 0;; ++i) {
    sums[((long long)i * (width + 1) + j) * filters + k] = sum;
    if (i == height) return;
    for (int c = 0; c < length; ++c)
      for (int b = 0; b < j; ++b) sum += ones_in(w[((long long)c * height + i) * width + b]);
  }
}
