// 4_frozen: the sparsity pattern of one layer is compiled into the kernel, the values are not
//
// Fixes: 3_fused reads an index for every entry, and multiplies by the zeros of shared patterns
// Cost: a product per weight and tile, none for zeros; a quarter of a 16-byte load per weight, a
// shared load for all weights of a channel in 16 filters; code proportional to the number of
// weights, which every warp executes, and NVRTC takes seconds to compile
//
// F(2x2, 3x3) as in fused.cuh. PRODUCTS is text that the launcher generates: a case for each group
// at each step chunk*16 + q, made of W(i), load four weights; V(c), load what channel c has here;
// and P(r, i), add weight i of the four, times that, to filter r. Values come from an array in the
// same order, so that weights with the same pattern share a kernel.
//
// y = bias + A^T [sum over c of U . (B^T d B)] A for each tile d. x: (images, C, H, W). bias: one
// of each filter, or null. y: (images, K, OH, OW). shape: their geometry. relu: whether V passes a
// ReLU. tiles: of all images.
#ifndef T
#define T float
#endif
#ifndef PRODUCTS
#define PRODUCTS case 0: W(0) V(0) P(0, 0) P(3, 1) V(2) P(1, 2) P(15, 3) W(1) V(5) P(4, 0) break;
#define ROWS 16
#define WARPS_K 4
#define WARPS_P 2
#endif
#define EACH 1
#define CHUNK 64

#include "fused.cuh"

#define W(i) weights = ((const Vector<T, 4>*)values)[i];
#define V(c) seen = slab[(c) * TILES];
#define P(r, i) m[r][0] += weights.at[i] * seen;

struct Products {
  const T* values;
  int groups;

  __device__ __forceinline__ void operator()(T (&m)[ROWS][EACH], int step, int group,
                                             const T* slab) const {
    Vector<T, 4> weights;
    T seen;
    switch (step * groups + group) { PRODUCTS }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    winograd_frozen(const T* x, const T* values, const T* bias, T* y, const Convolution shape,
                    int relu, int tiles) {
  const int groups = (shape.filters - 1) / ROWS + 1;
  winograd(x, bias, y, shape, relu, tiles, Products{values, groups});
}
