// fused_grad_w: 4_fused_conv's gradient of w, with x gathered through the shifts again
//
// Fixes: keeping the shifted tensor for the backward pass, which doubles a layer's memory
// Cost: pixels / F + pixels / P global loads and one multiply-add per pixel, per weight
//
// parts[s, k, c] = sum over the pixels of part s of g[n, k, oh, ow] * x[n, c, oh*stride_h + dh[c],
// ow*stride_w + dw[c]], 0 outside. K x C tiles are too few to fill a GPU, so the sum over the
// pixels of all images is split into parts of `part` each; the launcher reduces them, always in the
// same order.
//
// Here pixels are rows, which are summed over, and channels are columns: offsets still add up to
// the element's, and the border comparison is the same. Neighbouring threads load neighbouring
// pixels of a plane; the tile is transposed.
//
// T, TILE, SUM, F, P, EACH_F, EACH_P, DEPTH: as in 4_fused_conv, P the channels.
//
// g: (images, K, OH, OW), the gradient of the outputs. x: (images, C, H, W). shifts: dh and dw of
// each channel. parts: (gridDim.y, K, C). shape: their geometry. part: pixels of a part, the last
// one may have fewer.
#ifndef T
#define T float
#endif
#ifndef SUM
#define SUM T
#endif
#define TILE SUM
#define ADD_TERM(sum, x, w) ((sum) + (x) * (w))
#ifndef F
#define F 64
#define P 64
#define EACH_F 8
#define EACH_P 4
#endif
#define X_PAD (16 / (int)sizeof(SUM))  // avoids bank conflicts of the transposed stores

#include <cuda_fp16.h>

#include "../adder/tile.cuh"
#include "table.cuh"

#define LINES (THREADS / DEPTH)  // filters, or channels, per load of the block
#define FILTER_LOADS (F / LINES)
#define CHANNEL_LOADS (P / LINES)

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    shift_conv_grad_w(const T* g, const T* x, const Shift* shifts, SUM* parts,
                      const __grid_constant__ Convolution shape, int part) {
  const int channels = shape.channels, filters = shape.filters;
  const Pair size = shape.size, stride = shape.stride, out = shape.out;
  __shared__ Tap taps[2][DEPTH];
  __shared__ alignas(16) TILE x_tile[2][DEPTH][P + X_PAD];
  __shared__ alignas(16) TILE g_tile[2][DEPTH][F + VECTOR];

  const int plane = out.h * out.w;
  const int first_p = blockIdx.y * part;
  const int length = smaller(part, shape.images * plane - first_p);
  const int channel_tiles = (channels - 1) / P + 1;
  const int first_c = (int)(blockIdx.x % channel_tiles) * P;
  const int first_f = (int)(blockIdx.x / channel_tiles) * F;
  const int line = threadIdx.x / DEPTH, l = threadIdx.x % DEPTH;

  Pixel channel[CHANNEL_LOADS];
#pragma unroll
  for (int i = 0; i < CHANNEL_LOADS; ++i) {
    const int c = first_c + line + i * LINES;
    const Shift shift = c < channels ? shifts[c] : Shift{NOWHERE, 0};
    channel[i] = {c < channels ? (c * size.h + shift.h) * size.w + shift.w : 0, shift.h, shift.w};
  }

  const auto decode = [&](int start) {
    if (threadIdx.x >= DEPTH) return;
    const int p = first_p + start + (int)threadIdx.x, n = p / plane, q = p % plane;
    const int h = q / out.w * stride.h, w = q % out.w * stride.w;
    const bool inside = start + (int)threadIdx.x < length;
    taps[start / DEPTH % 2][threadIdx.x] = {(n * channels * size.h + h) * size.w + w,
                                            inside ? h : NOWHERE, w,
                                            n * filters * plane + q};
  };
  T fetched_x[CHANNEL_LOADS], fetched_g[FILTER_LOADS];
  const auto fetch = [&](int start) {
    const Tap tap = taps[start / DEPTH % 2][l];
#pragma unroll
    for (int i = 0; i < CHANNEL_LOADS; ++i)
      fetched_x[i] = gather(x, channel[i], tap, size.h, size.w, (T)0);
#pragma unroll
    for (int i = 0; i < FILTER_LOADS; ++i) {
      const int f = first_f + line + i * LINES;
      fetched_g[i] = f < filters && start + l < length ? g[tap.weight + f * plane] : (T)0;
    }
  };
  const auto store = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < CHANNEL_LOADS; ++i)
      x_tile[buffer][l][line + i * LINES] = (TILE)fetched_x[i];
#pragma unroll
    for (int i = 0; i < FILTER_LOADS; ++i)
      g_tile[buffer][l][line + i * LINES] = (TILE)fetched_g[i];
  };

  SUM sum[EACH_F][EACH_P] = {};
  sum_steps(sum, x_tile, g_tile, length, decode, fetch, store);

#pragma unroll
  for (int f = 0; f < EACH_F; ++f)
#pragma unroll
    for (int i = 0; i < EACH_P; ++i) {
      const int k = first_f + position<EACH_F, THREADS_F>(THREAD_F, f);
      const int c = first_c + position<EACH_P, THREADS_P>(THREAD_P, i);
      if (k < filters && c < channels)
        parts[((long long)blockIdx.y * filters + k) * channels + c] = sum[f][i];
    }
}
