// 4_frozen: the places of one layer's weights are written into the kernel, their values are not
//
// Fixes: 3_fused reads an index for every place, and multiplies the zeros that share a place
// Cost: a product per weight and tile, none for a zero; a quarter of a load of 16 bytes for the
// weight, a shared load for all weights that a channel has in 16 filters; the code is as long as
// the layer has weights, is read by every warp, and takes NVRTC seconds to compile
//
// F(2x2, 3x3) as in fused.cuh. PRODUCTS is text that the launcher generates: a case for each group
// at each step chunk*16 + q, made of W(i), load four weights; V(c), load what channel c has here;
// and P(r, i), add weight i of the four, times that, to filter r. Values come from an array in the
// same order, so that weights which keep their places keep their kernel.
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
