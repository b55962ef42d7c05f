// 3_fused: a block keeps its outputs in registers while it loops over the 16 positions
//
// Fixes: V and the products, 8 times the size of input and output, go through global memory in
//   2_sparse
// Cost: per 4 products at most an eighth of a shared load of 16 bytes and of an index and four
// weights; per position, tile and channel 4 loads and 3 adds to recompute V for every 64 filters
//
// F(2x2, 3x3) as in fused.cuh. Weights are stored for groups of ROWS = 4 filters with a common
// pattern: where one of the four has a weight, the others have one too, perhaps 0. So a thread
// makes four products with each number of V that it loads, for EACH tiles at a time: otherwise
// shared-memory loads would limit it to a quarter of its speed. With random patterns a third of the
// entries are stored at a density of 0.1, and six of seven at 0.4.
//
// indptr[step*groups + group] is the first entry of a group at step chunk*16 + q; indices are
// channels of the chunk, and values[e] the four weights of an entry.
//
// y = bias + A^T [sum over c of U . (B^T d B)] A for each tile d. x: (images, C, H, W). bias: one
// of each filter, or null. y: (images, K, OH, OW). shape: their geometry. relu: whether V passes a
// ReLU. tiles: of all images.
#ifndef T
#define T float
#endif
#ifndef EACH
#define EACH 4
#define WARPS_K 16
#define CHUNK 64
#endif
#define ROWS 4
#define WARPS_P 1

#include "fused.cuh"

using Weights = Vector<T, ROWS>;

struct Products {
  const int *indptr, *indices;
  const T* values;
  int groups;

  __device__ __forceinline__ void operator()(T (&m)[ROWS][EACH], int step, int group,
                                             const T* slab) const {
    const int row = step * groups + group, end = indptr[row + 1];
#pragma unroll 2  // more would cost registers that the sums need
    for (int e = indptr[row]; e < end; ++e) {
      const Seen seen = *(const Seen*)(slab + indices[e] * TILES);
      const Weights weights = ((const Weights*)values)[e];
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int t = 0; t < EACH; ++t) m[r][t] += weights.at[r] * seen.at[t];
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    winograd_fused(const T* x, const int* indptr, const int* indices, const T* values,
                   const T* bias, T* y, const __grid_constant__ Convolution shape, int relu,
                   int tiles) {
  const int groups = (shape.filters - 1) / ROWS + 1;
  winograd(x, bias, y, shape, relu, tiles, Products{indptr, indices, values, groups});
}
