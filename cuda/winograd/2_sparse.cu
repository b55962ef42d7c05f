// 2_sparse: the product per position reads its weights as CSR, and skips zeros
//
// Fixes: the dense matrix product multiplies by pruned weights
// Cost: a product per stored weight and tile; 16 bytes of V, an index and a weight loaded per 4 of
// them, at best a quarter of peak
//
// products[q, k, p] = sum over row q*filters + k of values[e] * v[q, indices[e], p], between
// 1_input_transform and 1_output_transform. A block owns a row and a range of tiles, a thread as
// many contiguous tiles as fit 16 bytes; all threads of a warp read the same index and the same
// weight. `count` is a multiple of 32.
//
// v: (positions, channels, count). products: (positions, filters, count). Row r of the weights,
// q*filters + k, has the entries indptr[r] <= e < indptr[r + 1]. The grid has a z for each
// position.
#ifndef T
#define T float
#endif

#include "../vector.cuh"

#define EACH (16 / (int)sizeof(T))
using Tiles = Vector<T, EACH>;

extern "C" __global__ void __launch_bounds__(128)
    winograd_sparse(const T* v, const int* indptr, const int* indices, const T* values,
                    T* products, int channels, int filters, int count) {
  const int p = (blockIdx.x * blockDim.x + threadIdx.x) * EACH, position = blockIdx.z;
  if (p >= count) return;
  v += (long long)position * channels * count + p;

  for (int k = blockIdx.y; k < filters; k += gridDim.y) {
    const int row = position * filters + k;
    Tiles sum = {};
    for (int e = indptr[row]; e < indptr[row + 1]; ++e) {
      const Tiles seen = *(const Tiles*)(v + (long long)indices[e] * count);
      const T weight = values[e];
#pragma unroll
      for (int i = 0; i < EACH; ++i) sum.at[i] += weight * seen.at[i];
    }
    *(Tiles*)(products + (long long)row * count + p) = sum;
  }
}
