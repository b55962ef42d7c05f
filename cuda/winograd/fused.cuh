// Shared by the fused F(2x2, 3x3) kernels: everything except the products of one position.
//
// A block owns the outputs of WARPS_K groups of ROWS filters in TILES tiles; a thread those of ROWS
// filters in EACH neighbouring tiles. The 16 positions q are the outer loop. For each, the block
// builds the slab V_q, CHUNK channels by TILES tiles, in shared memory: one number needs only 4
// pixels, since a row of B^T has two entries, 1 or -1. `products` then computes the sums m of the
// thread, which are accumulated with the 0, 1 and -1 of A into its four outputs per tile: neither V
// nor the products are stored in global memory. Channels beyond CHUNK are further convolutions that
// accumulate into the same outputs.
//
// T: float or double. ROWS, EACH, WARPS_K, WARPS_P, CHUNK: the tile. WARPS_K * WARPS_P * 32 threads
// must be a multiple of TILES.
#include "../geometry.cuh"
#include "../vector.cuh"

#define TILES (32 * EACH * WARPS_P)
#define THREADS (32 * WARPS_K * WARPS_P)

using Seen = Vector<T, EACH>;

// Row i of B^T is d[first(i)] + d[second(i)], or - for all but row 1. Row 1 of A^T has minus signs
// from column 2 on; its first entry is 0, and so is the last one of row 0.
__device__ __forceinline__ int first_pixel(int i) { return i == 0 ? 0 : i == 2 ? 2 : 1; }
__device__ __forceinline__ int second_pixel(int i) { return i == 3 ? 3 : i == 2 ? 1 : 2; }
__device__ __forceinline__ T combine(int i, T a, T b) { return i == 1 ? a + b : a - b; }
__device__ __forceinline__ bool absent(int a, int i) { return a == 0 ? i == 3 : i == 0; }
__device__ __forceinline__ bool negative(int a, int i) { return a == 1 && i > 1; }

// products(m, step, group, slab) adds to m for position step % 16 of chunk step / 16; slab points
// to the thread's tiles in channel 0 of the chunk, and channels are TILES apart.
template <class Products>
__device__ __forceinline__ void winograd(const T* x, const T* bias, T* y, const Convolution& shape,
                                         int relu, int tiles, Products products) {
  const int channels = shape.channels, filters = shape.filters;
  const Pair size = shape.size, pad = shape.pad, out = shape.out;
  __shared__ alignas(16) T slab[CHUNK][TILES];
  const int rows = (out.h + 1) / 2, columns = (out.w + 1) / 2;
  const int first_tile = blockIdx.x * TILES, plane = size.h * size.w;
  const int warp = threadIdx.x / 32;
  const int group = blockIdx.y * WARPS_K + warp / WARPS_P;
  const int thread_tile = (warp % WARPS_P * 32 + threadIdx.x % 32) * EACH;

  // The tile that this thread transforms, in every THREADS / TILES-th channel.
  const int mine = threadIdx.x % TILES, tile = first_tile + mine;
  const int top = tile / columns % rows * 2 - pad.h, left = tile % columns * 2 - pad.w;
  const T* const image = x + (long long)(tile / columns / rows) * channels * plane;

  T sum[ROWS][4][EACH] = {};
  for (int start = 0; start < channels; start += CHUNK) {
    const int here = min(CHUNK, channels - start);
#pragma unroll 1
    for (int q = 0; q < 16; ++q) {
      const int i = q / 4, j = q % 4;
      const int h0 = top + first_pixel(i), h1 = top + second_pixel(i);
      const int w0 = left + first_pixel(j), w1 = left + second_pixel(j);
      const bool up = tile < tiles && (unsigned)h0 < (unsigned)size.h;
      const bool down = tile < tiles && (unsigned)h1 < (unsigned)size.h;
      const bool near = (unsigned)w0 < (unsigned)size.w, far = (unsigned)w1 < (unsigned)size.w;
      __syncthreads();  // all threads are done with the previous position's slab
#pragma unroll 1  // more would cost registers
      for (int c = threadIdx.x / TILES; c < here; c += THREADS / TILES) {
        const T* const pixels = image + (long long)(start + c) * plane;
        const T a = up && near ? pixels[h0 * size.w + w0] : T(0);
        const T b = up && far ? pixels[h0 * size.w + w1] : T(0);
        const T d = down && near ? pixels[h1 * size.w + w0] : T(0);
        const T e = down && far ? pixels[h1 * size.w + w1] : T(0);
        const T v = combine(j, combine(i, a, d), combine(i, b, e));
        slab[c][mine] = relu && v < 0 ? T(0) : v;  // NaN is not below 0, and propagates
      }
      __syncthreads();
      if (group * ROWS >= filters) continue;

      T m[ROWS][EACH] = {};
      products(m, start / CHUNK * 16 + q, group, &slab[0][thread_tile]);
#pragma unroll
      for (int o = 0; o < 4; ++o) {
        if (absent(o / 2, i) || absent(o % 2, j)) continue;
        const bool minus = negative(o / 2, i) != negative(o % 2, j);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
          for (int t = 0; t < EACH; ++t) sum[r][o][t] += minus ? -m[r][t] : m[r][t];
      }
    }
  }

#pragma unroll
  for (int t = 0; t < EACH; ++t) {
    const int p = first_tile + thread_tile + t, image_out = p / columns / rows;
    const int h = p / columns % rows * 2, w = p % columns * 2;
    if (p >= tiles) continue;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int k = group * ROWS + r;
      if (k >= filters) continue;
      T* const plane_out = y + ((long long)image_out * filters + k) * out.h * out.w;
      const T offset = bias ? bias[k] : (T)0;
#pragma unroll
      for (int o = 0; o < 4; ++o)
        if (h + o / 2 < out.h && w + o % 2 < out.w)
          plane_out[(h + o / 2) * out.w + w + o % 2] = sum[r][o][t] + offset;
    }
  }
}
