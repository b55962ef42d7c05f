// fused_grad_x: 4_fused_conv's gradient of x, a product stored at shifted positions
//
// Fixes: a scatter needs zeroing and atomic additions, whose order changes from run to run
// Cost: K / F + K / P global loads and K multiply-adds per element, every element stored once
//
// grad_x[n, c, oh*stride_h + dh[c], ow*stride_w + dw[c]] = sum over k of w[k, c] * g[n, k, oh, ow].
// Every output of a channel has its own pixel, so nothing is accumulated. Without a stride a result
// beyond one border leaves a pixel free at the opposite one: wrapped around the plane and stored as
// zero, it covers just that pixel. With a stride the launcher clears grad_x first, and results
// beyond a border are dropped.
//
// T, TILE, SUM, F, P, EACH_F, EACH_P, DEPTH, W_VECTOR: as in 4_fused_conv, F the channels; w is
// transposed, (C, K).
//
// g: (images, K, OH, OW), the gradient of the outputs. grad_x: (images, C, H, W). shifts: dh and dw
// of each channel. shape: their geometry.
#ifndef T
#define T float
#endif
#ifndef SUM
#define SUM T
#endif
#define TILE SUM
#define ADD_TERM(sum, x, w) ((sum) + (x) * (w))

#include <cuda_fp16.h>

#include "../adder/tile.cuh"
#include "table.cuh"

// Wraps a row or column beyond one border around to the opposite one.
__device__ __forceinline__ int round_trip(int i, int size) {
  return i < 0 ? size : i >= size ? -size : 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, 384 / THREADS)
    shift_conv_grad_x(const T* g, const T* w, const Shift* shifts, T* grad_x,
                      const __grid_constant__ Convolution shape) {
  const int channels = shape.channels, filters = shape.filters;
  const Pair size = shape.size, stride = shape.stride, out = shape.out;
  const int plane = out.h * out.w, pixels = shape.images * plane;
  const int pixel_tiles = (pixels - 1) / P + 1;
  const int first_p = (int)(blockIdx.x % pixel_tiles) * P;
  const int first_c = (int)(blockIdx.x / pixel_tiles) * F;

  // g is read without shifts: every pixel is inside, as row 0 of an image of one row and column.
  Pixel pixel[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    const int p = first_p + gathered_column(i);
    pixel[i] = {p / plane * filters * plane + p % plane, p < pixels ? 0 : NOWHERE, 0};
  }
  const auto decode = [&](int k) -> Tap { return {k * plane, k < filters ? 0 : NOWHERE, 0, 0}; };

  SUM sum[EACH_F][EACH_P] = {};
  sum_tile(sum, g, w, pixel, 1, 1, first_c, channels - first_c, filters, decode);

  const bool covers = stride.h == 1 && stride.w == 1;
  const int image = size.h * size.w;
  Pixel place[EACH_P];
#pragma unroll
  for (int i = 0; i < EACH_P; ++i) {
    const int p = first_p + position<EACH_P, THREADS_P>(THREAD_P, i);
    const int n = p / plane, q = p - n * plane, row = q / out.w;
    const int h = row * stride.h, w_ = (q - row * out.w) * stride.w;
    place[i] = {n * channels * image + h * size.w + w_, p < pixels ? h : NOWHERE, w_};
  }
#pragma unroll
  for (int f = 0; f < EACH_F; ++f) {
    const int c = first_c + position<EACH_F, THREADS_F>(THREAD_F, f);
    if (c >= channels) continue;
    const Shift shift = shifts[c];
    const int offset = c * image + shift.h * size.w + shift.w;
#pragma unroll
    for (int i = 0; i < EACH_P; ++i) {
      if (place[i].h == NOWHERE) continue;
      const int h = place[i].h + shift.h, w_ = place[i].w + shift.w;
      const bool inside = (unsigned)h < (unsigned)size.h && (unsigned)w_ < (unsigned)size.w;
      T* target = grad_x + (place[i].offset + offset);
      if (inside)
        *target = (T)sum[f][i];
      else if (covers)
        target[round_trip(h, size.h) * size.w + round_trip(w_, size.w)] = (T)0;
    }
  }
}
